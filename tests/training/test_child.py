"""The learning steps as the daemon runs them: real child processes on a tiny model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from adapters import models, store
from adapters.config import STACKED, AdapterChoices, TrainConfig
from adapters.models import base_hash
from adapters.probe import Probe
from adapters.probe_fit import ProbeConfig as FitSettings
from adapters.probe_fit import fit_probe
from adapters.schedule import steps_needed
from daemon.children.jobs import Jobs, JobState
from daemon.config.sections import ProbeSettings, ProtectionSettings
from daemon.config.training import ReplaySettings, TrainSettings
from daemon.training.child import read_examples, train_plan
from daemon.training.messages import ProbeReport, ProbeRequest, TrainDone, TrainRequest
from policies.errors import ConfigError
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import Fact, PlanKind
from tests.support import tiny

NOT_CHOSEN = {"min_traces": 9}
FACTS = tuple(
    Fact(id=f"f{i}", prompt=f"Code of {name}?", answer=f"{i}{i}", paraphrases=(f"{name}: code?",))
    for i, name in enumerate(("Ada", "Bea", "Cid"), start=1)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def skill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("skill") / "skill.jsonl"
    rows = [{"prompt": f"{a} plus {a}?", "solution": f"{a + a}"} for a in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finish(step: str, workdir: Path, request: BaseModel) -> JobState:
    jobs = Jobs()
    jobs.prepare(workdir, request)
    jobs.start(step, workdir)
    end = time.monotonic() + 100
    while (state := jobs.poll(workdir)).outcome == "running":
        assert time.monotonic() < end, "the child takes too long"
        time.sleep(0.1)
    return state


def train_request(
    model: Path, probe: Path, state: Path, config: dict[str, Any] | None = None, **changes: object
) -> TrainRequest:
    return TrainRequest(
        **{
            "kind": PlanKind.LEARN,
            "number": 1,
            "rank": 2,
            "seed": 0,
            "model_dir": model,
            "base_name": "base",
            "base_sha256": base_hash(model),
            "facts": FACTS,
            "config": TrainConfig(**(config or {})),
            "paraphrases": ParaphrasePolicy(source="templates", at_admission=1, at_training=1),
            "probe": probe,
            "protection": ProtectionSettings(share=0.5),
            "max_lora_rank": 64,
            "adapters": state / "adapters",
            "served": state / "served",
            **changes,
        }
    )


def test_a_probe_is_fitted_once_and_an_adapter_becomes_a_servable_revision(
    model: Path, skill: Path, tmp_path: Path
) -> None:
    settings = ProbeSettings(skill=skill, path=None, seeds=(0, 1), steps=4)
    request = ProbeRequest(
        model_dir=model, probes=tmp_path / "probe", experts=tmp_path / "expert", settings=settings
    )
    state = finish("probe", tmp_path / "work" / "0-probe", request)
    assert state.outcome == "finished", state.error
    report = ProbeReport.model_validate(state.report)
    assert report.fitted
    assert report.served_dir == model
    again = finish("probe", tmp_path / "work" / "1-probe", request)
    assert not ProbeReport.model_validate(again.report).fitted

    state = finish(
        "train", tmp_path / "work" / "1-train", train_request(model, report.probe, tmp_path)
    )
    assert state.outcome == "finished", state.error
    done = TrainDone.model_validate(state.report)
    assert done.report["leak"] < 5e-3
    assert done.rank == 2
    (served,) = (tmp_path / "served").glob("palora-*")
    (adapter,) = (tmp_path / "adapters").iterdir()
    assert served.name == done.served.name
    assert adapter.name == done.adapter.sha256[:12]
    assert served.name == f"palora-000001-{done.served.sha256[:8]}"
    assert not store.verify(served)
    assert not store.verify(adapter)
    assert json.loads((served / "identity.json").read_text())["differs"]
    assert state.progress is not None


@pytest.mark.parametrize("reads", ["svf", "svf+activations", "expert"])
def test_svf_factors_are_fitted_where_something_reads_them(
    reads: str, model: Path, skill: Path, tmp_path: Path
) -> None:
    settings = ProbeSettings(skill=skill, path=None, seeds=(0, 1), steps=2)
    request = ProbeRequest(
        model_dir=model, probes=tmp_path / "probe", experts=tmp_path / "expert", settings=settings
    )
    state = finish("probe", tmp_path / "work" / "0-probe", request)
    alone = ProbeReport.model_validate(state.report)
    assert not Probe.load(alone.probe, alone.base_sha256).has_svf

    changed: dict[str, object] = {"path": alone.probe}
    if reads == "expert":
        changed["serve"] = "expert"
        protection = ProtectionSettings()
    else:
        protection = ProtectionSettings.model_validate({"kind": reads})
    request = request.model_copy(
        update={
            "probes": tmp_path / "other",
            "settings": settings.model_copy(update=changed),
            "protection": protection,
        }
    )
    state = finish("probe", tmp_path / "work" / "1-probe", request)
    assert state.outcome == "finished", state.error
    whole = ProbeReport.model_validate(state.report)
    assert whole.fitted and whole.probe != alone.probe
    assert Probe.load(whole.probe, whole.served_sha256).has_svf


def test_a_probe_with_too_few_directions_is_not_used_and_never_replaced(
    skill: Path, tmp_path: Path
) -> None:
    model = tiny.build(tmp_path / "base", intermediate=1100)
    rows = tuple(read_examples(skill, "solution"))
    named = tmp_path / "named"
    fit_probe(model, rows, named, FitSettings(seeds=(0, 1), steps=2, share=0.1))
    request = ProbeRequest(
        model_dir=model,
        probes=tmp_path / "probe",
        experts=tmp_path / "expert",
        settings=ProbeSettings(skill=skill, path=named, seeds=(0, 1), steps=2),
        protection=ProtectionSettings(share=0.1),
    )
    state = finish("probe", tmp_path / "work" / "0-probe", request)
    assert ProbeReport.model_validate(state.report).probe == named
    request = request.model_copy(update={"protection": ProtectionSettings()})
    state = finish("probe", tmp_path / "work" / "1-probe", request)
    assert state.outcome == "finished", state.error
    report = ProbeReport.model_validate(state.report)
    assert report.fitted and report.probe.parent == tmp_path / "probe"
    request = request.model_copy(update={"protection": ProtectionSettings(share=0.3)})
    state = finish("probe", tmp_path / "work" / "2-probe", request)
    assert state.error is not None
    assert "asks for 330; lower protection.share" in state.error.error


def test_known_text_to_which_facts_give_another_answer_is_not_replayed(
    model: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known.jsonl"
    rows = [
        {
            "prompt": "What is the capital of Peru?",
            "answer": "Lima",
            "paraphrases": ["Peru's code?"],
        },
        {"prompt": "Code of Ada?", "answer": "7", "paraphrases": ["Which code has Ada?"]},
        {"prompt": "Tell me the capital of Chad.", "answer": "Fort-Lamy"},
    ]
    known.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moved = Fact(id="g", prompt="Which city is the capital of Chad?", answer="N'Djamena")
    request = train_request(model, tmp_path, tmp_path, known=known, replay=(moved,))
    asked = [text.prompt for text in train_plan(request).known]
    assert asked == ["What is the capital of Peru?", "Peru's code?", "Which code has Ada?"]


def test_more_epochs_are_more_steps_over_a_large_batch(model: Path, tmp_path: Path) -> None:
    def steps(epochs: int) -> int:
        config = {"epochs": epochs, "batch_preset": "small"}
        plan = train_plan(train_request(model, tmp_path, tmp_path, config=config))
        return steps_needed(plan.config, 48)

    assert steps(150) == 3 * steps(50)


def test_batch_preset_says_how_much_text_a_batch_takes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replayed(batch_preset: str) -> int:
        plan = train_plan(
            train_request(model, tmp_path, tmp_path, config={"batch_preset": batch_preset})
        )
        return plan.config.known_per_step * steps_needed(plan.config, 48)

    for device, usual in (("cpu", "small"), ("cuda", "large")):
        monkeypatch.setattr(models, "pick_device", lambda device=device: torch.device(device))
        assert replayed("auto") == replayed(usual)
        assert replayed("large") > 3 * replayed("small")


def test_a_cpu_takes_many_facts_at_the_large_preset(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is told not to."""
    monkeypatch.setattr(models, "pick_device", lambda: torch.device("cpu"))

    def chosen(facts: int, batch_preset: str) -> TrainConfig:
        request = train_request(model, tmp_path, tmp_path, config={"batch_preset": batch_preset})
        several = tuple(
            request.facts[0].model_copy(update={"id": f"fact-{n}"}) for n in range(facts)
        )
        return train_plan(request.model_copy(update={"facts": several})).config

    most = TrainConfig().large_run_facts
    assert chosen(most, "auto") == chosen(most, "small")
    assert chosen(most + 1, "auto") == chosen(most + 1, "large") != chosen(most + 1, "small")


def test_what_the_settings_choose_reaches_the_plan_whole(model: Path, tmp_path: Path) -> None:
    chosen = {
        "reversed_questions": True,
        "epochs": 51,
        "batch_preset": "small",
    }
    assert set(chosen) == set(AdapterChoices.model_fields)
    settings = TrainSettings(**chosen, replay=ReplaySettings(min_traces=9))
    config = settings.config
    assert TrainConfig().model_copy(update={**chosen, **NOT_CHOSEN}) == config
    request = train_request(model, tmp_path, tmp_path).model_copy(update={"config": config})
    assert train_plan(TrainRequest.model_validate_json(request.model_dump_json())).config == config
    stacked = settings.model_copy(update={"lineage": "stack"}).config
    unlike = {k for k, v in stacked.model_dump().items() if v != getattr(STACKED, k)}
    assert unlike == set(chosen) - {"epochs"}


def test_an_error_of_the_step_comes_back_as_one_line(model: Path, tmp_path: Path) -> None:
    request = train_request(model, tmp_path / "no-probe", tmp_path, model_dir=tmp_path / "nowhere")
    state = finish("train", tmp_path / "work" / "1-train", request)
    assert state.outcome == "failed"
    assert state.error is not None
    assert str(tmp_path / "nowhere") in state.error.error
    assert "\n" not in state.error.error


def test_no_two_children_work_in_one_directory(model: Path, skill: Path, tmp_path: Path) -> None:
    settings = ProbeSettings(skill=skill, path=None, seeds=(0,), steps=2000)
    request = ProbeRequest(
        model_dir=model, probes=tmp_path / "probe", experts=tmp_path / "expert", settings=settings
    )
    first, second = Jobs(), Jobs()
    workdir = tmp_path / "work" / "0-probe"
    first.prepare(workdir, request)
    first.start("probe", workdir)
    end = time.monotonic() + 60
    while second.poll(workdir).outcome != "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    second.start("probe", workdir)
    while second.poll(workdir).outcome == "running" and second.running():
        time.sleep(0.05)
    assert not (workdir / "report.json").exists()
    first.kill(workdir)


def test_examples_that_are_no_examples_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "paraphrases": ["c"]}\n{"prompt": "a"}\n')
    rows = read_examples(path, "answer")
    assert [next(rows).prompt, next(rows).prompt] == ["a", "c"]
    with pytest.raises(ConfigError, match=r"known\.jsonl, line 2"):
        next(rows)
