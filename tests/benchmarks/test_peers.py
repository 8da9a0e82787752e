"""What baselines of the bench protect, begin with and learn, on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import lora, losses, models
from adapters.config import TrainConfig
from adapters.examples import collate, encode_example
from adapters.probe import Protection
from adapters.recipe import protect
from adapters.trainer import train_adapter
from benchmarks.learning import scores
from benchmarks.learning.edits import alphaedit
from benchmarks.learning.inputs import ProtectedInputs, kept
from benchmarks.learning.methods import METHODS
from policies.records import Example
from tests.support.fitted import FACTS, SKILL, Fitted


def test_an_edit_in_closed_form_is_learnt_and_leaves_the_rest(
    llama: Fitted, tmp_path: Path
) -> None:
    named = [fact.prompt.removesuffix("?").split()[-1] for fact in FACTS]
    facts = tuple(f.model_copy(update={"subject": n}) for f, n in zip(FACTS, named, strict=True))
    plan = llama.plan(
        facts=facts,
        probe_dir=None,
        protection=Protection(kind="none"),
        config={"learning_rate": 0.5},
    )
    report = alphaedit(plan, tmp_path / "edited", protected=0.3, ridge=1e-3, decay=0.0)
    assert report.loss_last < 0.96 * report.loss_first
    found = lora.read(tmp_path / "edited")
    assert report.rank == found.rank == len(plan.facts)
    assert all("down_proj" in name for name in found.factors)
    assert report.leak < 1e-4


@pytest.mark.parametrize("name", ["PiSSA", "MiLoRA", "MiCA", "CorDA"])
def test_what_a_baseline_begins_with_is_no_part_of_what_is_learnt(
    llama: Fitted, tmp_path: Path, name: str
) -> None:
    plan = llama.plan(probe_dir=None, protection=Protection(kind="none"))
    still = plan.model_copy(update={"config": TrainConfig(steps=1, learning_rate=1e-9)})
    recipe = METHODS[name].recipe
    train_adapter(still, out=tmp_path / "still", work=tmp_path / "work-1", recipe=recipe())
    assert lora.read(tmp_path / "still").norm() < 1e-4
    train_adapter(plan, out=tmp_path / "moved", work=tmp_path / "work-2", recipe=recipe())
    moved = lora.read(tmp_path / "moved")
    assert moved.norm() > 1e-2
    assert moved.rank == (4 if name == "MiCA" else 8)


SCORES = ("random", "OPLoRA", "palora, by change", "palora, by energy", "palora, by Fisher")


def test_baselines_protect_as_many_components_as_the_paper_but_others(llama: Fitted) -> None:
    plan = llama.plan(protection=scores.SVF, reasoning=tuple(SKILL))
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    paper = protect(base, plan)
    chosen = {name: METHODS[name].recipe().protected(base, plan) for name in SCORES}
    for name, found in chosen.items():
        for matrix, guard in found.items():
            assert guard.inputs.shape == paper[matrix].inputs.shape, name
            assert guard.outputs.shape == paper[matrix].outputs.shape, name
    matrix = next(iter(paper))
    spaces = [found[matrix].inputs for found in (paper, *chosen.values())]
    maps = [space @ space.mT for space in spaces]
    for n, one in enumerate(maps):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in maps[:n])


def test_inputs_of_known_facts_are_protected_beside_those_of_the_skill(
    llama: Fitted, tmp_path: Path
) -> None:
    """As many directions as the skill's alone would be, through which more of a known fact goes."""
    changes = {"reasoning": tuple(SKILL), "protection": Protection(share=0.3)}
    plan = llama.plan(
        known=tuple(Example(prompt=f.prompt, completion="so") for f in FACTS), **changes
    )
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    recipe = METHODS["null space, known facts too"].recipe()
    alone, both = protect(base, plan), ProtectedInputs(0.3).protected(base, plan)
    matrices = models.matrices(base, plan.config.targets)
    known = kept(base, matrices, plan.model_copy(update={"reasoning": ()}))
    for name, guard in both.items():
        assert guard.inputs.shape == alone[name].inputs.shape
        assert not guard.outputs.numel()
        held = [
            float((space.mT @ known[name].vectors * known[name].values.sqrt()).square().sum())
            for space in (guard.inputs, alone[name].inputs)
        ]
        assert held[0] > held[1]
    report = train_adapter(plan, out=tmp_path / "out", work=tmp_path / "work", recipe=recipe)
    assert report.leak < 5e-3


def test_the_energy_that_passes_is_all_that_a_matrix_gives(llama: Fitted) -> None:
    base = models.load_base(llama.model_dir, torch.device("cpu"))
    looked = scores.Looked(base, llama.plan(), llama.probe)
    for name, score in scores.passed_energy(looked).items():
        weight, moment = looked.matrices[name].weight.double(), llama.probe.moment(name)
        given = weight @ (moment.vectors * moment.values) @ moment.vectors.mT @ weight.mT
        assert float(score.sum()) == pytest.approx(float(given.trace()), rel=1e-3)
        assert float(score.min()) >= 0.0


def test_fisher_information_is_that_of_the_scaled_components(llama: Fitted) -> None:
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
