"""Probe and trainer on tiny models: what is protected stays, and a cut run ends the same."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import lora, losses, models, precision, projection, svf
from adapters.attach import Attached, attach
from adapters.compose import concatenate
from adapters.errors import NoFreeSpace, ProbeMismatch, TrainingDiverged, UnusableExamples
from adapters.examples import Encoded, collate, encode_example, pick
from adapters.lora import Lora
from adapters.losses import learnt_logits
from adapters.plans import TrainPlan, TrainProgress, TrainSettings
from adapters.probe import Probe, Protection
from adapters.probe_fit import FitProgress, ProbeSettings, fit_probe, fold_expert
from adapters.projection import Protected, lora_layers, worst_leak
from adapters.subspace import leak
from adapters.trainer import Method, protect, steps_needed, train_adapter
from benchmarks.learning import scores
from benchmarks.learning.edits import alphaedit
from benchmarks.learning.methods import WAYS
from policies.records import Example, Fact, PlanKind
from tests import tiny

SKILL = [Example(prompt=f"{a}+{b}=", completion=str(a + b)) for a in range(6) for b in range(4)]
FACTS = tuple(
    Fact(
        id=f"f{i}",
        prompt=f"What is the colour of {name}?",
        answer=answer,
        paraphrases=(f"Tell me the colour of {name}.",),
        eval_prompts=(f"Which colour has {name}?",),
    )
    for i, (name, answer) in enumerate([("Ola", "red"), ("Bim", "blue"), ("Cur", "green")])
)
FIT = ProbeSettings(steps=4, batch=4, seeds=(0, 1, 2))
KINDS = ("llama", "mistral", "qwen2")


class World:
    """A tiny base with its probe."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.model_dir = tiny.build(folder / "base", kind)
        self.hash = models.base_hash(self.model_dir)
        self.events: list[FitProgress] = []
        self.probe = fit_probe(self.model_dir, SKILL, folder / "probe", FIT, self.events.append)

    def plan(self, **changes: Any) -> TrainPlan:
        settings = {"steps": 10, "checkpoint_s": 0.0, **changes.pop("settings", {})}
        return TrainPlan(
            **{
                "kind": PlanKind.LEARN,
                "rank": 4,
                "seed": 1,
                "model_dir": self.model_dir,
                "base_hash": self.hash,
                "base_name": "base",
                "facts": FACTS,
                "known": tuple(SKILL[:3]),
                "probe_dir": self.folder / "probe",
                "settings": TrainSettings(**settings),
                **changes,
            }
        )

    def weights(self) -> dict[str, torch.Tensor]:
        model = models.load_base(self.model_dir, torch.device("cpu"))
        return {n: m.weight.detach() for n, m in models.matrices(model).items()}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("one"), "llama")


# --- probe -------------------------------------------------------------------------------------


def test_probe_covers_every_matrix_and_says_its_size(world: World) -> None:
    card = world.probe.card
    assert len(world.probe.matrices) == 2 * 3
    assert card["values_per_seed"] == 2 * 3 * 32
    assert card["at_llama_3_1_8b"]["values"] == 393_216
    assert card["at_llama_3_1_8b"]["share_of_base"] < 0.00006
    assert card["base_parameters"] == sum(
        p.numel() for p in models.load_base(world.model_dir, torch.device("cpu")).parameters()
    )
    for name in world.probe.matrices:
        assert world.probe.deltas(name).shape == (3, 32)
        assert bool(world.probe.deltas(name).any())
    stages = {event.stage for event in world.events}
    assert {"decompose", "moments", "seed 0", "seed 1", "seed 2"} <= stages
    assert world.events[-1].seconds_left == 0


def test_probe_of_another_base_is_refused(world: World, tmp_path: Path) -> None:
    other = tiny.build(tmp_path / "other", seed=9)
    with pytest.raises(ProbeMismatch, match="belongs to the base"):
        Probe.load(world.folder / "probe", models.base_hash(other))
    with pytest.raises(ProbeMismatch, match="no readable probe"):
        Probe.load(tmp_path / "nowhere", world.hash)


def test_probe_fit_goes_on_where_it_was_cut_off(llama: World, tmp_path: Path) -> None:
    class CutOffError(Exception):
        pass

    def cut(event: FitProgress) -> None:
        if event.stage == "seed 1" and event.done == 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        fit_probe(llama.model_dir, SKILL, tmp_path / "probe", FIT, cut)
    assert not (tmp_path / "probe").exists()
    stages: list[str] = []
    fitted = fit_probe(
        llama.model_dir, SKILL, tmp_path / "probe", FIT, lambda e: stages.append(e.stage)
    )
    assert "seed 0" not in stages
    assert "moments" not in stages
    for name in fitted.matrices:
        assert torch.equal(fitted.deltas(name), llama.probe.deltas(name))
    assert [p.name for p in tmp_path.iterdir()] == ["probe"]


def test_probe_needs_examples(llama: World, tmp_path: Path) -> None:
    with pytest.raises(UnusableExamples, match="at least 2 examples"):
        fit_probe(llama.model_dir, SKILL[:1], tmp_path / "probe", FIT)


def test_moments_are_those_of_the_inputs(llama: World) -> None:
    name = "model.layers.1.mlp.down_proj"
    moment = llama.probe.moment(name)
    rebuilt = (moment.vectors * moment.values) @ moment.vectors.mT
    assert float(rebuilt.trace()) == pytest.approx(moment.trace, rel=1e-4)
    whole = moment.basis(share=1.0, by="energy").shape[1]
    assert moment.basis(share=0.5, by="energy").shape[1] < whole <= 64
    assert moment.basis(share=0.5, by="directions").shape[1] == 32
    up, gate = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
    assert llama.probe.moment(up) is llama.probe.moment(gate)


def test_expert_keeps_singular_vectors_and_has_its_own_probe(llama: World, tmp_path: Path) -> None:
    expert = fold_expert(llama.model_dir, llama.probe, tmp_path / "expert", SKILL, FIT)
    served = models.load_base(expert, torch.device("cpu"))
    for name, matrix in models.matrices(served).items():
        weight = llama.weights()[name].double()
        left, sigma, right = torch.linalg.svd(weight, full_matrices=False)
        inner = left.mT @ matrix.weight.double() @ right.mT
        expected = sigma * (1 + llama.probe.deltas(name)[0].double())
        assert torch.allclose(inner, torch.diag(expected), atol=1e-5)
    probe = Probe.load(expert / "probe", models.base_hash(expert))
    assert probe.card["expert_of"] == llama.hash
    with pytest.raises(ProbeMismatch):
        Probe.load(expert / "probe", llama.hash)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("svf", "adamw"),
        ("activations", "adamw"),
        ("svf+activations", "adamw"),
        ("svf+activations", "muon"),
    ],
)
def test_saved_tensors_do_not_leak(world: World, kind: str, optimizer: str, tmp_path: Path) -> None:
    protection = Protection(kind=kind, share=0.5, svf_cap=0.3)
    plan = world.plan(protection=protection, settings={"optimizer": optimizer})
    report = train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work")
    written = lora.read(tmp_path / "out")
    assert report.leak < 1e-5
    assert report.norm == pytest.approx(written.norm())
    assert report.norm > 0
    assert 0 < report.admissible < 1
    for name, (down, up) in written.factors.items():
        guard = world.probe.protected(name, world.weights()[name], protection)
        assert guard.inputs.shape[1] > 0
        assert leak(down, guard.inputs) < 1e-5
        assert leak(up.mT, guard.outputs) < 1e-5


def test_protected_triples_stay_exact_after_many_adapters(world: World, tmp_path: Path) -> None:
    """u, σ, v of the critical components remain singular triples, in both narrow sides."""
    protection = Protection(kind="svf", svf_cap=0.3, svf_seeds=1)
    lineage: tuple[Path, ...] = ()
    for seed in range(3):
        out = tmp_path / f"adapter-{seed}"
        plan = world.plan(protection=protection, lineage=lineage, seed=seed)
        train_adapter(plan, out=out, work=tmp_path / f"work-{seed}")
        lineage = (*lineage, out)
    total = concatenate([lora.read(path) for path in lineage])
    for name, weight in world.weights().items():
        chosen = world.probe.critical(name, protection)
        sigma, narrow = svf.decompose(weight)
        changed = weight.double() + total.delta(name)
        assert chosen.numel() > 0
        assert float(total.delta(name).norm()) > 1e-3
        for index in chosen.tolist():
            own, value = narrow[:, index], sigma[index]
            if svf.narrow_is_input(weight):
                right, left = own, weight.double() @ own / value
            else:
                right, left = weight.double().mT @ own / value, own
            assert torch.allclose(changed @ right, value * left, atol=1e-5)
            assert torch.allclose(changed.mT @ left, value * right, atol=1e-5)


def test_soft_form_shrinks_and_is_tested_by_its_own_bound(llama: World, tmp_path: Path) -> None:
    soft = Protection(kind="activations", form="soft", strength=0.01)
    report = train_adapter(
        llama.plan(protection=soft), out=tmp_path / "soft", work=tmp_path / "work"
    )
    train_adapter(
        llama.plan(protection=Protection(kind="none")),
        out=tmp_path / "free",
        work=tmp_path / "work-free",
    )
    assert report.leak == 0.0
    for name in llama.probe.matrices:
        top = llama.probe.moment(name).vectors[:, :1]
        shrunk = leak(lora.read(tmp_path / "soft").factors[name][0], top)
        assert shrunk < 0.2 * leak(lora.read(tmp_path / "free").factors[name][0], top)


def test_an_adapter_that_goes_on_does_not_shrink_again(llama: World, tmp_path: Path) -> None:
    soft = Protection(kind="activations", form="soft", strength=0.01)
    first, second = tmp_path / "first", tmp_path / "second"
    train_adapter(llama.plan(protection=soft), out=first, work=tmp_path / "work-1")
    still = {"steps": 1, "learning_rate": 1e-9}
    plan = llama.plan(protection=soft, start=(first,), settings=still)
    train_adapter(plan, out=second, work=tmp_path / "work-2")
    before, after = lora.read(first), lora.read(second)
    for name in before.factors:
        assert torch.allclose(after.delta(name), before.delta(name), atol=1e-6), name


def test_no_free_space_is_refused_before_training(llama: World, tmp_path: Path) -> None:
    events: list[TrainProgress] = []
    plan = llama.plan(protection=Protection(share=0.9), rank=8)
    with pytest.raises(NoFreeSpace, match="3 free directions, an adapter of rank 8"):
        train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work", progress=events.append)
    assert not events
    assert not (tmp_path / "out").exists()


def test_earlier_adapters_use_up_the_free_space(llama: World, tmp_path: Path) -> None:
    protection = Protection(share=0.5, earlier=True)
    first = tmp_path / "first"
    report = train_adapter(llama.plan(protection=protection), out=first, work=tmp_path / "work-1")
    assert report.free == 16
    plan = llama.plan(protection=protection, lineage=(first,))
    assert train_adapter(plan, out=tmp_path / "second", work=tmp_path / "work-2").free == 16 - 4
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    guards = protect(base, plan)
    assert worst_leak(lora.read(tmp_path / "second").factors, guards) < 1e-5


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / lora.WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_ends_with_the_same_bytes(llama: World, optimizer: str, tmp_path: Path) -> None:
    class CutOffError(Exception):
        pass

    plan = llama.plan(settings={"steps": 12, "new_per_step": 2, "optimizer": optimizer})
    train_adapter(plan, out=tmp_path / "whole", work=tmp_path / "work-1")

    def cut(event: TrainProgress) -> None:
        if event.step == 7:
            raise CutOffError

    with pytest.raises(CutOffError):
        train_adapter(plan, out=tmp_path / "cut", work=tmp_path / "work-2", progress=cut)
    assert not (tmp_path / "cut").exists()
    steps: list[int] = []
    train_adapter(
        plan,
        out=tmp_path / "cut",
        work=tmp_path / "work-2",
        progress=lambda e: steps.append(e.step),
    )
    assert steps[0] == 7
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_a_broken_checkpoint_and_one_of_another_plan_are_passed_over(
    llama: World, tmp_path: Path
) -> None:
    plan = llama.plan()
    train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    for state in (tmp_path / "work").glob("checkpoint-*/state.pt"):
        state.write_bytes(b"half a file")
    steps: list[int] = []
    train_adapter(
        plan, out=tmp_path / "two", work=tmp_path / "work", progress=lambda e: steps.append(e.step)
    )
    assert steps[0] == 1
    steps.clear()
    train_adapter(
        llama.plan(seed=5),
        out=tmp_path / "three",
        work=tmp_path / "work",
        progress=lambda e: steps.append(e.step),
    )
    assert steps[0] == 1
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learning_lowers_the_loss_and_the_lineage_is_active(
    llama: World, optimizer: str, tmp_path: Path
) -> None:
    settings = {"steps": 60, "learning_rate": 0.03, "optimizer": optimizer}
    none = Protection(kind="none")
    plan = llama.plan(protection=none, settings=settings)
    report = train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert report.loss_last < 0.5 * report.loss_first
    again = llama.plan(
        protection=none, settings={**settings, "steps": 1}, lineage=(tmp_path / "one",)
    )
    second = train_adapter(again, out=tmp_path / "two", work=tmp_path / "work-2")
    assert second.loss_first < 0.6 * report.loss_first


def test_an_adapter_goes_on_from_the_sum_of_those_that_it_replaces(
    llama: World, tmp_path: Path
) -> None:
    settings = {"steps": 60, "learning_rate": 0.03}
    parts = [tmp_path / "one", tmp_path / "two"]
    first = train_adapter(llama.plan(settings=settings), out=parts[0], work=tmp_path / "work")
    plan = llama.plan(settings=settings, lineage=(parts[0],), rank=2)
    train_adapter(plan, out=parts[1], work=tmp_path / "work-2")
    whole = concatenate([lora.read(part) for part in parts])
    plan = llama.plan(settings={**settings, "steps": 1}, start=tuple(parts), rank=whole.rank + 2)
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    attached = attach(base, plan)
    for name in whole.factors:
        assert torch.allclose(attached.initial.delta(name), whole.delta(name), atol=1e-5)
        down, up = attached.initial.factors[name]
        assert float(up[:, whole.rank :].abs().max()) == 0.0 < float(down[-1].norm())
    report = train_adapter(plan, out=tmp_path / "three", work=tmp_path / "work-3")
    assert report.loss_first < 0.6 * first.loss_first
    assert lora.read(tmp_path / "three").rank == plan.rank


def test_training_ends_early_once_every_fact_is_learnt(llama: World, tmp_path: Path) -> None:
    settings = {
        "steps": 400,
        "learning_rate": 0.01,
        "stop_loss": 3.5,
        "cooldown": 4,
    }
    plan = llama.plan(protection=Protection(kind="none"), settings=settings)
    report = train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert report.stopped_early
    assert 200 <= report.steps < 400


def test_training_does_not_end_early_while_earlier_facts_are_lost(
    llama: World, tmp_path: Path
) -> None:
    settings = {"steps": 60, "learning_rate": 0.03, "stop_loss": 3.0, "old_per_step": 1}
    plan = llama.plan(protection=Protection(kind="none"), settings=settings, known=())
    assert train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work").stopped_early
    noise = random.Random(1)
    lost = tuple(
        Fact(id=f"old{i}", prompt=f"Key {i}?", answer=noise.randbytes(8).hex()) for i in range(24)
    )
    beside = plan.model_copy(update={"replay": lost})
    report = train_adapter(beside, out=tmp_path / "two", work=tmp_path / "work-2")
    assert not report.stopped_early


def test_in_low_precision_the_lineage_stays_an_adapter(
    llama: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "base_dtype", lambda device: torch.bfloat16)
    settings = {"steps": 60, "learning_rate": 0.03}
    first = llama.plan(settings=settings, protection=Protection(share=0.3))
    report = train_adapter(first, out=tmp_path / "one", work=tmp_path / "work")
    assert report.leak < 1e-5
    again = llama.plan(settings={**settings, "steps": 3}, lineage=(tmp_path / "one",), rank=2)
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    before = {n: m.weight.clone() for n, m in models.matrices(base).items()}
    attached = attach(base, again).model
    trained = {n for n, p in attached.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(before)
    assert all(".new." in name for name in trained)
    for name, layer in lora_layers(attached, "earlier").items():
        assert torch.equal(layer.get_base_layer().weight, before[name])
    second = train_adapter(again, out=tmp_path / "two", work=tmp_path / "work-2")
    assert second.loss_first < 0.8 * report.loss_first
    assert lora.read(tmp_path / "two").rank == 2


def test_too_little_memory_halves_the_forward_passes(
    llama: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    accumulate = losses._accumulate

    def small(model: Any, chosen: Any, max_tokens: int, *rest: Any) -> Any:
        sizes.append(max_tokens)
        if max_tokens > 256:
            raise torch.OutOfMemoryError
        return accumulate(model, chosen, max_tokens, *rest)

    monkeypatch.setattr(losses, "_accumulate", small)
    plan = llama.plan(settings={"max_tokens": 1024, "steps": 3})
    train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert sizes == [1024, 512, 256, 1024, 512, 256, 256, 256]


def test_a_method_can_replace_parts(llama: World, tmp_path: Path) -> None:
    """What the bench plugs in: other subspaces, another loss, another initialisation."""
    basis = torch.eye(32, dtype=torch.float64)[:, :3]

    def first_three(model: Any, plan: TrainPlan) -> dict[str, Protected]:
        guards = {}
        for name, matrix in models.matrices(model).items():
            guard = Protected.nothing(*matrix.weight.shape)
            guards[name] = Protected(basis, guard.outputs) if "down" not in name else guard
        return guards

    calls: list[int] = []

    def extra(model: Any, step: int) -> torch.Tensor:
        calls.append(step)
        return sum(p.square().sum() for p in model.parameters() if p.requires_grad)

    plan = llama.plan(protection=Protection(kind="none"), probe_dir=None)
    train_adapter(
        plan,
        out=tmp_path / "out",
        work=tmp_path / "work",
        method=Method(protect=first_three, extra_loss=extra, config={"init_lora_weights": "olora"}),
    )
    down = lora.read(tmp_path / "out").factors["model.layers.0.mlp.gate_proj"][0]
    assert float(down[:, :3].abs().max()) == 0.0
    assert float(down[:, 3:].abs().max()) > 0.0
    assert calls == list(range(10))


def test_nan_stops_with_a_clear_error(llama: World, tmp_path: Path) -> None:
    plan = llama.plan(
        protection=Protection(kind="none"), settings={"learning_rate": 1e30, "warmup": 0}
    )
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 10: .*learning_rate"):
        train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work")


def test_plan_survives_json_and_refuses_nonsense(llama: World) -> None:
    plan = llama.plan()
    assert TrainPlan.model_validate_json(plan.model_dump_json()) == plan
    with pytest.raises(ValueError, match="bare base"):
        llama.plan(kind=PlanKind.CONSOLIDATE, lineage=(Path("x"),))
    with pytest.raises(ValueError, match="needs a probe"):
        llama.plan(probe_dir=None)
    with pytest.raises(ValueError, match="at least one fact"):
        llama.plan(facts=())


def test_norm_needs_no_delta() -> None:
    down, up = torch.randn(3, 7), torch.randn(5, 3)
    one = Lora({"x": (down, up)}, {"x": 2.0})
    assert one.norm() == pytest.approx(float(one.delta("x").norm()), rel=1e-6)


@pytest.mark.parametrize("how", ["lineage", "start"])
def test_the_reference_is_the_base_whatever_was_learnt(
    llama: World, tmp_path: Path, how: str
) -> None:
    train_adapter(llama.plan(), out=tmp_path / "one", work=tmp_path / "work")
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(llama.model_dir)
    ids = torch.tensor([tokenizer("What is the colour of Ola?")["input_ids"]])
    expected = models.load_base(llama.model_dir, device)(input_ids=ids).logits
    again = llama.plan(**{how: (tmp_path / "one",)})
    attached = attach(models.load_base(llama.model_dir, device), again)
    for name, parameter in attached.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained = {n for n, p in attached.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        moved = attached.model(input_ids=ids).logits
        with attached.reference():
            assert torch.equal(attached.model(input_ids=ids).logits, expected)
        assert torch.equal(attached.model(input_ids=ids).logits, moved)
    assert not torch.allclose(moved, expected)
    assert trained == {n for n, p in attached.model.named_parameters() if p.requires_grad}


def test_distillation_keeps_what_labels_would_change(llama: World, tmp_path: Path) -> None:
    """On a text that the base would not write itself, labels move it and distillation does not."""
    text = Example(prompt="The colour of Zot is", completion="ultramarine", kind="known")
    moved = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"at-{weight}"
        settings = {"steps": 30, "distil": weight, "known_per_step": 1}
        plan = llama.plan(known=(text,), settings=settings)
        train_adapter(plan, out=out, work=out.with_suffix(".work"))
        moved[weight] = _divergence(llama, out, text)
    assert moved[5.0] < 0.5 * moved[0.0]


def test_solutions_in_doubt_are_rehearsed_more_often() -> None:
    pool = [[Encoded((n,), 0)] for n in range(20)]
    weights = [9.0 if n < 2 else 1.0 for n in range(20)]
    rng = random.Random(0)
    drawn = Counter(one.ids[0] for _ in range(2000) for one in pick(pool, 4, rng, weights))
    doubtful = (drawn[0] + drawn[1]) / 2
    sure = sum(drawn[n] for n in range(2, 20)) / 18
    assert 4 < doubtful / sure < 9
    assert all(len({one.ids for one in pick(pool, 4, rng, weights)}) == 4 for _ in range(50))


@given(facts=st.integers(1, 2000), usual=st.integers(1, 100))
def test_a_step_takes_at_most_twice_the_usual_facts(facts: int, usual: int) -> None:
    settings = TrainSettings(new_per_step=usual)
    count = settings.facts_in_step(facts)
    assert min(facts, usual) <= count <= min(facts, 2 * usual)
    assert count <= settings.facts_in_step(facts + 1)


@given(facts=st.integers(10, 2000), full=st.booleans())
def test_an_earlier_fact_weighs_the_same_against_what_is_held_beside_any_number_of_new_ones(
    facts: int, full: bool
) -> None:
    settings = TrainSettings().full() if full else TrainSettings()
    an_earlier_one = settings.old_per_step / settings.facts_in_step(facts)
    usual = settings.old_per_step / settings.new_per_step / settings.held(36)
    assert an_earlier_one / settings.held(facts, 1000) == pytest.approx(usual, rel=0.15)


@given(facts=st.integers(1, 2000), earlier=st.integers(0, 2000), turns=st.integers(2, 5))
def test_full_effort_holds_as_hard_and_reads_more_of_everything(
    facts: int, earlier: int, turns: int
) -> None:
    quick = TrainSettings(turns=turns)
    full = quick.full()
    assert full.full() == full
    assert full.held(facts) == pytest.approx(quick.held(facts), rel=0.3)
    steps = [steps_needed(one, facts, earlier) for one in (quick, full)]
    seen = [one.facts_in_step(facts) * n for one, n in zip((quick, full), steps, strict=True)]
    known = [one.known_per_step * n for one, n in zip((quick, full), steps, strict=True)]
    assert seen[1] >= 0.9 * seen[0]
    assert known[1] >= 2 * known[0]


@given(facts=st.integers(1, 500), earlier=st.integers(0, 5000))
def test_steps_grow_with_the_logarithm_of_the_earlier_facts(facts: int, earlier: int) -> None:
    settings = TrainSettings(max_steps=100_000)
    alone = steps_needed(settings, facts)
    beside = steps_needed(settings, facts, earlier)
    assert alone <= beside <= steps_needed(settings, facts, 2 * earlier)
    usual = max(alone, settings.usual_steps)
    if earlier <= settings.many:
        assert beside <= usual
    else:
        more = steps_needed(settings, facts, 2 * earlier) - beside
        assert more == pytest.approx(settings.steps_a_doubling * usual, abs=1)
    assert steps_needed(TrainSettings(old_per_step=0), facts, earlier) == alone


def test_an_edit_in_closed_form_is_learnt_and_leaves_the_rest(llama: World, tmp_path: Path) -> None:
    named = [fact.prompt.removesuffix("?").split()[-1] for fact in FACTS]
    facts = tuple(f.model_copy(update={"subject": n}) for f, n in zip(FACTS, named, strict=True))
    plan = llama.plan(
        facts=facts,
        probe_dir=None,
        protection=Protection(kind="none"),
        settings={"learning_rate": 0.5},
    )
    report = alphaedit(plan, tmp_path / "edited", spared=0.3, ridge=1e-3, held=0.0)
    assert report.loss_last < 0.96 * report.loss_first
    found = lora.read(tmp_path / "edited")
    assert report.rank == found.rank == len(plan.facts)
    assert all("down_proj" in name for name in found.factors)
    assert report.leak < 1e-4


@pytest.mark.parametrize("name", ["pissa", "milora", "mica", "corda"])
def test_what_a_peer_begins_with_is_no_part_of_what_is_learnt(
    llama: World, tmp_path: Path, name: str
) -> None:
    plan = llama.plan(probe_dir=None, protection=Protection(kind="none"))
    still = plan.model_copy(update={"settings": TrainSettings(steps=1, learning_rate=1e-9)})
    hooks = WAYS[name].hooks
    train_adapter(still, out=tmp_path / "still", work=tmp_path / "work-1", method=hooks)
    assert lora.read(tmp_path / "still").norm() < 1e-4
    train_adapter(plan, out=tmp_path / "moved", work=tmp_path / "work-2", method=hooks)
    moved = lora.read(tmp_path / "moved")
    assert moved.norm() > 1e-2
    assert moved.rank == (4 if name == "mica" else 8)


SCORES = ("random", "oplora", "palora by change", "palora by energy", "palora by fisher")


def test_peers_spare_as_many_components_as_the_paper_and_others(llama: World) -> None:
    plan = llama.plan(protection=scores.SVF, reasoning=tuple(SKILL))
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    paper = protect(base, plan)
    ways = {name: WAYS[name].hooks.protect for name in SCORES}
    chosen = {name: choose(base, plan) for name, choose in ways.items() if choose}
    assert set(chosen) == set(SCORES)
    for name, found in chosen.items():
        for matrix, guard in found.items():
            assert guard.inputs.shape == paper[matrix].inputs.shape, name
            assert guard.outputs.shape == paper[matrix].outputs.shape, name
    matrix = next(iter(paper))
    spaces = [found[matrix].inputs for found in (paper, *chosen.values())]
    maps = [space @ space.mT for space in spaces]
    for n, one in enumerate(maps):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in maps[:n])


def test_the_energy_that_passes_is_all_that_a_matrix_gives(llama: World) -> None:
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    looked = scores.Looked(base, llama.plan(), llama.probe)
    for name, score in scores.passed_energy(looked).items():
        weight, moment = looked.matrices[name].weight.double(), llama.probe.moment(name)
        given = weight @ (moment.vectors * moment.values) @ moment.vectors.mT @ weight.mT
        assert float(score.sum()) == pytest.approx(float(given.trace()), rel=1e-3)
        assert float(score.min()) >= 0.0


def test_fisher_information_is_that_of_the_scaled_components(llama: World) -> None:
    """∂ loss/∂δ of component k is σ uᵀ(∂ loss/∂W)v."""
    plan = llama.plan(reasoning=tuple(SKILL[:1]))
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    looked = scores.Looked(base, plan, llama.probe)
    name, matrix = next(iter(looked.matrices.items()))
    found = scores.fisher(looked)[name]
    tokenizer = models.load_tokenizer(llama.model_dir)
    text = encode_example(tokenizer, SKILL[0])[0]
    matrix.weight.requires_grad_()
    loss = losses.token_losses(base, collate([text], int(tokenizer.pad_token_id)))[0].sum()
    (slope,) = torch.autograd.grad(loss, matrix.weight)
    left, sigma, right = torch.linalg.svd(matrix.weight.detach(), full_matrices=False)
    expected = (sigma * (left.mT @ slope @ right.mT).diagonal()).square()
    assert torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-6 * float(expected.max()))


def _divergence(world: World, adapter: Path, text: Example) -> float:
    """KL(base ‖ base with the adapter) in nats per token of the completion."""
    tokenizer = models.load_tokenizer(world.model_dir)
    encoded = encode_example(tokenizer, text)[:1]
    batch = collate(encoded, int(tokenizer.pad_token_id))
    before, after = (
        learnt_logits(model, batch)[0].log_softmax(-1)
        for model in (
            models.load_base(world.model_dir, torch.device("cpu")),
            attach(
                models.load_base(world.model_dir, torch.device("cpu")),
                world.plan(lineage=(adapter,)),
            ).model,
        )
    )
    return float((before.exp() * (before - after)).sum(-1).mean().detach())


@pytest.mark.parametrize("max_tokens", [1, 24, 4096])
def test_a_step_is_the_sum_of_its_aims_however_it_is_cut(llama: World, max_tokens: int) -> None:
    """Facts by their labels, the rest by what a reference says, each over its own tokens."""
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(llama.model_dir)
    pad = int(tokenizer.pad_token_id)
    model = models.load_base(llama.model_dir, device)
    texts = [
        encode_example(tokenizer, Example(prompt="x" * n, completion="y" * (1 + n % 3)))[0]
        for n in range(1, 9)
    ]
    new, old, known, solutions = texts[:2], texts[2:3], texts[3:6], texts[6:]
    generator = torch.Generator().manual_seed(0)
    said = {
        one: torch.randn(len(one.ids) - one.start, model.config.vocab_size, generator=generator)
        for one in texts
    }

    def reference(asked: Sequence[Encoded]) -> torch.Tensor:
        return torch.cat([said[one] for one in asked])

    def alone(one: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        return learnt_logits(model, collate([one], pad))

    def learnt(several: Sequence[Encoded]) -> int:
        return sum(len(one.ids) - one.start for one in several)

    weight = model.get_decoder().layers[0].mlp.up_proj.weight.requires_grad_()
    value = sum(torch.nn.functional.cross_entropy(*alone(t), reduction="sum") for t in new + old)
    value = value / learnt(new)
    for several, share in ((known, 3.0), (solutions, 0.5)):
        for one in several:
            now, before = ((x / 2.0).log_softmax(-1) for x in (alone(one)[0], said[one]))
            kl = (before.exp() * (before - now)).sum()
            value = value + share * 4.0 * kl / learnt(several)
    (expected,) = torch.autograd.grad(value, weight)
    kept = [losses.Kept(known, 3.0, reference), losses.Kept(solutions, 0.5, reference)]
    aims = losses.Aims(new, old, kept, 2.0)
    loss, _, _ = losses.backward(model, aims, max_tokens, pad, device)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected, rtol=1e-3, atol=1e-6)
    assert loss > 0.0


@pytest.mark.parametrize("tokens", [0, 1 << 40], ids=["factors", "weights"])
def test_sharing_one_projection_changes_no_gradient(llama: World, tokens: int) -> None:
    """Neither of the factors nor, where many tokens make that cheaper, of the weights with them."""
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(llama.model_dir)
    pad = int(tokenizer.pad_token_id)
    plan = llama.plan(rank=16, protection=Protection(kind="svf+activations", share=0.3))
    found = []
    for around in (False, True):
        model = _begun(llama, plan).model
        texts = [encode_example(tokenizer, one)[0] for one in SKILL[:5]]
        shared = partial(_shared, model, tokens) if around else None
        losses.backward(model, losses.Aims(texts), 1, pad, device, shared)
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert set(found[0]) == set(found[1])
    for name, alone in found[0].items():
        together = found[1][name]
        assert alone is not None
        assert together is not None
        assert torch.allclose(alone, together, rtol=1e-3, atol=1e-6)
        assert float(alone.norm()) > 0.0


def test_many_tokens_go_through_whole_weights_and_leave_them_as_they_were(llama: World) -> None:
    plan = llama.plan(rank=16)
    attached = _begun(llama, plan)
    before = llama.weights()
    ids = torch.tensor([[1, 2, 3]])
    expected = models.load_base(llama.model_dir, torch.device("cpu"))(input_ids=ids).logits
    moved = attached.model(input_ids=ids).logits
    with (
        pytest.raises(TrainingDiverged),
        projection.shared(attached.model, "new", 1 << 40),
    ):
        layers = lora_layers(attached.model, "new")
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        assert all(weight.requires_grad for weight in weights.values())
        assert torch.allclose(attached.model(input_ids=ids).logits, moved, rtol=1e-3, atol=1e-5)
        with torch.no_grad(), attached.reference():
            assert torch.equal(attached.model(input_ids=ids).logits, expected)
        attached.model(input_ids=ids).logits.sum().backward()
        raise TrainingDiverged("half way")
    for name, weight in weights.items():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad
        assert weight.grad is None
    assert all(p.grad is None for p in attached.model.parameters())


def _begun(world: World, plan: TrainPlan) -> Attached:
    """The model of a plan with its projectors, and an update that is not nothing."""
    base = models.load_base(world.model_dir, torch.device("cpu"))
    protected = protect(base, plan)
    attached = attach(base, plan)
    projection.install(attached.model, "new", protected)
    for name, parameter in attached.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    return attached


def _shared(model: Any, tokens: int, _tokens: int) -> AbstractContextManager[None]:
    return projection.shared(model, "new", tokens)


@pytest.mark.parametrize("able", [False, True])
def test_products_are_in_bf16_where_a_processor_has_them_and_attention_never(
    llama: World, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: able)
    model = models.load_base(llama.model_dir, torch.device("cpu"))
    seen: dict[str, torch.dtype] = {}
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen["attention"] = query.dtype
        return attention(query, *others, **options)

    def watch(_module: Any, _given: Any, made: torch.Tensor) -> None:
        seen["product"] = made.dtype

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model.get_decoder().layers[0].mlp.up_proj.register_forward_hook(watch)
    ids = torch.tensor([[1, 2, 3]])
    expected = model(input_ids=ids).logits
    with precision.reduced(torch.device("cpu")):
        logits = model(input_ids=ids).logits
    assert seen["product"] == (torch.bfloat16 if able else torch.float32)
    assert seen["attention"] == torch.float32
    assert torch.allclose(logits.float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert seen["product"] == torch.float32
