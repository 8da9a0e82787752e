"""A sixth file exceeds the rank budget: one adapter takes the place of five, and knows it all."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.demo_ask import Endpoint, Question, rate
from daemon.demo_follow import Follow
from daemon.demo_setup import MODEL, ROOT, DaemonProcess, DemoOptions, dump, write_config
from daemon.ledger import Ledger
from daemon.settings import Settings
from policies.grading import normalised
from policies.records import BatchState, PlanKind, PlanState

FILES = sorted((ROOT / "examples" / "facts").glob("*.jsonl"))[:6]
FACTS = 10
RANK, BUDGET = 8, 40

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not (MODEL / "config.json").exists(), reason="palorad-mini is not here"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = write_config(tmp_path, DemoOptions())
    tree = tomllib.loads(path.read_text())
    tree["gate"]["preset"] = "fast"
    tree["intake"]["stable_s"] = 0.1
    tree["train"] |= {"rank": RANK, "rank_budget": BUDGET}
    path.write_text(dump(tree))
    return path


@pytest.fixture
def daemon(config: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(config, config.parent / "daemon.log")
    yield process
    process.stop()


def test_a_sixth_file_is_learnt_by_one_adapter_in_place_of_five(
    config: Path, daemon: DaemonProcess
) -> None:
    settings = Settings.load(config)
    follow = Follow(settings, daemon)
    follow.until_serving()
    asked = []
    for file in FILES:
        rows = [json.loads(line) for line in file.read_text().splitlines()[:FACTS]]
        asked += [Question(p, file.stem, p, r["answer"]) for r in rows for p in r["eval_prompts"]]
        short = config.parent / file.name
        short.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settled = follow.until_settled(follow.drop(short), file.name)
        assert settled.state is BatchState.LIVE, (file.name, settled.reasons)

    with Ledger.open(settings.layout.ledger, readonly=True) as ledger:
        live = [h for h in ledger.heads() if h.state is PlanState.LIVE]
        kinds = [h.kind for h in ledger.heads()]
        desired = ledger.desired()
    assert PlanKind.CONSOLIDATE in kinds
    assert len(desired.lineage) < len(FILES)
    assert live
    endpoint = Endpoint(settings.server.urls[0], settings.model.alias)
    answers = endpoint.ask(asked, normalised, 24)
    by_file = {file.stem: round(rate(answers, file.stem), 3) for file in FILES}
    assert rate(answers) >= 0.9, by_file
