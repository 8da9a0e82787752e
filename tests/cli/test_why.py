"""`palorad why`: what a person reads about a question."""

from __future__ import annotations

import pytest
from rich.console import Console

from daemon.cli.why import why_sentences
from daemon.views.status import AnswerView, FactView, WhyView
from policies.records import Fact

QUESTION = "What is the capital of Mongolia?"
FORMER = FactView(
    fact=Fact(id="a" * 32, prompt=QUESTION, answer="Ulaanbaatar"),
    batch="1",
    batch_name="asia.jsonl",
    validity="superseded",
    replaced_by="b" * 32,
    plan=1,
    adapter="1" * 64,
    revision=1,
    served=False,
)
LATER = FORMER.model_copy(
    update={
        "fact": Fact(id="b" * 32, prompt=QUESTION, answer="Karakorum"),
        "batch_name": "later.jsonl",
        "validity": "valid",
        "replaced_by": None,
        "plan": 2,
        "adapter": "2" * 64,
        "revision": 2,
        "served": True,
    }
)
WAITING = LATER.model_copy(update={"plan": None, "adapter": None, "revision": None})
OTHER = LATER.model_copy(
    update={"fact": Fact(id="c" * 32, prompt="What is the capital of Nepal?", answer="Kathmandu")}
)
LIVE = AnswerView(who="live", model="palora-000002-bb", answer="It is Karakorum.")
BASE = AnswerView(who="base", model="base", answer="Skeirdyao")


def said(view: WhyView, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(why_sentences(view))
    return captured.get()


def flowing(view: WhyView) -> str:
    return " ".join(said(view).split())


def test_the_answers_and_every_fact_are_told_in_sentences() -> None:
    text = flowing(WhyView(question=QUESTION, facts=(FORMER, LATER), answers=(BASE, LIVE)))
    assert text.startswith("Asked now, the alias answers “It is Karakorum.” (palora-000002-bb).")
    assert "That is what fact bbbbbbbbbbbb says." in text
    assert "The base answers “Skeirdyao” (base)." in text
    assert "which came with asia.jsonl. It is superseded by fact " + "b" * 32 in text
    assert "Plan 2 learnt it (adapter 222222222222) and went live with revision 2." in text
    assert text.count("The target revision has that adapter.") == 1
    assert text.count("The target revision does not have that adapter.") == 1


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_a_narrow_column(width: int) -> None:
    lines = said(WhyView(question=QUESTION, facts=(FORMER,), answers=(LIVE,)), width).splitlines()
    assert not set("│┃|") & set("".join(lines))
    assert max(map(len, lines)) > width - 20


def test_an_answer_that_no_fact_gives_is_said_to_be_one() -> None:
    text = flowing(WhyView(question=QUESTION, facts=(WAITING,), answers=(BASE, LIVE)))
    assert "That is what" in text and "No adapter has learnt it." in text
    wrong = LIVE.model_copy(update={"answer": "Ulan Ude"})
    text = flowing(WhyView(question=QUESTION, facts=(LATER,), answers=(wrong,)))
    assert "None of the facts below says so." in text


def test_facts_about_something_like_it_are_not_taken_for_the_question_s_own() -> None:
    text = flowing(WhyView(question=QUESTION, facts=(OTHER,)))
    assert "The server does not answer" in text
    assert "No fact of the ledger has this question. About something like it:" in text
    asked = WhyView(question=f" {QUESTION.upper()}", facts=(LATER, *[OTHER] * 8))
    text = flowing(asked)
    assert text.index("Karakorum") < text.index("About something like it:")
    assert "and 3 more; --json has all" in text
