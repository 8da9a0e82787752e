"""What the alias may stand for, by history, while it has not followed the target yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.serving import pointer
from daemon.serving.pointer import Pointer
from daemon.verification.confirming import Confirmed
from daemon.verification.files import check_alias
from daemon.verification.findings import Inspection
from tests.keeping.test_pruning import LATER, Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, revisions=3)
    switched(made, 3)
    yield made
    made.ledger.close()


def name(place: Place, number: int) -> str:
    return place.ledger.revisions.get(number).served_name if number else "base"


def switched(place: Place, number: int) -> None:
    """The alias follows, and history tells it."""
    model = name(place, number)
    pointer.write(place.layout.alias, Pointer(alias="live", model=model, revision=number))
    said = {"steps": [f"alias live answers from {model}", f"retired x on {model}"]}
    place.ledger.events.record("served", f"revision:{number}", said, LATER)


def found(place: Place) -> list[str]:
    inspection = Inspection()
    confirmed = Confirmed(place.ledger, place.layout.ledger, running=False)
    check_alias(place.layout, "live", "base", confirmed, inspection)
    return [finding.what for finding in inspection.report().findings]


def test_an_alias_that_could_not_follow_two_rollbacks_yet_is_no_finding(place: Place) -> None:
    """No replica answers meanwhile, for instance."""
    for to in (1, 2, 0):
        place.ledger.revisions.rollback(to, "a test", LATER)
    assert found(place) == []
    switched(place, 0)
    assert found(place) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_alias_that_stands_for_what_it_left_is_a_finding(place: Place, number: int) -> None:
    model = name(place, number)
    pointer.write(place.layout.alias, Pointer(alias="live", model=model, revision=number))
    assert found(place) == [
        f"stands for {model} (revision {number}), the target is {name(place, 3)}"
    ]
