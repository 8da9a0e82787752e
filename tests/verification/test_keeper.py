"""The signed head: made before history begins, moved with it, never over a changed one."""

from __future__ import annotations

import asyncio
import errno
import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from daemon.config.layout import Layout
from daemon.config.verification import AnchorSettings
from daemon.ledger.ledger import Ledger
from daemon.verification import anchor
from daemon.verification.anchor import AnchorBroken
from daemon.verification.findings import Inspection
from daemon.verification.history import check_outside
from daemon.verification.keeper import OUTSIDE_EVERY_S, HistoryChanged, Keeper, NotSent, NotSigned
from tests.support.tampering import rechained, written

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


class Place:
    """A ledger, its keeper, a clock, and a webhook that remembers or refuses."""

    def __init__(self, root: Path, *, webhook: bool = False) -> None:
        self.layout = Layout(root)
        self.file = root / "elsewhere" / "heads.jsonl"
        self.file.parent.mkdir()
        self.settings = AnchorSettings(
            file=self.file, webhook="https://example.org/heads" if webhook else ""
        )
        self.seconds, self.status = 0.0, 200
        self.posted: list[dict[str, object]] = []
        self.ledger = Ledger.open(self.layout.ledger)
        self.keeper = self.started()

    def started(self) -> Keeper:
        """The keeper of a daemon that starts now."""
        made = Keeper(
            self.ledger,
            self.layout,
            self.settings,
            lambda: self.seconds,
            httpx.MockTransport(self._heard),
        )
        made.begin(NOW)
        return made

    def _heard(self, request: httpx.Request) -> httpx.Response:
        if self.status == 200:
            self.posted.append(json.loads(request.content))
        return httpx.Response(self.status)

    def happens(self, count: int = 1) -> None:
        for number in range(count):
            self.ledger.events.record("test", "subject", {"n": number}, NOW)

    def send(self, *, at_once: bool = True) -> None:
        asyncio.run(self.keeper.send(at_once=at_once))

    def outside(self) -> list[str]:
        """What a comparison with the file elsewhere finds."""
        inspection = Inspection()
        check_outside(self.ledger, self.layout, self.file, inspection)
        return [finding.what for finding in inspection.report().findings]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, webhook=True)
    yield made
    made.ledger.close()


def test_it_is_there_before_the_first_event_and_only_its_owner_reads_the_key(place: Place) -> None:
    assert anchor.read(place.layout).seq == 0
    assert stat.S_IMODE(place.layout.anchor_key.stat().st_mode) == 0o600
    place.happens(3)
    place.keeper.sign(NOW)
    assert anchor.read(place.layout).seq == 3


def test_a_start_goes_on_from_what_was_signed(place: Place) -> None:
    place.happens(2)
    place.keeper.sign(NOW)
    place.happens(2)  # killed before these were signed
    again = place.started()
    again.sign(NOW)
    assert anchor.read(place.layout).seq == 4


@pytest.mark.parametrize("running", [True, False])
def test_over_a_cut_off_history_it_is_not_moved_on(place: Place, running: bool) -> None:
    place.happens(5)
    place.keeper.sign(NOW)
    with written(place.layout) as raw:
        raw.execute("DELETE FROM events WHERE seq > 3")
    keeper = place.keeper if running else place.started()
    place.happens(3)
    with pytest.raises(HistoryChanged, match=r"was rewritten: event 5 .*palorad verify --accept"):
        keeper.sign(NOW)
    assert anchor.read(place.layout).seq == 5


def test_over_a_rewritten_history_it_is_not_moved_on(place: Place) -> None:
    place.happens(5)
    place.keeper.sign(NOW)
    with written(place.layout) as raw:
        raw.execute("UPDATE events SET kind = 'forged' WHERE seq = 2")
        rechained(raw)
    assert place.ledger.events.verify_chain() == 5
    with pytest.raises(HistoryChanged, match="the history was rewritten"):
        place.started().sign(NOW)


def test_a_lost_head_is_not_made_again_by_itself(place: Place) -> None:
    place.happens(1)
    place.layout.anchor.unlink()
    with pytest.raises(AnchorBroken, match="the signed head of the history is missing"):
        place.started().sign(NOW)
    assert not place.layout.anchor.exists()


def test_a_person_can_accept_a_history_and_it_is_recorded(place: Place) -> None:
    place.happens(5)
    place.keeper.sign(NOW)
    place.send()
    with written(place.layout) as raw:
        raw.execute("DELETE FROM events WHERE seq > 2")
    assert place.outside() == ["the history was cut off behind event 2: event 5 had been signed"]
    keeper = place.keeper = place.started()
    with pytest.raises(HistoryChanged):
        keeper.sign(NOW)
    assert keeper.accept("restored from Sunday's backup", NOW) == 3
    keeper.sign(NOW)
    place.send()
    assert place.outside() == []
    (event,) = place.ledger.events.latest(1)
    assert event.payload == {"because": "restored from Sunday's backup"}
    assert "Sunday" in place.file.read_text().splitlines()[-1]


def test_a_full_disk_lets_the_history_wait_for_its_signature(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.happens(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(anchor, "write", full)
        with pytest.raises(NotSigned, match=r"head\.json: No space left .* it is tried again"):
            place.keeper.sign(NOW)
    place.keeper.sign(NOW)
    assert anchor.read(place.layout).seq == 1


def test_a_new_history_does_not_begin_unsigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(anchor, "write", full)
    with pytest.raises(OSError, match="No space left"):
        Place(tmp_path)


# --- elsewhere -------------------------------------------------------------------------------


def test_heads_go_to_the_file_and_the_webhook_and_are_compared_with(place: Place) -> None:
    for _ in range(3):
        place.happens(2)
        place.keeper.sign(NOW)
        place.send()
    place.send()
    assert [json.loads(line)["seq"] for line in place.file.read_text().splitlines()] == [2, 4, 6]
    assert [head["seq"] for head in place.posted] == [2, 4, 6]
    assert place.outside() == []
    with written(place.layout) as raw:
        raw.execute("UPDATE events SET kind = 'forged' WHERE seq = 1")
        rechained(raw)
    # Whoever has the state directory has the key, too: only what is elsewhere tells.
    head = anchor.Head(seq=6, hash=place.ledger.events.head()[1], at="2026")
    anchor.write(place.layout, anchor.signed(anchor.read_key(place.layout), head))
    place.started().sign(NOW)
    assert len(place.outside()) == 3


def test_heads_that_were_not_signed_here_are_named(place: Place) -> None:
    place.happens(1)
    place.keeper.sign(NOW)
    place.send()
    line = json.loads(place.file.read_text())
    place.file.write_text(json.dumps({**line, "mac": "0" * 64}) + "\n" + '{"seq": 1, "ha')
    assert place.outside() == ["the head of event 1 is not signed with head.key"]


def test_they_go_out_now_and_then_and_a_line_that_was_torn_is_ended(place: Place) -> None:
    place.happens(1)
    place.keeper.sign(NOW)
    place.send(at_once=False)
    with place.file.open("a") as torn:
        torn.write('{"seq": 2, "ha')
    place.happens(1)
    place.keeper.sign(NOW)
    place.send(at_once=False)
    assert len(place.posted) == 1
    place.seconds += OUTSIDE_EVERY_S
    place.send(at_once=False)
    assert [head["seq"] for head in place.posted] == [1, 2]
    assert json.loads(place.file.read_text().splitlines()[-1])["seq"] == 2


def test_what_does_not_get_out_is_said_and_tried_again(place: Place) -> None:
    place.happens(1)
    place.keeper.sign(NOW)
    place.status = 503
    with pytest.raises(NotSent, match="answers 503"):
        place.send()
    place.status = 200
    place.send()
    assert len(place.posted) == 1
    assert len(place.file.read_text().splitlines()) == 1
    place.happens(1)
    place.keeper.sign(NOW)
    place.file.unlink()
    place.file.parent.rmdir()
    with pytest.raises(NotSent, match=r"anchor.file .*heads.jsonl: No such file"):
        place.send()
