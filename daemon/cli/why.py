"""`palorad why` in sentences: what is answered, by what, and where each fact behind it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from daemon.views.status import AnswerView, FactView, WhyView
from policies.text import folded, same_text

ID: Final = 12
_LISTED: Final = 5
_ASKED: Final = {
    "live": "Asked now, the alias answers",
    "previous": "The revision before answers",
    "base": "The base answers",
}


def why_sentences(view: WhyView) -> RenderableType:
    """The answers now, the facts with this very question, and those that are about the like."""
    asked = [known for known in view.facts if _asks(known, view.question)]
    others = [known for known in view.facts if known not in asked]
    parts: list[RenderableType] = [Text(line) for line in _answers(view.answers, asked)]
    for known in asked:
        parts.append(Text(f"“{known.fact.prompt}” – {known.fact.answer}", style="bold"))
        parts.append(Padding(Text(" ".join(_story(known))), (0, 0, 0, 2)))
    if not asked:
        parts.append(Text("No fact of the ledger has this question."))
    if others:
        parts.append(Text("About something like it:"))
        shown = others if not asked else others[:_LISTED]
        for known in shown:
            line = f"“{known.fact.prompt}” – {known.fact.answer}. {' '.join(_story(known))}"
            parts.append(Padding(Text(line), (0, 0, 0, 2)))
        if more := len(others) - len(shown):
            parts.append(Text(f"  and {more} more; --json has all"))
    return Group(*parts)


def _asks(known: FactView, question: str) -> bool:
    fact = known.fact
    asked = (fact.prompt, *fact.paraphrases, *fact.eval_prompts)
    return any(same_text(prompt, question) for prompt in asked)


def _answers(answers: Sequence[AnswerView], asked: Sequence[FactView]) -> Iterator[str]:
    if not answers:
        yield "The server does not answer, so this is what the ledger knows."
    for answer in sorted(answers, key=lambda one: list(_ASKED).index(one.who)):
        line = f"{_ASKED[answer.who]} “{answer.answer}” ({answer.model})"
        if answer.who == "live" and asked:
            line += f". {_fits(answer, asked)}"
        yield line if line.endswith(".") else f"{line}."


def _fits(answer: AnswerView, asked: Sequence[FactView]) -> str:
    """Which fact's answer is in what was answered; a person sees whether it means the same."""
    said = folded(answer.answer)
    for known in asked:
        if folded(known.fact.answer) in said:
            return f"That is what fact {known.fact.id[:ID]} says"
    return "None of the facts below says so"


def _story(known: FactView) -> Iterator[str]:
    yield f"Fact {known.fact.id[:ID]}, which came with {known.batch_name}."
    match known.validity, known.replaced_by:
        case "valid", None:
            pass
        case "valid", replaced_by:
            yield f"It is valid until fact {replaced_by} is learnt."
        case validity, None:
            yield f"It is {validity}."
        case validity, replaced_by:
            yield f"It is {validity} by fact {replaced_by}."
    if known.adapter is None:
        yield "No adapter has learnt it."
        return
    live = "" if known.revision is None else f" and went live with revision {known.revision}"
    yield f"Plan {known.plan} learnt it (adapter {known.adapter[:ID]}){live}."
    yield f"The target revision {'has' if known.served else 'does not have'} that adapter."
