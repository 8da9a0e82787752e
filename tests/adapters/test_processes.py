"""A step shared by processes is the step that one takes alone."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pytest
import torch

from adapters import models, precision
from adapters.attach import attach
from adapters.examples import Encoded, encode_example
from adapters.losses import KLTerm, Objective
from adapters.passes import Passes
from adapters.plans import TrainProgress
from adapters.processes import Processes
from adapters.recipe import Recipe
from adapters.reference import record
from adapters.trainer import train_adapter
from policies.records import Example
from tests.support.fitted import Fitted


def texts_of(fitted: Fitted, count: int, key: str = "") -> list[Encoded]:
    """Texts of many lengths; each fact twice."""
    tokenizer = models.load_tokenizer(fitted.model_dir)
    found = []
    for n in range(count):
        example = Example(prompt=f"{key} " * (1 + n % 5) + f"{n}?", completion="7" * (1 + n))
        (form, *_) = encode_example(tokenizer, example)
        found.append(Encoded(form.ids, form.start, f"{key}{n // 2}" if key else ""))
    return found


@pytest.fixture(scope="module")
def objective(llama: Fitted) -> Objective:
    """A step with everything in it, the reference being the base at its own predictions."""
    model = models.load_base(llama.model_dir, torch.device("cpu"))
    passes = Passes(torch.device("cpu"), 256, 512)
    known, reasoning = texts_of(llama, 7), texts_of(llama, 3)
    reference = record(
        model,
        lambda: nullcontext(model),
        [*known, *reasoning],
        passes,
        base_hash=llama.hash,
        folder=None,
    )
    return Objective(
        texts_of(llama, 9, "new"),
        texts_of(llama, 5, "old"),
        (KLTerm(known, 2.0, reference.states), KLTerm(reasoning, 5.0, reference.states)),
        temperature=4.0,
    )


def read_in(objective: Objective) -> list[Encoded]:
    terms = chain.from_iterable(term.texts for term in objective.kl_terms)
    return [*objective.new, *objective.replayed, *terms]


@pytest.mark.parametrize("count", [2, 3, 30])
def test_the_gradients_and_losses_of_all_shares_add_up_to_those_of_the_step(
    llama: Fitted, objective: Objective, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where there are more processes than texts. In bf16 each sum is rounded, so not there."""
    monkeypatch.setattr(precision, "INSTRUCTIONS", ())
    plan, passes, recipe = llama.plan(), Passes(torch.device("cpu"), 256, 512), Recipe()
    attached = attach(models.load_base(llama.model_dir, torch.device("cpu")), plan)
    factors = [p for p in attached.model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    for factor in factors:
        factor.data += 0.05 * torch.randn(factor.shape, generator=generator)

    def gradients(shares: list[Objective]) -> tuple[float, dict[str, float], torch.Tensor]:
        loss, of_facts = 0.0, {}
        for share in shares:
            more, of_more = recipe.gradients(attached.model, share, passes)
            loss, of_facts = loss + more, of_facts | of_more
        found = torch.cat([f.grad.flatten() for f in factors if f.grad is not None])
        attached.model.zero_grad(set_to_none=True)
        return loss, of_facts, found

    whole, of_whole, gradient = gradients([objective])
    parts = [Processes(count, index).share(objective) for index in range(count)]
    loss, of_facts, summed = gradients(parts)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert of_facts == pytest.approx(of_whole, rel=1e-4)
    assert float(gradient.abs().max()) > 1e-2
    torch.testing.assert_close(summed, gradient, rtol=1e-4, atol=1e-6)


def test_every_text_is_read_once_and_all_processes_read_about_as_much(objective: Objective) -> None:
    shares = [read_in(Processes(3, index).share(objective)) for index in range(3)]
    assert Counter(chain.from_iterable(shares)) == Counter(read_in(objective))
    tokens = [sum(len(text.ids) for text in share) for share in shares]
    assert max(tokens) < 1.2 * min(tokens)


def test_one_process_reads_all_paraphrases_of_a_fact(objective: Objective) -> None:
    """What counts as its latest loss does not depend on their number."""
    shares = [Processes(2, index).share(objective) for index in range(2)]
    one, other = ({text.key for text in (*s.new, *s.replayed)} for s in shares)
    assert one and other and not one & other


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_that_very_step(
    llama: Fitted, tmp_path: Path
) -> None:
    """However long ago the last one was."""
    plan = llama.plan(config={"checkpoint_s": 1000.0})
    taken: list[TrainProgress] = []

    class Ended(Exception):
        pass

    def progress(told: TrainProgress) -> None:
        taken.append(told)
        if told.stopping:
            raise Ended

    def train(stop_after: int) -> None:
        train_adapter(
            plan,
            out=tmp_path / "out",
            work=tmp_path / "work",
            progress=progress,
            stopping=lambda: len(taken) + 1 == stop_after,
        )

    with pytest.raises(Ended):
        train(4)
    train(0)
    assert [told.step for told in taken] == list(range(1, 11))
