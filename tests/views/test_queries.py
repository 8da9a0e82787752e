"""What a page asks of the ledger does not grow with what it shows: each query may have to wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.views.capacity import capacity_view
from daemon.views.now import now_view
from daemon.views.retention import retention_view
from daemon.views.stories import facts_view
from daemon.views.verdicts import plan_view, plans_view, revision_page
from policies.records import PlanKind
from tests.ledger.test_idle import NOW, learn

FEW: Final = 3
MANY: Final = 30


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as made:
        made.revisions.ensure_base("base", NOW)
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"state_dir": tmp_path}).rooted(tmp_path)


@pytest.mark.parametrize("view", ["now", "plans", "facts", "retention", "capacity", "revision"])
def test_a_page_asks_as_often_with_many_rows_as_with_few(
    ledger: Ledger, settings: Settings, view: str
) -> None:
    views: dict[str, Callable[[], object]] = {
        "now": lambda: now_view(ledger, None, NOW),
        "plans": lambda: plans_view(ledger),
        "facts": lambda: facts_view(ledger, ""),
        "retention": lambda: retention_view(ledger, {}),
        "capacity": lambda: capacity_view(ledger, settings, ()),
        "revision": lambda: revision_page(
            ledger, settings.layout, ledger.revisions.target().number
        ),
    }
    asked = []
    for last in (FEW, MANY):
        for number in range(last - FEW + 1 if last == FEW else FEW + 1, last + 1):
            learn(ledger, number)
        asked.append(queries(ledger, views[view]))
    # A verdict that has not been shown before is counted once, whatever the page.
    once = MANY - FEW if view == "retention" else 0
    assert asked[1] <= asked[0] + once


def queries(ledger: Ledger, work: Callable[[], object]) -> int:
    asked: list[str] = []
    ledger.db.connection.set_trace_callback(asked.append)
    work()
    ledger.db.connection.set_trace_callback(None)
    assert asked
    return len(asked)


def test_a_rebuild_of_all_batches_is_shown_with_the_first_of_them(ledger: Ledger) -> None:
    for number in range(1, 61):
        learn(ledger, number)
    target = ledger.revisions.target()
    made = ledger.plans.create(
        PlanKind.CONSOLIDATE,
        parent=target.number,
        replaces=target.lineage,
        rebuilt=60,
        batches=range(1, 61),
        rank=4,
        seed=0,
        because="a test",
        now=NOW,
    )
    assert len(plan_view(ledger, made.id).batches) == 50
    assert "b60" not in plans_view(ledger).model_dump_json(), "a list has no batches at all"
