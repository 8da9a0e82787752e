"""The trainer on tiny models: what is protected stays, and a cut run ends the same."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import lora, losses, models, svf
from adapters.attach import Attached, attach
from adapters.compose import concatenate
from adapters.errors import NoFreeSpace, TrainingDiverged
from adapters.examples import Encoded, collate, encode_example, pick
from adapters.lora import Lora
from adapters.losses import learnt_logits
from adapters.passes import Passes
from adapters.plans import TrainPlan, TrainProgress
from adapters.probe import Protection
from adapters.projection import Protected, lora_layers
from adapters.recipe import Recipe
from adapters.subspace import leak
from adapters.trainer import train_adapter
from policies.records import Example, Fact, PlanKind
from tests.support.fitted import Fitted


@pytest.mark.parametrize("kind", ["svf", "activations", "svf+activations"])
def test_saved_tensors_do_not_leak(fitted: Fitted, kind: str, tmp_path: Path) -> None:
    protection = Protection(kind=kind, share=0.5, svf_cap=0.3)
    plan = fitted.plan(protection=protection)
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


def test_a_warm_started_adapter_does_not_shrink_again(llama: Fitted, tmp_path: Path) -> None:
    soft = Protection(kind="activations", form="soft", strength=0.01)
    first, second = tmp_path / "first", tmp_path / "second"
    train_adapter(llama.plan(protection=soft), out=first, work=tmp_path / "work-1")
    still = {"steps": 1, "learning_rate": 1e-9}
    plan = llama.plan(protection=soft, start=(first,), config=still)
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


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / lora.WEIGHTS).read_bytes()).hexdigest()


def test_resumed_run_ends_with_the_same_bytes(llama: Fitted, tmp_path: Path) -> None:
    class CutOffError(Exception):
        pass

    plan = llama.plan(config={"steps": 12, "new_per_step": 2})
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


def test_a_run_goes_on_from_its_checkpoint_after_its_files_were_moved(
    llama: Fitted, tmp_path: Path
) -> None:
    plan = llama.plan(config={"steps": 6, "new_per_step": 2, "checkpoint_s": 0})
    train_adapter(plan, out=tmp_path / "whole", work=tmp_path / "work")
    assert plan.probe_dir is not None
    moved = plan.model_copy(
        update={
            "probe_dir": Path(shutil.copytree(plan.probe_dir, tmp_path / "moved" / "probe")),
            "model_dir": Path(shutil.copytree(plan.model_dir, tmp_path / "moved" / "model")),
        }
    )
    (tmp_path / "work").rename(tmp_path / "moved" / "work")
    steps: list[int] = []
    train_adapter(
        moved,
        out=tmp_path / "again",
        work=tmp_path / "moved" / "work",
        progress=lambda e: steps.append(e.step),
    )
    assert steps[0] == 6
    assert digest(tmp_path / "again") == digest(tmp_path / "whole")


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


def test_an_orthogonal_adapter_reads_nothing_that_earlier_ones_read(
    llama: Fitted, tmp_path: Path
) -> None:
    """Where nothing else is protected too; without it the directions do overlap."""
    none = Protection(kind="none")
    lineage: tuple[Path, ...] = ()
    for seed in range(3):
        config = {"steps": 5, "learning_rate": 0.03, "orthogonal": seed < 2}
        plan = llama.plan(protection=none, lineage=lineage, seed=seed, rank=2, config=config)
        train_adapter(plan, out=tmp_path / f"{seed}", work=tmp_path / f"work-{seed}")
        lineage = (*lineage, tmp_path / f"{seed}")
    first, second, free = (lora.read(path) for path in lineage)
    for name, (down, _) in first.factors.items():
        assert float((down @ second.factors[name][0].mT).abs().max()) < 1e-5
        assert float((down @ free.factors[name][0].mT).abs().max()) > 1e-3
        assert float(second.delta(name).norm()) > 0.0


def test_learning_lowers_the_loss_and_the_lineage_is_active(llama: Fitted, tmp_path: Path) -> None:
    config = {"steps": 60, "learning_rate": 0.03}
    none = Protection(kind="none")
    plan = llama.plan(protection=none, config=config)
    report = train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert report.loss_last < 0.5 * report.loss_first
    again = llama.plan(protection=none, config={**config, "steps": 1}, lineage=(tmp_path / "one",))
    second = train_adapter(again, out=tmp_path / "two", work=tmp_path / "work-2")
    assert second.loss_first < 0.6 * report.loss_first


def test_a_warm_start_is_the_sum_of_the_adapters_that_it_replaces(
    llama: Fitted, tmp_path: Path
) -> None:
    config = {"steps": 60, "learning_rate": 0.03}
    parts = [tmp_path / "one", tmp_path / "two"]
    first = train_adapter(llama.plan(config=config), out=parts[0], work=tmp_path / "work")
    plan = llama.plan(config=config, lineage=(parts[0],), rank=2)
    train_adapter(plan, out=parts[1], work=tmp_path / "work-2")
    whole = concatenate([lora.read(part) for part in parts])
    plan = llama.plan(config={**config, "steps": 1}, start=tuple(parts), rank=whole.rank + 2)
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
    config = {
        "steps": 400,
        "learning_rate": 0.01,
        "stop_loss": 3.5,
        "cooldown": 4,
    }
    plan = llama.plan(protection=Protection(kind="none"), config=config)
    report = train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert report.stopped_early
    assert 80 <= report.steps < 400


def test_training_does_not_end_early_while_earlier_facts_are_lost(
    llama: Fitted, tmp_path: Path
) -> None:
    config = {"steps": 60, "learning_rate": 0.03, "stop_loss": 3.0, "replayed_per_step": 1}
    plan = llama.plan(protection=Protection(kind="none"), config=config, known=())
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
    config = {"steps": 60, "learning_rate": 0.03}
    first = llama.plan(config=config, protection=Protection(share=0.3))
    report = train_adapter(first, out=tmp_path / "one", work=tmp_path / "work")
    assert report.leak < 1e-5
    again = llama.plan(config={**config, "steps": 3}, lineage=(tmp_path / "one",), rank=2)
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

    def small(model: Any, objective: Any, passes: Passes) -> Any:
        sizes.append(passes.max_tokens)
        if passes.max_tokens > 256:
            raise torch.OutOfMemoryError
        return accumulate(model, objective, passes)

    monkeypatch.setattr(losses, "_accumulate", small)
    plan = llama.plan(config={"max_tokens": 1024, "steps": 3})
    train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work")
    assert sizes == [1024, 512, 256, 256, 256, 256]


class Odd(Recipe):
    """Other subspaces, another initialisation, a penalty beside the loss, a counted step."""

    def __init__(self) -> None:
        self.steps = 0

    def protected(self, base: Any, plan: TrainPlan) -> dict[str, Protected]:
        basis, guards = torch.eye(32, dtype=torch.float64)[:, :3], {}
        for name, matrix in models.matrices(base).items():
            guard = Protected.nothing(*matrix.weight.shape)
            guards[name] = Protected(basis, guard.outputs) if "down" not in name else guard
        return guards

    def attach(self, base: Any, plan: TrainPlan) -> Attached:
        return attach(base, plan, {"init_lora_weights": "olora"})

    def gradients(self, model: Any, *given: Any) -> tuple[float, dict[str, float]]:
        found = super().gradients(model, *given)
        sum(p.square().sum() for p in model.parameters() if p.requires_grad).backward()
        return found

    def update(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        super().update(model, optimizer)
        self.steps += 1


def test_a_recipe_can_replace_parts(llama: Fitted, tmp_path: Path) -> None:
    plan = llama.plan(protection=Protection(kind="none"), probe_dir=None)
    recipe = Odd()
    train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work", recipe=recipe)
    down = lora.read(tmp_path / "out").factors["model.layers.0.mlp.gate_proj"][0]
    assert float(down[:, :3].abs().max()) == 0.0
    assert float(down[:, 3:].abs().max()) > 0.0
    assert recipe.steps == 10


def test_nan_stops_with_a_clear_error(llama: Fitted, tmp_path: Path) -> None:
    plan = llama.plan(
        protection=Protection(kind="none"), config={"learning_rate": 1e30, "warmup": 0}
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


def test_the_kl_term_keeps_what_labels_would_change(llama: Fitted, tmp_path: Path) -> None:
    """On a text that the base would not write itself, labels move it and the KL term does not."""
    text = Example(prompt="The colour of Zot is", completion="ultramarine", kind="known")
    moved = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"at-{weight}"
        config = {"steps": 30, "kl_weight": weight, "known_per_step": 1}
        plan = llama.plan(known=(text,), config=config)
        train_adapter(plan, out=out, work=out.with_suffix(".work"))
        moved[weight] = _divergence(llama, out, text)
    assert moved[5.0] < 0.5 * moved[0.0]


def test_uncertain_traces_are_replayed_more_often() -> None:
    pool = [[Encoded((n,), 0)] for n in range(20)]
    weights = [9.0 if n < 2 else 1.0 for n in range(20)]
    rng = random.Random(0)
    drawn = Counter(one.ids[0] for _ in range(2000) for one in pick(pool, 4, rng, weights))
    uncertain = (drawn[0] + drawn[1]) / 2
    sure = sum(drawn[n] for n in range(2, 20)) / 18
    assert 4 < uncertain / sure < 9
    assert all(len({one.ids for one in pick(pool, 4, rng, weights)}) == 4 for _ in range(50))
