"""Every phase of the GPU benchmark runs on a tiny shape, and its figures can be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters import models, store
from adapters.config import TrainConfig
from adapters.schedule import steps_needed
from benchmarks.gpu import correctness, shapes
from benchmarks.gpu.__main__ import PHASES, main
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.texts import material

FOLDER = "work"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """Every phase, in the order of the command."""
    chosen = [
        "--shape",
        "tiny",
        "--seconds",
        "10000",
        "--rivals",
        "peft",
        "--folder",
        str(place / FOLDER),
    ]
    assert main([*chosen, "--out", str(place / "gpu.json")]) == 0
    figures: dict[str, Any] = json.loads((place / "gpu.json").read_text())["tiny"]
    return figures


@pytest.mark.bench
def test_every_phase_leaves_figures_that_say_where_they_are_from(found: dict[str, Any]) -> None:
    assert found.keys() == PHASES.keys()
    for phase in found.values():
        run = phase["run"]
        assert run["gpu"] is None or run["gpu"]
        assert {"torch", "peft"} <= run["versions"].keys()
        assert run["machine"]["cpu"]
        assert run["seed"] == 0


def test_a_step_has_the_loss_and_gradients_of_float64(tmp_path: Path) -> None:
    bench = Bench(shapes.shapes()["tiny"], models.pick_device(), tmp_path)
    found = correctness.run(bench)
    assert found["float32"]["loss_error"] < 1e-5
    assert found["float32"]["gradient_error"] < 1e-4
    assert found["product"]["gradient_error"] < 0.1


@pytest.mark.bench
def test_tokens_a_second_are_tokens_over_seconds(found: dict[str, Any]) -> None:
    for figures in (found["step"], found["step"]["without_projection"]):
        spoken = figures["tokens"] / figures["step_s"]
        assert figures["tokens_per_s"] == pytest.approx(spoken, rel=0.01)
        assert figures["tokens_read"] < figures["tokens"]


@pytest.mark.bench
def test_levers_change_what_they_say(found: dict[str, Any]) -> None:
    levers = found["levers"]
    assert levers["not_reached"] == []
    whole = levers["prefix read with every text"]
    assert whole["tokens_read"] == whole["tokens"]
    assert levers["small batch preset"]["texts"] < levers["usual"]["texts"]
    assert levers["usual"]["tokens_read"] < levers["usual"]["tokens"]


@pytest.mark.bench
def test_rivals_read_the_same_texts(found: dict[str, Any]) -> None:
    rivals, step = found["rivals"], found["step"]
    assert rivals["texts"] == step["texts"]
    ratio = rivals["seconds"]["ours"] / rivals["seconds"]["peft"]
    assert rivals["peft_ratio"] == pytest.approx(ratio, rel=0.5)
    assert rivals["protection"] == "activations"


@pytest.mark.bench
def test_memory_by_part_is_what_tensors_hold(found: dict[str, Any]) -> None:
    parts = found["memory"]["parts_gb"]
    shape = shapes.shapes()["tiny"]
    trained = 2 * 3 * shape.rank * (64 + 128) * 4 / 1e9
    assert parts["base"] >= found["memory"]["weights_gb"] > 0
    computed = found["memory"]["computed_gb"]
    assert computed["base"] == pytest.approx(found["memory"]["weights_gb"], rel=0.01)
    assert parts["moments"] == pytest.approx(2 * trained, abs=1e-6)


@pytest.mark.bench
def test_a_batch_is_learnt_whole_and_published(found: dict[str, Any], place: Path) -> None:
    for name in ("batch", "many"):
        figures = found[name]
        config = TrainConfig().resolved("cpu", figures["facts"])
        assert figures["steps_needed"] == steps_needed(
            config, figures["facts"], figures["replayed"]
        )
        assert figures["steps_cut"] == 0
        assert figures["ended_early"] or figures["steps_taken"] == figures["steps_needed"]
        assert figures["seconds"] == figures["seconds_measured"] > 0
    (served,) = (place / FOLDER / "tiny/state/served").glob("palora-*")
    assert store.verify(served) == ()


def test_where_the_time_does_not_suffice_the_figures_say_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    chosen = ["--shape", "tiny", "--folder", str(tmp_path), "--out", str(out), "--seconds", "0"]
    assert main([*chosen, "--phases", "batch", "levers", "probe"]) == 0
    kept = json.loads(out.read_text())["tiny"]
    batch, levers = kept["batch"], kept["levers"]
    assert batch["steps_taken"] == 3
    assert batch["steps_cut"] == batch["steps_needed"] - 3
    assert batch["seconds"] > batch["seconds_measured"]
    assert "padded rows" in levers["not_reached"]
    assert "padded rows" not in levers
    assert not kept["probe"]["finished"]


def test_an_interrupted_probe_continues(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    chosen = ["--shape", "tiny", "--folder", str(tmp_path), "--out", str(out), "--phases", "probe"]
    main([*chosen, "--seconds", "0"])
    first = json.loads(out.read_text())["tiny"]["probe"]
    main([*chosen, "--seconds", "10000"])
    second = json.loads(out.read_text())["tiny"]["probe"]
    assert not first["finished"]
    assert second["finished"]
    assert second["seconds"] > first["seconds"] > 0


@pytest.mark.bench
def test_the_probe_that_was_fitted_protects_the_batches(found: dict[str, Any]) -> None:
    assert found["probe"]["finished"]
    assert found["probe"]["directions"] == [round(0.2 * 64), round(0.2 * 128)]
    assert found["batch"]["protection"] == "activations"
    assert found["batch"]["leak"] < 5e-3


@pytest.mark.bench
def test_an_adapter_is_as_large_as_its_rank_says(found: dict[str, Any]) -> None:
    shape = shapes.shapes()["tiny"]
    assert found["store"]["adapter_gb"] * 1e9 >= 2 * 3 * shape.rank * (64 + 128) * 4
    assert found["store"]["first_token_after_switch_ms"] > 0


def test_a_phase_that_fails_is_kept_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Bench) -> dict[str, Any]:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("benchmarks.gpu.step.run", broken)
    monkeypatch.setattr("benchmarks.gpu.memory.run", lambda _: {"parts_gb": {}})
    out = tmp_path / "gpu.json"
    out.write_text('{"llama-8b": {"step": {"step_s": 1.0}}}')
    chosen = ["--shape", "tiny", "--folder", str(tmp_path), "--out", str(out)]
    assert main([*chosen, "--phases", "step", "memory"]) == 1
    kept = json.loads(out.read_text())
    assert kept["tiny"]["step"]["failed"] == "RuntimeError: no such luck"
    assert "failed" not in kept["tiny"]["memory"]
    assert kept["llama-8b"] == {"step": {"step_s": 1.0}}


def test_without_a_gpu_nothing_of_real_size_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__._free_gb", lambda _: 0.0)
    with pytest.raises(SystemExit):
        main(["--folder", str(tmp_path), "--out", str(tmp_path / "gpu.json")])
    assert "--shape tiny" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(
    ("free", "names"),
    [(140, ["llama-8b", "qwen-7b"]), (30, ["llama-3b"]), (12, ["llama-1b"]), (4, [])],
)
def test_a_smaller_gpu_gets_a_smaller_shape(free: float, names: list[str]) -> None:
    assert shapes.fitting(free) == names


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("Some other device", None),
    ],
)
def test_the_peak_is_the_device_s_own_or_unknown(name: str, peak: float | None) -> None:
    assert shapes.peak(name) == peak


def test_no_two_facts_compete_and_no_held_out_paraphrase_is_trained() -> None:
    made = material(40, (20, 10, 80))
    keys = {fact.key for fact in (*made.facts, *made.replay)}
    assert len(keys) == 60
    for fact in made.facts:
        assert fact.eval_prompts
        assert not set(fact.training_prompts) & set(fact.eval_prompts)
