"""Facts change, clash, overtake and leave on the small model, through the daemon and its server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from demo.ask import DemoQuestion, Endpoint, rate
from demo.follow import Follow
from demo.setup import ROOT
from policies.errors import LedgerBusy, RequestRefused
from policies.gate.grading import normalised
from policies.records import BatchState, Fact, PlanKind
from tests.support.real import NEEDS_MODEL, configure, running

FACTS = sorted((ROOT / "examples" / "facts").glob("*.jsonl"))
OLD, NEW, CLASHING = "Thimphu", "Punakha", "Trongsa"
WAIT_S = 900.0
UNSETTLED = (BatchState.WAITING, BatchState.LEARNING)

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(3000),
    NEEDS_MODEL,
]


@dataclass
class Story:
    """What was seen, by the name of the moment."""

    settings: Settings
    follow: Follow
    said: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        file = self.settings.state_dir.parent / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def drop(self, name: str, rows: Sequence[dict[str, Any]]) -> str:
        return self.follow.drop(self.write(name, rows))

    def learn(self, name: str, rows: Sequence[dict[str, Any]]) -> BatchState:
        batch = self.drop(name, rows)
        settled = self.follow.until_settled(batch, name)
        self.seen[name] = (settled.state, settled.reasons)
        return settled.state

    def ask(self, rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], float]:
        """Live answers to the held-out paraphrases, and how many hold the row's answer."""
        asked = [DemoQuestion(p, "", p, row["answer"]) for row in rows for p in row["eval_prompts"]]
        endpoint = Endpoint(self.settings.server.urls[0], self.settings.model.alias)
        answers = endpoint.ask(asked, normalised, 24)
        return tuple(a.text for a in answers), rate(answers)

    def until(self, done: Callable[[Ledger], bool], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while True:
            self.follow.daemon.check()
            try:
                with Ledger.open(self.settings.layout.ledger, readonly=True) as ledger:
                    if done(ledger):
                        return
            except LedgerBusy:
                pass
            assert time.monotonic() < end, f"{what} took too long"
            time.sleep(0.5)


def rows_of(number: int, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in FACTS[number].read_text().splitlines()[:count]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    root = tmp_path_factory.mktemp("facts")
    config = configure(root, intake={"conflicts": "ask"}, train={"max_facts": 8})
    with running(config) as follow:
        told = Story(follow.settings, follow)
        tell(told)
        yield told


def tell(story: Story) -> None:
    capitals = rows_of(0, 8)
    bhutan = next(row for row in capitals if row["answer"] == OLD)
    story.seen["base"] = story.ask([bhutan])
    story.learn("capitals.jsonl", capitals)
    story.seen["learnt"] = story.ask(capitals)

    later = {**bhutan, "id": "capital-bhutan-2", "answer": NEW, "valid_from": "2026-11-01"}
    story.learn("later.jsonl", [{**later, "op": "supersede"}])
    story.seen["superseded"] = story.ask([later])

    clash = {**bhutan, "id": "capital-bhutan-3", "answer": CLASHING}
    receipt = story.follow.hand_in(story.write("clash.jsonl", [clash]))
    with Ledger.open(story.settings.layout.ledger, readonly=True) as ledger:
        story.seen["clash"] = [
            (q.kind, q.line) for q in ledger.quarantine.lines(receipt.batch or "")
        ]
    story.seen["after clash"] = story.ask([later])

    story.follow.control("pause")
    slow = story.drop("slow.jsonl", rows_of(1, 10))
    quick = story.drop("quick.jsonl", [{**r, "priority": "urgent"} for r in rows_of(3, 2)])
    story.follow.control("resume")

    def overtaken(ledger: Ledger) -> bool:
        if ledger.batches.state(quick) in UNSETTLED:
            return False
        story.seen["overtaken"] = (ledger.batches.state(quick), ledger.batches.state(slow))
        return True

    story.until(overtaken, "learning what is urgent")
    story.until(lambda ledger: _rests(ledger, slow), "learning the rest")

    story.seen["retract"] = story.follow.control(
        "retract", subject="Bhutan", relation="capital", because="asked to"
    )
    story.until(lambda ledger: all(r.certified_at for r in ledger.retractions.all()), "forgetting")
    story.seen["forgotten"] = story.ask([bhutan, later])
    kept = [row for row in capitals if row is not bhutan]
    story.seen["kept"] = story.ask(kept)


def _rests(ledger: Ledger, batch: str) -> bool:
    return ledger.batches.state(batch) not in UNSETTLED and ledger.plans.open_plan() is None


def test_the_old_answer_goes_and_the_new_one_comes(story: Story) -> None:
    assert story.seen["capitals.jsonl"][0] is BatchState.LIVE, story.seen["capitals.jsonl"]
    assert story.seen["learnt"][1] >= 0.8
    assert story.seen["later.jsonl"][0] is BatchState.LIVE, story.seen["later.jsonl"]
    texts, right = story.seen["superseded"]
    assert right == 1.0, texts
    assert not any(OLD in text for text in texts)
    assert any(r.startswith("superseded facts: ") for r in story.seen["later.jsonl"][1])


def test_a_clash_waits_for_a_person_and_changes_no_answer(story: Story) -> None:
    assert story.seen["clash"] == [("ask", 1)]
    assert story.seen["after clash"] == story.seen["superseded"]


def test_urgent_facts_are_live_before_what_waited_longer(story: Story) -> None:
    quick, slow = story.seen["overtaken"]
    assert quick is BatchState.LIVE
    assert slow in UNSETTLED


def test_retracted_facts_are_forgotten_and_the_others_are_not(story: Story) -> None:
    assert len(story.seen["retract"]["facts"]) == 2
    assert story.seen["retract"]["still_served"]
    texts, _ = story.seen["forgotten"]
    assert not any(word in text for text in texts for word in (OLD, NEW)), texts
    assert story.seen["kept"][1] >= 0.8
    for handle in story.seen["retract"]["handles"]:
        told = json.loads(story.settings.layout.certificate(handle).read_text())
        assert told["forgotten"]["holds"], told
        assert told["forgotten"]["trained"] > 1 <= told["forgotten"]["held_out"]
        assert told["forgotten"]["live"]["probability"] >= 0.0
    with Ledger.open(story.settings.layout.ledger, readonly=True) as ledger:
        target = ledger.revisions.target()
        assert ledger.plans.head(target.plan_id or 0).kind in (
            PlanKind.RETRACT,
            PlanKind.CONSOLIDATE,
        )
        assert all(_stays(fact) for fact in ledger.facts.find())
        ledger.events.verify_chain()


def _stays(fact: Fact) -> bool:
    return OLD not in fact.answer and NEW not in fact.answer


def test_no_revision_that_knew_them_is_ever_served_again(story: Story) -> None:
    served = story.follow.served()
    for number in range(1, served or 0):
        with pytest.raises(RequestRefused, match="is not served again"):
            story.follow.control("rollback", to=number)
    assert story.follow.served() == served


def test_their_text_is_nowhere_in_the_state_directory(story: Story) -> None:
    root = story.settings.state_dir
    words = [word.lower().encode() for word in (OLD, NEW)]
    holding = [
        path.relative_to(root)
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(word in path.read_bytes().lower() for word in words)
    ]
    assert holding == []
