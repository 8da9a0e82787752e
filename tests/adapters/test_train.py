"""The trainer on tiny models: what is protected stays, and a cut run ends the same."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as drawing
from hypothesis import strategies as st

from adapters import lora, losses, models, svf
from adapters.attach import attach
from adapters.compose import concatenate
from adapters.errors import NoFreeSpace, TrainingDiverged
from adapters.examples import Encoded, collate, encode_example, pick
from adapters.lora import Lora
from adapters.losses import learnt_logits
from adapters.plans import TrainPlan, TrainProgress, TrainSettings
from adapters.probe import Protection
from adapters.projection import Protected, lora_layers, worst_leak
from adapters.subspace import leak
from adapters.trainer import Hooks, protect, steps_needed, train_adapter
from policies.lineage import outgrown
from policies.records import Example, Fact, PlanKind
from tests.support.fitted import Fitted


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("svf", "adamw"),
        ("activations", "adamw"),
        ("svf+activations", "adamw"),
        ("svf+activations", "muon"),
    ],
)
def test_saved_tensors_do_not_leak(
    fitted: Fitted, kind: str, optimizer: str, tmp_path: Path
) -> None:
    protection = Protection(kind=kind, share=0.5, svf_cap=0.3)
    plan = fitted.plan(protection=protection, settings={"optimizer": optimizer})
    report = train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work")
    written = lora.read(tmp_path / "out")
    assert report.leak < 1e-5
    assert report.norm == pytest.approx(written.norm())
    assert report.norm > 0
    assert 0 < report.admissible < 1
    for name, (down, up) in written.factors.items():
        guard = fitted.probe.protected(name, fitted.weights()[name], protection)
        assert guard.inputs.shape[1] > 0
        assert leak(down, guard.inputs) < 1e-5
        assert leak(up.mT, guard.outputs) < 1e-5


def test_protected_triples_stay_exact_after_many_adapters(fitted: Fitted, tmp_path: Path) -> None:
    """u, σ, v of the critical components remain singular triples, in both narrow sides."""
    protection = Protection(kind="svf", svf_cap=0.3, svf_seeds=1)
    lineage: tuple[Path, ...] = ()
    for seed in range(3):
        out = tmp_path / f"adapter-{seed}"
        plan = fitted.plan(protection=protection, lineage=lineage, seed=seed)
        train_adapter(plan, out=out, work=tmp_path / f"work-{seed}")
        lineage = (*lineage, out)
    total = concatenate([lora.read(path) for path in lineage])
    for name, weight in fitted.weights().items():
        chosen = fitted.probe.critical(name, protection)
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


def test_soft_form_shrinks_and_is_tested_by_its_own_bound(llama: Fitted, tmp_path: Path) -> None:
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


def test_an_adapter_that_goes_on_does_not_shrink_again(llama: Fitted, tmp_path: Path) -> None:
    soft = Protection(kind="activations", form="soft", strength=0.01)
    first, second = tmp_path / "first", tmp_path / "second"
    train_adapter(llama.plan(protection=soft), out=first, work=tmp_path / "work-1")
    still = {"steps": 1, "learning_rate": 1e-9}
    plan = llama.plan(protection=soft, start=(first,), settings=still)
    train_adapter(plan, out=second, work=tmp_path / "work-2")
    before, after = lora.read(first), lora.read(second)
    for name in before.factors:
        assert torch.allclose(after.delta(name), before.delta(name), atol=1e-6), name


def test_no_free_space_is_refused_before_training(llama: Fitted, tmp_path: Path) -> None:
    events: list[TrainProgress] = []
    plan = llama.plan(protection=Protection(share=0.9), rank=8)
    with pytest.raises(NoFreeSpace, match="3 free directions, an adapter of rank 8"):
        train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work", progress=events.append)
    assert not events
    assert not (tmp_path / "out").exists()


def test_earlier_adapters_use_up_the_free_space(llama: Fitted, tmp_path: Path) -> None:
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
def test_resumed_run_ends_with_the_same_bytes(
    llama: Fitted, optimizer: str, tmp_path: Path
) -> None:
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
    llama: Fitted, tmp_path: Path
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
    llama: Fitted, optimizer: str, tmp_path: Path
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
    llama: Fitted, tmp_path: Path
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


def test_training_ends_early_once_every_fact_is_learnt(llama: Fitted, tmp_path: Path) -> None:
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
    llama: Fitted, tmp_path: Path
) -> None:
    settings = {"steps": 60, "learning_rate": 0.03, "stop_loss": 3.0, "replayed_per_step": 1}
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
    llama: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    llama: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_method_can_replace_parts(llama: Fitted, tmp_path: Path) -> None:
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
        hooks=Hooks(protect=first_three, extra_loss=extra, config={"init_lora_weights": "olora"}),
    )
    down = lora.read(tmp_path / "out").factors["model.layers.0.mlp.gate_proj"][0]
    assert float(down[:, :3].abs().max()) == 0.0
    assert float(down[:, 3:].abs().max()) > 0.0
    assert calls == list(range(10))


def test_nan_stops_with_a_clear_error(llama: Fitted, tmp_path: Path) -> None:
    plan = llama.plan(
        protection=Protection(kind="none"), settings={"learning_rate": 1e30, "warmup": 0}
    )
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 10: .*learning_rate"):
        train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work")


def test_plan_survives_json_and_refuses_nonsense(llama: Fitted) -> None:
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


def _divergence(fitted: Fitted, adapter: Path, text: Example) -> float:
    """KL(base ‖ base with the adapter) in nats per token of the completion."""
    tokenizer = models.load_tokenizer(fitted.model_dir)
    encoded = encode_example(tokenizer, text)[:1]
    batch = collate(encoded, int(tokenizer.pad_token_id))
    before, after = (
        learnt_logits(model, batch)[0].log_softmax(-1)
        for model in (
            models.load_base(fitted.model_dir, torch.device("cpu")),
            attach(
                models.load_base(fitted.model_dir, torch.device("cpu")),
                fitted.plan(lineage=(adapter,)),
            ).model,
        )
    )
    return float((before.exp() * (before - after)).sum(-1).mean().detach())


@pytest.mark.parametrize("how", ["lineage", "start"])
def test_the_reference_is_the_base_whatever_was_learnt(
    llama: Fitted, tmp_path: Path, how: str
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


def test_distillation_keeps_what_labels_would_change(llama: Fitted, tmp_path: Path) -> None:
    """On a text that the base would not write itself, labels move it and distillation does not."""
    text = Example(prompt="The colour of Zot is", completion="ultramarine", kind="known")
    moved = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"at-{weight}"
        settings = {"steps": 30, "kl_weight": weight, "known_per_step": 1}
        plan = llama.plan(known=(text,), settings=settings)
        train_adapter(plan, out=out, work=out.with_suffix(".work"))
        moved[weight] = _divergence(llama, out, text)
    assert moved[5.0] < 0.5 * moved[0.0]


def test_solutions_in_doubt_are_replayed_more_often() -> None:
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


@given(facts=st.integers(10, 2000), large=st.booleans())
def test_an_earlier_fact_weighs_the_same_against_what_is_held_beside_any_number_of_new_ones(
    facts: int, large: bool
) -> None:
    settings = TrainSettings().large_batch() if large else TrainSettings()
    an_earlier_one = settings.replayed_per_step / settings.facts_in_step(facts)
    usual = settings.replayed_per_step / settings.new_per_step / settings.held(36)
    assert an_earlier_one / settings.held(facts, 1000) == pytest.approx(usual, rel=0.15)


@given(facts=st.integers(1, 2000), earlier=st.integers(0, 2000), sub_steps=st.integers(2, 5))
def test_large_preset_holds_as_hard_and_reads_more_of_everything(
    facts: int, earlier: int, sub_steps: int
) -> None:
    small = TrainSettings(sub_steps=sub_steps)
    large = small.large_batch()
    assert large.large_batch() == large
    assert large.held(facts) == pytest.approx(small.held(facts), rel=0.3)
    steps = [steps_needed(one, facts, earlier) for one in (small, large)]
    seen = [one.facts_in_step(facts) * n for one, n in zip((small, large), steps, strict=True)]
    known = [one.known_per_step * n for one, n in zip((small, large), steps, strict=True)]
    assert seen[1] >= 0.9 * seen[0]
    # Steps are whole ones: up to one of them is rounded away.
    assert known[1] + large.known_per_step >= 2 * known[0]


@given(facts=st.integers(145, 2000), earlier=st.integers(0, 2000))
def test_of_many_facts_a_cpu_takes_less_than_half_of_the_small_steps(
    facts: int, earlier: int
) -> None:
    small = TrainSettings(max_steps=1_000_000)
    assert steps_needed(small.on_cpu(facts), facts, earlier) < 0.5 * steps_needed(
        small, facts, earlier
    )


@given(facts=st.integers(1, 144), earlier=st.integers(0, 5000))
def test_steps_grow_with_the_logarithm_of_the_earlier_facts(facts: int, earlier: int) -> None:
    settings = TrainSettings(max_steps=100_000)
    alone = steps_needed(settings, facts)
    beside = steps_needed(settings, facts, earlier)
    assert alone <= beside <= steps_needed(settings, facts, 2 * earlier)
    usual = max(alone, settings.base_steps)
    if earlier <= settings.large_run_facts:
        assert beside <= usual
    else:
        more = steps_needed(settings, facts, 2 * earlier) - beside
        assert more == pytest.approx(settings.steps_per_doubling * usual, abs=1)
    assert steps_needed(TrainSettings(replayed_per_step=0), facts, earlier) == alone


@drawing(max_examples=30, deadline=None)
@given(facts=st.integers(4, 144), phase=st.floats(1.0, 2.0), large=st.booleans())
def test_beginning_anew_leaves_the_steps_of_a_batch_growing_with_the_logarithm(
    facts: int, phase: float, large: bool
) -> None:
    """Each doubling of the batches adds about as many steps to their mean as the one before."""
    small = TrainSettings(max_steps=1_000_000)
    settings, retrain_at = small.large_batch() if large else small, 480

    def mean(batches: int) -> float:
        steps, begun = 0, facts
        for known in range(0, batches * facts, facts):
            steps += steps_needed(settings, facts, known)
            if outgrown(begun, known + facts - begun, retrain_at):
                begun = known + facts
                steps += steps_needed(settings.on_cpu(begun), begun)
        return steps / batches

    first = round(phase * 2 * retrain_at / facts)
    once, twice, again = (mean(n * first) for n in (1, 2, 4))
    assert 0 < again - twice <= 1.25 * (twice - once)


@given(facts=st.integers(144, 2000))
def test_each_of_many_new_facts_is_shown_more_often_than_of_a_few(facts: int) -> None:
    settings = TrainSettings(max_steps=1_000_000)

    def shown(count: int) -> float:
        return settings.facts_in_step(count) * steps_needed(settings, count) / count

    assert settings.epochs <= 1.01 * shown(facts) < shown(2 * facts)
    assert steps_needed(settings, facts, facts) == steps_needed(settings, facts)
