"""The running daemon tells a webhook what happens, also when it is killed in between."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.base import faults
from daemon.base.control import ask
from daemon.ledger.ledger import Ledger
from policies.errors import RequestRefused
from tests.support.crashing import Forked, Site
from tests.support.receiver import Receiver, read_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Place:
    """A daemon with a webhook, and its receiver."""

    def __init__(self, root: Path, **notify: object) -> None:
        self.receiver = Receiver()
        self.site = Site(root)
        changed = {"webhook": self.receiver.url, "timeout_s": 0.5, **notify}
        settings = self.site.settings
        self.site.settings = settings.model_copy(
            update={"notify": settings.notify.model_copy(update=changed)}
        )

    def up(self) -> None:
        self.site.start()
        self.site.until(self.site.layout.control_socket.exists, "starting")

    def tell(self, command: str, **values: object) -> str:
        return str(ask(self.site.layout.control_socket, command, **values)["line"])

    def has(self, *types: str) -> None:
        """Wait until exactly these were told, each event once or more, and check what holds."""
        self.site.until(lambda: self.receiver.types() == [*types], f"telling {types}")
        self.receiver.held(self.key)

    @property
    def key(self) -> bytes:
        return read_key(self.site.layout.webhook_key.read_text())

    def outbox(self) -> tuple[int, int]:
        with self.site.reading() as ledger:
            return ledger.outbox.counts()

    def close(self) -> None:
        self.site.close()
        self.receiver.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "site")
    yield made
    made.close()


def test_a_batch_a_rollback_and_a_retraction_are_told_in_order(place: Place) -> None:
    place.up()
    place.site.drop("a.jsonl", ["one"])
    place.site.drop("b.jsonl", ["false"])
    place.site.drop("c.jsonl", ["unsure"])
    place.has("plan.live", "plan.rejected", "plan.inconclusive")
    place.tell("rollback", because="a test")
    place.has("plan.live", "plan.rejected", "plan.inconclusive", "target.moved")
    first = place.receiver.first()[0].told["data"]
    assert [batch["name"] for batch in first["batches"]] == ["a.jsonl"]
    place.site.until(lambda: place.outbox() == (0, 0), "emptying the outbox")
    assert stat.S_IMODE(place.site.layout.webhook_key.stat().st_mode) == 0o600


def test_the_test_says_whether_the_receiver_took_it(place: Place) -> None:
    place.up()
    assert "was taken by the receiver" in place.tell("notify_test")
    place.has("webhook.test")
    place.receiver.faults = ["500"]
    with pytest.raises(RequestRefused, match="not taken: answers 500; 1 notifications wait"):
        place.tell("notify_test")
    place.receiver.close()
    with pytest.raises(RequestRefused, match="not taken: Connection refused; 2 notif"):
        place.tell("notify_test")
    place.receiver.open()
    assert "was taken by the receiver" in place.tell("notify_test"), "by what it says now"
    place.receiver.close()
    with pytest.raises(RequestRefused):
        place.tell("notify_test")
    trouble = ask(place.site.layout.control_socket, "status")["trouble"]
    assert any("Connection refused; 1 notifications wait, tried again" in line for line in trouble)


def test_dead_letters_are_sent_again_when_asked(tmp_path: Path) -> None:
    place = Place(tmp_path / "site", dead_after_s=0.5)
    try:
        place.receiver.faults = ["500"] * 2
        place.up()
        with pytest.raises(RequestRefused):
            place.tell("notify_test")
        place.site.until(lambda: place.outbox() == (0, 1), "giving up")
        assert "1 notifications are sent again" in place.tell("notify_retry")
        place.site.until(lambda: place.outbox() == (0, 0), "sending it again")
        place.has("webhook.test")
    finally:
        place.close()


def test_trouble_that_lasts_and_its_end_are_told_over_a_restart(tmp_path: Path) -> None:
    place = Place(tmp_path / "site", trouble_after_s=0.0)
    inbox = place.site.layout.inbox
    try:
        place.up()
        place.site.until(inbox.exists, "making the inbox")
        time.sleep(0.1)
        inbox.rename(tmp_path / "away")
        place.site.until(lambda: "trouble.began" in place.receiver.types(), "telling trouble")
        assert str(inbox) in place.receiver.first()[0].told["data"]["line"]
        assert place.site.stop() == 0
        (tmp_path / "away").rename(inbox)
        place.up()
        place.site.until(lambda: "trouble.ended" in place.receiver.types(), "telling its end")
        place.receiver.held(place.key)
    finally:
        place.close()


def test_a_receiver_that_hangs_holds_up_nothing(place: Place) -> None:
    place.receiver.faults = ["hang"] * 100
    place.up()
    place.site.drop("a.jsonl", ["one"])
    began = time.monotonic()
    place.tell("pause")
    place.tell("resume")
    assert time.monotonic() - began < 1.0
    place.site.drop("b.jsonl", ["two"])
    assert place.outbox()[0] == 2
    assert place.site.stop() == 0


@pytest.mark.parametrize(
    "point", ["promote:within", "promote:after", "notify:posted", "notify:delivered:within"]
)
def test_killed_before_or_after_delivery_every_event_arrives(point: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "site")
    try:
        place.receiver.faults = ["500"]
        place.site.die_at(point)
        place.site.drop("a.jsonl", ["one"])
        place.site.until(lambda: place.site.died(point), f"dying at {point}")
        place.site.drop("b.jsonl", ["false"])
        place.has("plan.live", "plan.rejected")
        place.site.until(lambda: place.outbox() == (0, 0), "emptying the outbox")
        posts = [post for post in place.receiver.posts if post.told["type"] == "plan.live"]
        assert (len(posts) > 2) == point.startswith("notify")
    finally:
        place.close()


Change = Callable[[Ledger], object]
SEQ = 2
STEPS: dict[str, Change] = {
    "test": lambda ledger: ledger.outbox.test(NOW),
    "delivered": lambda ledger: ledger.outbox.delivered(SEQ),
    "undelivered": lambda ledger: ledger.outbox.undelivered(SEQ, "answers 500", 9.0, 9.0),
    "retry": lambda ledger: ledger.outbox.retry(),
    "discard": lambda ledger: ledger.outbox.discard(),
    "trouble": lambda ledger: ledger.troubles.began("another", "the disk is full", NOW),
    "reminder": lambda ledger: ledger.troubles.lasts("one", "the disk is full", NOW),
    "ended": lambda ledger: ledger.troubles.ended("one", "the disk is full", NOW),
}


@pytest.mark.parametrize("phase", faults.PHASES)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_the_outbox_it_is_done_whole_or_not_at_all(
    step: str, phase: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"

    def look() -> object:
        with Ledger.open(path) as ledger:
            ledger.events.verify_chain()
            outbox = ledger.db.rows("SELECT * FROM outbox")
            return outbox, ledger.troubles.open(), ledger.events.head()

    with Ledger.open(path) as ledger:
        ledger.troubles.began("one", "the disk is full", NOW)
        ledger.outbox.test(NOW)
        if step in ("retry", "discard"):
            ledger.outbox.undelivered(SEQ, "answers 500", 9.0, 9.0)
    before = look()

    def once() -> int:
        with Ledger.open(path) as ledger:
            STEPS[step](ledger)
        return 0

    died = Forked(once, {faults.VARIABLE: f"notify:{step}:{phase}"}, tmp_path / "log")
    assert died.wait() == -9
    assert (look() != before) == (phase == "after")
