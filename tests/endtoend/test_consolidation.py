"""One adapter takes the place of others, or of one that has doubled, and knows all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from daemon.ledger.ledger import Ledger
from demo.ask import DemoQuestion, Endpoint, rate
from demo.follow import Follow
from demo.setup import ROOT
from policies.gate.grading import normalised
from policies.records import BatchState, PlanKind, PlanState
from tests.support.real import NEEDS_MODEL, configure, running

FILES = sorted((ROOT / "examples" / "facts").glob("*.jsonl"))[:6]
FACTS = 10
RANK, BUDGET = 8, 40

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(1500),
    NEEDS_MODEL,
]


def learn(follow: Follow, file: Path, folder: Path) -> list[DemoQuestion]:
    """Drop some facts of a file and wait until they are live; held-out questions about them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()[:FACTS]]
    short = folder / file.name
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settled = follow.until_settled(follow.drop(short), file.name)
    assert settled.state is BatchState.LIVE, (file.name, settled.reasons)
    return [DemoQuestion(p, file.stem, p, r["answer"]) for r in rows for p in r["eval_prompts"]]


def test_an_adapter_that_has_doubled_is_begun_anew(tmp_path: Path) -> None:
    config = configure(tmp_path, train={"retrain_at": 2 * FACTS})
    with running(config) as follow:
        asked = [question for file in FILES[:2] for question in learn(follow, file, tmp_path)]
        while follow.target() < 3:
            time.sleep(0.5)
        follow.until_revision(3)
        settings = follow.settings
        with Ledger.open(settings.layout.ledger, readonly=True) as ledger:
            newest, former, _ = ledger.plans.heads({PlanState.LIVE})
            assert newest.kind is PlanKind.CONSOLIDATE
            assert newest.replaces == (former.adapter,)
            assert ledger.revisions.target().lineage == (newest.adapter,)
        answers = Endpoint(settings.server.urls[0], settings.model.alias).ask(asked, normalised, 24)
    assert rate(answers) >= 0.9


def test_a_sixth_file_is_learnt_by_one_adapter_in_place_of_five(tmp_path: Path) -> None:
    config = configure(tmp_path, train={"rank": RANK, "rank_budget": BUDGET, "lineage": "stack"})
    asked = []
    with running(config) as follow:
        settings = follow.settings
        for file in FILES:
            asked += learn(follow, file, tmp_path)
        with Ledger.open(settings.layout.ledger, readonly=True) as ledger:
            heads, target = ledger.plans.heads(), ledger.revisions.target()
        assert PlanKind.CONSOLIDATE in {head.kind for head in heads}
        assert any(head.state is PlanState.LIVE for head in heads)
        assert len(target.lineage) < len(FILES)
        endpoint = Endpoint(settings.server.urls[0], settings.model.alias)
        answers = endpoint.ask(asked, normalised, 24)
    by_file = {file.stem: round(rate(answers, file.stem), 3) for file in FILES}
    assert rate(answers) >= 0.9, by_file
