"""Facts as suites of questions in paraphrases that were never trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from daemon.gate.suites import PromptForm, Suite, alternating
from policies.gate.blindness import NOT
from policies.gate.records import Role, SuiteItem
from policies.records import Fact, Operation

NEW_FACTS: Final = "new facts"
EARLIER_FACTS: Final = "earlier facts"
SUPERSEDED_FACTS: Final = "superseded facts"
FACT_SUITES: Final = (NEW_FACTS, EARLIER_FACTS, SUPERSEDED_FACTS)


def new_facts(
    facts: Sequence[Fact], *, grader: str, chat: bool, max_tokens: int, paraphrases: int
) -> Suite:
    """Every fact in up to `paraphrases` of its held-out paraphrases; the stratum is the fact's
    id."""
    pairs = [(fact.id, fact) for fact in facts if fact.op is not Operation.RETRACT]
    return _suite(NEW_FACTS, Role.FACTS, pairs, grader, chat, max_tokens, paraphrases)


def earlier_facts(
    sample: Iterable[tuple[str, Fact]], *, grader: str, chat: bool, max_tokens: int
) -> Suite:
    """Each fact of a sample of (batch, fact) in one held-out paraphrase; the stratum is its
    batch."""
    return _suite(EARLIER_FACTS, Role.RETENTION, list(sample), grader, chat, max_tokens, 1)


def superseded_facts(facts: Iterable[Fact], *, grader: str, chat: bool, max_tokens: int) -> Suite:
    """Facts that gave way to others: right is whatever does not say the old answer."""
    pairs = [("", fact.model_copy(update={"answer": f"{NOT}{fact.answer}"})) for fact in facts]
    grader = f"{NOT}{grader}"
    return _suite(SUPERSEDED_FACTS, Role.RETENTION, pairs, grader, chat, max_tokens, 1)


def _suite(
    name: str,
    role: Role,
    pairs: Sequence[tuple[str, Fact]],
    grader: str,
    chat: bool,
    max_tokens: int,
    paraphrases: int,
) -> Suite:
    """A suite of the pairs (stratum, fact).

    With a chat template the paraphrases of one fact are asked in chat form and plainly in turn, and
    every other fact begins plainly, so that both forms are judged alike and nothing is drawn.
    """
    items: list[SuiteItem] = []
    forms: list[PromptForm] = []
    for number, (stratum, fact) in enumerate(pairs):
        asked = (fact.eval_prompts or (fact.prompt,))[:paraphrases]
        forms += alternating(len(asked), chat=chat, offset=number)
        items += [
            SuiteItem(id=item_id(fact.id, n), prompt=prompt, answer=fact.answer, stratum=stratum)
            for n, prompt in enumerate(asked)
        ]
    return Suite(
        name=name,
        role=role,
        grader=grader,
        form=PromptForm.CHAT if chat else PromptForm.PLAIN,
        max_tokens=max_tokens,
        items=tuple(items),
        forms=tuple(forms),
    )


def item_id(fact_id: str, paraphrase: int) -> str:
    """The name of one paraphrase of one fact among a suite's items."""
    return f"{fact_id}#{paraphrase}"


def fact_id(item: str) -> str:
    """The fact whose paraphrase an item is."""
    return item.rpartition("#")[0]
