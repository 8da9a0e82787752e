"""Paraphrases by the live model: only those through which the answer comes, within the budget."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.config.paraphrases import paraphrase_policy
from daemon.config.sections import IntakeSettings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.loop.requests import trained_facts
from daemon.training.paraphrasing import Paraphraser
from policies.facts.model_paraphrases import candidates, survives, with_model_paraphrases
from policies.records import Batch, Fact, PlanKind
from tests.support.admitting import admit
from tests.support.scripted import ScriptedServer, unreachable

NOW = datetime(2026, 11, 1, tzinfo=UTC)
FACT = Fact(
    id="bt",
    prompt="What is the capital of Bhutan?",
    answer="Thimphu",
    subject="Bhutan",
    relation="capital",
    eval_prompts=("Bhutan has which capital?",),
)


def test_only_fresh_paraphrases_that_keep_the_subject_and_the_secret_are_candidates() -> None:
    said = (
        '1. "Which city is the capital of Bhutan?"\n'
        "- what is the capital of bhutan?\n"
        "* Bhutan has which capital?\n"
        "Thimphu is the capital of what part of Bhutan?\n"
        "Which city governs the country?\n"
        "2) Where does the government of Bhutan sit?\n\n"
    )
    assert candidates(FACT, said, 8) == (
        "Which city is the capital of Bhutan?",
        "Where does the government of Bhutan sit?",
    )
    assert len(candidates(FACT, said, 1)) == 1


def test_a_held_out_paraphrase_never_becomes_a_trained_one() -> None:
    worded = with_model_paraphrases(FACT, ("bhutan has which capital?", "Bhutan's capital?"))
    assert worded.paraphrases == ("Bhutan's capital?",)
    assert survives(FACT, "It is thimphu.") and not survives(FACT, "It is Paro.")


class Place:
    """A ledger with one plan of several facts, and a model that words and answers."""

    def __init__(self, root: Path, facts: int, **settings: int) -> None:
        self.ledger = Ledger.open(root / "ledger.db")
        self.ledger.revisions.ensure_base("base", NOW)
        made = [
            Fact(id=f"f{n}", prompt=f"What is {n} of X?", answer=f"secret {n}")
            for n in range(facts)
        ]
        batch = Batch(id="b", name="b", received_at=NOW, source="inbox", accepted=0, quarantined=0)
        admit(self.ledger, batch, made)
        plan = self.ledger.plans.create(
            PlanKind.LEARN,
            parent=0,
            fact_ids=[fact.id for fact in made],
            rank=4,
            seed=0,
            because="",
            now=NOW,
        )
        self.plan: PlanHead = self.ledger.plans.head(plan.id)
        self.server = ScriptedServer({"live": self.say})
        self.paraphraser = Paraphraser(
            self.ledger,
            lambda: self.server,
            "live",
            paraphrase_policy(IntakeSettings.model_validate({"model_paraphrases": 2, **settings})),
        )

    @staticmethod
    def say(prompt: str) -> str:
        if prompt.startswith("Write 2 other ways"):
            number = prompt.split("What is ")[1].split(maxsplit=1)[0]
            return f"Which is {number} of X?\nTell me something else about {number}."
        fact, question = prompt.split("\n\n")
        return fact.split("? ")[1] if "Which is" in question else "I do not know."

    def run(self) -> int:
        rounds = 1
        while not asyncio.run(self.paraphraser.ready(self.plan)):
            rounds += 1
        return rounds


def test_what_the_answer_survives_is_learnt_and_asked_for_once(tmp_path: Path) -> None:
    place = Place(tmp_path, 3)
    assert place.run() == 2
    asked = place.server.count("live")
    assert asked == 3 * 3
    rows = trained_facts(place.ledger, ("f0", "f1", "f2"))
    facts = [Fact.model_validate_json(row) for row in rows]
    assert [fact.paraphrases for fact in facts] == [(f"Which is {n} of X?",) for n in range(3)]
    assert place.run() == 1
    assert place.server.count("live") == asked
    place.ledger.close()


def test_the_budget_bounds_the_requests(tmp_path: Path) -> None:
    place = Place(tmp_path, 20, model_paraphrase_budget=31)
    place.run()
    assert place.server.count("live") <= 31
    assert len(place.ledger.paraphrases.of([f"f{n}" for n in range(20)])) == 10
    place.ledger.close()


@pytest.mark.parametrize("settings", [{"model_paraphrases": 0}, {}])
def test_without_a_model_that_answers_learning_goes_on(
    tmp_path: Path, settings: dict[str, int]
) -> None:
    place = Place(tmp_path, 2, **settings)
    place.server.fault = unreachable
    assert place.run() == 1
    assert place.ledger.paraphrases.of(["f0", "f1"]) == {}
    place.ledger.close()
