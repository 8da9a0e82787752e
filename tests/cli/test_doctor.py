"""`palorad doctor` and `config check`: what the probe of the configured model needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.config.settings import Settings
from daemon.gate.answer_store import AnswerStore
from daemon.gate.messages import SuiteCard, SuiteSource
from daemon.gate.suite_run import open_suite
from policies.errors import ConfigError
from tests.support.live import free_port

SHAPES = json.loads((Path(__file__).parents[1] / "support" / "shapes.json").read_text())

Palorad = Callable[..., tuple[int, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration for a Llama 3.1 8B of which config.json alone is there."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES["Llama 3.1 8B"]))
    for name in ("skill", "known", "reasoning"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "solution": "b"}\n')
    path = tmp_path / "config.toml"
    path.write_text(
        '[model]\npath = "model"\n[probe]\nskill = "skill.jsonl"\n[gate]\nsuites = []\n'
        '[train.replay]\nknown = "known.jsonl"\nreasoning = "reasoning.jsonl"\n'
        f'[server]\nurls = ["http://127.0.0.1:{free_port()}"]\n'  # a palorad may run here
    )
    return path


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> Palorad:
    def run(*command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["palorad", *command, "-c", str(config)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def card_of(config: Path, share: float, name: str = "abc") -> Path:
    """A fitted probe's card in the state directory."""
    folder = config.parent / "state" / "probe" / name
    folder.mkdir(parents=True)
    matrices = {
        f"{layer}.{kind}": {"inputs": inputs}
        for layer in range(32)
        for kind, inputs in (("gate", 4096), ("up", 4096), ("down", 14336))
    }
    card = {"settings": {"share": share}, "matrices": matrices}
    (folder / "probe.json").write_text(json.dumps(card))
    return folder


def test_an_8b_fits_by_default_and_its_needs_are_said(palorad: Palorad, config: Path) -> None:
    code, out = palorad("config", "check")
    assert code == 0, out
    needs = "5.7 GB on disk (5.7 GB while it is fitted)"
    assert needs in " ".join(out.split())
    _, out = palorad("doctor", "--json")
    found = json.loads(out)
    assert [f["well"] for f in found if needs in f["what"]] == [True]


def test_a_disk_that_is_too_small_for_the_probe_is_bad(
    palorad: Palorad, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 5 * 10**9

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    code, out = palorad("config", "check")
    assert code == 2
    assert "make room in" in out
    card_of(config, 0.2)
    code, out = palorad("config", "check")
    assert code == 0, out


def test_a_share_that_leaves_no_room_for_an_adapter_is_named(
    palorad: Palorad, config: Path
) -> None:
    code, out = palorad("config", "check", "--set", "protection.share=0.97")
    assert code == 2
    said = " ".join(out.split())
    assert "protection.share 0.97: gate_proj keeps 123 free directions of 4096" in said
    assert palorad("config", "check", "--set", "protection.share=0.96")[0] == 0


def test_a_fitted_probe_with_fewer_directions_is_named(palorad: Palorad, config: Path) -> None:
    folder = card_of(config, 0.2)
    card_of(config, 0.5, "another")
    code, out = palorad("config", "check", "--set", "protection.share=0.4")
    assert code == 2
    said = " ".join(out.split())
    assert str(folder) in said and "another" not in said
    assert "protection.share 0.4 asks for" in said
    assert palorad("config", "check")[0] == 0


def test_a_quantised_model_is_named_with_what_to_take_instead(
    palorad: Palorad, config: Path
) -> None:
    quantised = {**SHAPES["Llama 3.1 8B"], "quantization_config": {"quant_method": "fp8"}}
    (config.parent / "model" / "config.json").write_text(json.dumps(quantised))
    code, out = palorad("config", "check")
    assert code == 2
    said = " ".join(out.split())
    assert "its weights are quantised (fp8)" in said
    assert 'server.extra_args = ["--quantization", "fp8"]' in said


# --- the gate's suites ----------------------------------------------------------------------------


def suites(config: Path, *tables: dict[str, object]) -> None:
    """Give the gate these suites in place of none."""
    text = "".join(
        "[[gate.suites]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())
        for table in tables
    )
    config.write_text(config.read_text().replace("[gate]\nsuites = []\n", "") + text)


def rows(config: Path, name: str, count: int, answer: str = "answer {n}") -> str:
    path = config.parent / name
    lines = [{"prompt": f"Whose is {n}?", "answer": answer.format(n=n)} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def advice(palorad: Palorad, name: str) -> tuple[bool, str]:
    """What doctor says of one suite."""
    _, out = palorad("doctor", "--json")
    (found,) = [f for f in json.loads(out) if f"gate suite {name!r}" in f["what"]]
    return found["well"], found["advice"]


def test_suites_that_can_never_pass_or_hardly_fail_are_told_without_being_errors(
    palorad: Palorad, config: Path
) -> None:
    known = {"role": "locality", "grader": "contains"}
    suites(
        config,
        {"name": "few", "path": rows(config, "few.jsonl", 20), **known},
        {"name": "same", "path": rows(config, "same.jsonl", 300, "yes"), **known},
        {"name": "good", "path": rows(config, "good.jsonl", 300), **known},
        {"name": "text", "role": "drift", "path": "text.jsonl"},
    )
    (config.parent / "text.jsonl").write_text('{"text": "Rain fell."}\n')
    well, said = advice(palorad, "few")
    assert well
    assert "it can never pass: a margin of 5 pp takes at least" in said
    assert "100.0 % of its answers are 'yes'" in advice(palorad, "same")[1]
    assert advice(palorad, "good") == (True, "")
    assert "set gate.drift for a limit" in advice(palorad, "text")[1]
    code, out = palorad("config", "check")
    assert code == 0
    said = " ".join(out.split())
    assert "warning: gate suite 'few', 20 questions: it can never pass" in said
    assert "warning: no gate suite of the role 'reasoning': no candidate can pass" in said
    assert "gate suite 'good'" not in said


def test_a_suite_that_was_blind_is_told_with_the_grader_that_was_found(
    palorad: Palorad, config: Path
) -> None:
    suites(config, {"name": "known", "role": "locality", "path": rows(config, "k.jsonl", 300)})
    settings = Settings.load(config, {})
    (source,) = settings.gate.suites
    loaded, _ = open_suite(SuiteSource(**source.model_dump()), chat=False)
    card = SuiteCard(suite="known", grader="contains", because="so", blind="base has 0.0 % right")
    AnswerStore(settings.layout.answers).write_card("a" * 64, loaded.fingerprint, card)
    assert advice(palorad, "known") == (True, "it was blind: base has 0.0 % right")
    _, out = palorad("doctor", "--json")
    assert any("graded by 'contains' (so)" in found["what"] for found in json.loads(out))


def test_a_judge_model_must_be_named_and_should_not_judge_itself(
    palorad: Palorad, config: Path
) -> None:
    known = {"name": "known", "role": "locality", "path": rows(config, "k.jsonl", 300)}
    suites(config, {**known, "grader": "judge"})
    with pytest.raises(ConfigError, match=r"set gate\.judge\.url and gate\.judge\.model"):
        Settings.load(config, {})
    own = "http://127.0.0.1:8421"
    named = ("--set", "gate.judge.model=m", "--set", f"gate.judge.url={own}/v1")
    named += ("--set", f'server.urls=["{own}"]')
    code, out = palorad("config", "check", *named)
    assert code == 0, out
    assert "the server that is judged would grade itself" in " ".join(out.split())
