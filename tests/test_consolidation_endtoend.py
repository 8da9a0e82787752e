"""A sixth file exceeds the rank budget: one adapter takes the place of five, and knows it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.demo_ask import Endpoint, Question, rate
from daemon.demo_setup import ROOT
from daemon.ledger import Ledger
from policies.grading import normalised
from policies.records import BatchState, PlanKind, PlanState
from tests.real import NEEDS_MODEL, configure, running

FILES = sorted((ROOT / "examples" / "facts").glob("*.jsonl"))[:6]
FACTS = 10
RANK, BUDGET = 8, 40

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(1500),
    NEEDS_MODEL,
]


def test_a_sixth_file_is_learnt_by_one_adapter_in_place_of_five(tmp_path: Path) -> None:
    config = configure(tmp_path, train={"rank": RANK, "rank_budget": BUDGET, "lineage": "stack"})
    asked = []
    with running(config) as follow:
        settings = follow.settings
        for file in FILES:
            rows = [json.loads(line) for line in file.read_text().splitlines()[:FACTS]]
            asked += [
                Question(p, file.stem, p, r["answer"]) for r in rows for p in r["eval_prompts"]
            ]
            short = tmp_path / file.name
            short.write_text("".join(json.dumps(row) + "\n" for row in rows))
            settled = follow.until_settled(follow.drop(short), file.name)
            assert settled.state is BatchState.LIVE, (file.name, settled.reasons)

        with Ledger.open(settings.layout.ledger, readonly=True) as ledger:
            heads, desired = ledger.heads(), ledger.desired()
        assert PlanKind.CONSOLIDATE in {head.kind for head in heads}
        assert any(head.state is PlanState.LIVE for head in heads)
        assert len(desired.lineage) < len(FILES)
        endpoint = Endpoint(settings.server.urls[0], settings.model.alias)
        answers = endpoint.ask(asked, normalised, 24)
    by_file = {file.stem: round(rate(answers, file.stem), 3) for file in FILES}
    assert rate(answers) >= 0.9, by_file
