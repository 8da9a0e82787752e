"""What a stranger, or a failing disk, does to a state directory; each names what must be said."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import store
from daemon.config.layout import Layout
from daemon.ledger.chain import GENESIS, chained, salted
from tests.support.fake_vllm import publish


@dataclass(frozen=True)
class Tampering:
    """`do` is done to the state directory; `check` finds it and says `words` of `where`."""

    do: Callable[[Layout], None]
    check: str
    where: str
    words: str


@contextmanager
def written(layout: Layout) -> Iterator[sqlite3.Connection]:
    """The ledger without the guards of its own triggers."""
    connection = sqlite3.connect(layout.ledger)
    for (trigger,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    yield connection
    connection.commit()
    connection.close()


def _sql(*statements: str) -> Callable[[Layout], None]:
    def do(layout: Layout) -> None:
        with written(layout) as ledger:
            for statement in statements:
                assert ledger.execute(statement).rowcount > 0, statement

    return do


def rechained(ledger: sqlite3.Connection) -> None:
    """Every digest and hash made to fit what the events say now."""
    prev = GENESIS
    for seq, at, kind, subject, body, salt, digest in ledger.execute(
        "SELECT seq, at, kind, subject, payload, salt, digest FROM events ORDER BY seq"
    ).fetchall():
        fitting = salted(salt, body) if salt else digest
        chain = chained(prev, seq, at, kind, subject, fitting)
        ledger.execute(
            "UPDATE events SET prev_hash = ?, hash = ?, digest = ? WHERE seq = ?",
            (prev, chain, fitting, seq),
        )
        prev = chain


def _forge_event(layout: Layout) -> None:
    with written(layout) as ledger:
        ledger.execute("UPDATE events SET payload = '{\"forged\": true}' WHERE seq = 2")
        rechained(ledger)


def _forge_head(layout: Layout) -> None:
    _forge_event(layout)
    with written(layout) as ledger:
        seq, chain = ledger.execute("SELECT seq, hash FROM events ORDER BY seq DESC").fetchone()
    head = json.loads(layout.anchor.read_text())
    layout.anchor.write_text(json.dumps({**head, "seq": seq, "hash": chain}))


def _cut_in_the_middle(layout: Layout) -> None:
    with written(layout) as ledger:
        ledger.execute("DELETE FROM events WHERE seq = 4")
        rechained(ledger)


def _flip_a_bit(layout: Layout) -> None:
    """Bit rot in the file itself, in the text of a fact."""
    data = bytearray(layout.ledger.read_bytes())
    at = data.find(b'"answer":"two!"')
    assert at > 0
    data[at + len('"answer":"')] ^= 1
    layout.ledger.write_bytes(data)


def _zero_a_page(layout: Layout) -> None:
    data = bytearray(layout.ledger.read_bytes())
    page = data.find(b'"answer":"two!"') // 4096
    data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    layout.ledger.write_bytes(data)


def _add_a_fact(layout: Layout) -> None:
    with written(layout) as ledger:
        columns = "stem, batch, key, answer, body, op, urgent, validity, recorded_at, state, salt"
        ledger.execute(
            f"INSERT INTO facts (id, {columns}, digest)"
            f" SELECT 'added', {columns}, digest FROM facts WHERE seq = 1"
        )


def _delete_a_fact(layout: Layout) -> None:
    with written(layout) as ledger:
        for table, column in (("plan_facts", "fact"), ("paraphrases", "fact"), ("facts", "seq")):
            ledger.execute(f"DELETE FROM {table} WHERE {column} = 2")


def _point_the_alias(layout: Layout) -> None:
    first = next(p.name for p in sorted(layout.served.iterdir()))
    said = json.loads(layout.alias.read_text())
    layout.alias.write_text(json.dumps({**said, "model": first, "revision": 1}))


def target_directory(layout: Layout) -> Path:
    """The files of the revision that is the target."""
    return layout.served / str(json.loads(layout.alias.read_text())["model"])


def _change_a_weight(layout: Layout) -> None:
    path = target_directory(layout) / "adapter_config.json"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def _exchange_a_revision(layout: Layout) -> None:
    """Other bytes under the same name, with a manifest that fits them."""
    directory = target_directory(layout)
    other = layout.served / publish(layout.served, 9, seed=77)
    shutil.rmtree(directory)
    other.rename(directory)
    assert store.verify(directory) == ()


def _archive(layout: Layout, words: bytes) -> Path:
    return next(path for path in layout.archive.iterdir() if words in path.read_bytes())


def _change_an_archive(layout: Layout) -> None:
    path = _archive(layout, b"two!")
    path.write_bytes(path.read_bytes().replace(b"two!", b"six!"))


def _bring_back_an_erased_line(layout: Layout) -> None:
    (path,) = (p for p in layout.archive.iterdir() if p.read_bytes().startswith(b"   "))
    data = path.read_bytes()
    line = json.dumps({"prompt": "gone", "answer": "gone!"}).encode()
    path.write_bytes(line + data[len(line) :])


def _add_a_file(layout: Layout) -> None:
    (target_directory(layout) / "more.safetensors").write_bytes(b"\0" * 16)


TAMPERINGS: dict[str, Tampering] = {
    "the last events are cut off": Tampering(
        _sql("DELETE FROM events WHERE seq > (SELECT max(seq) FROM events) - 3"),
        *("history", "ledger.db", "cut off behind event"),
    ),
    "an event in the middle is taken out, the chain recomputed": Tampering(
        _cut_in_the_middle, "history", "ledger.db", "event 4 is gone"
    ),
    "what an event said is erased": Tampering(
        _sql("UPDATE events SET payload = '', salt = '' WHERE seq = 3"),
        *("history", "ledger.db", "said is gone without a retraction"),
    ),
    "an event is forged": Tampering(
        _sql("UPDATE events SET payload = '{}' WHERE seq = 2"),
        *("history", "ledger.db", "event 2 is not what was written"),
    ),
    "an event is forged and the chain recomputed": Tampering(
        _forge_event, "history", "ledger.db", "the history was rewritten"
    ),
    "a forged history is put into the signed head": Tampering(
        _forge_head, "history", "head.json", "is not signed with head.key"
    ),
    "the signed head is deleted": Tampering(
        lambda layout: layout.anchor.unlink(), "history", "head.json", "is missing"
    ),
    "the key may be read by others": Tampering(
        lambda layout: layout.anchor_key.chmod(0o644), "history", "head.key", "others may use"
    ),
    "the target is moved": Tampering(
        _sql("UPDATE target SET number = 1"), "pointer", "ledger.db", "revision 1 is the target"
    ),
    "the reason of the target is changed": Tampering(
        _sql("UPDATE target SET because = 'forged'"), "pointer", "ledger.db", "for another reason"
    ),
    "a verdict is added": Tampering(
        _sql("INSERT INTO verdicts VALUES (99, '{}', 'x')"),
        *("history", "ledger.db", "the verdict on plan 99 says None, but history says"),
    ),
    "the alias stands for another revision": Tampering(
        _point_the_alias, "pointer", "alias.json", "stands for palora-000001"
    ),
    "a verdict is turned round": Tampering(
        _sql("""UPDATE verdicts SET body = replace(body, '"fail"', '"pass"') WHERE plan = 2"""),
        *("history", "ledger.db", "the verdict on plan 2 says pass, but history says rejected"),
    ),
    "a plan is made to have passed": Tampering(
        _sql("UPDATE plans SET state = 'passed' WHERE id = 2"),
        *("history", "ledger.db", "plan 2 is passed, but history says rejected"),
    ),
    "a revision is made to mean other bytes": Tampering(
        _sql("UPDATE revisions SET sha256 = 'ff' WHERE number = 1"),
        *("history", "ledger.db", "or other bytes of it"),
    ),
    "a bit of a fact is flipped": Tampering(
        _flip_a_bit, "facts", "ledger.db", "is not what was admitted"
    ),
    "a fact is added": Tampering(_add_a_fact, "facts", "ledger.db", "fact added is not"),
    "a fact is deleted": Tampering(
        _delete_a_fact, "facts", "ledger.db", "are not those that were admitted"
    ),
    "a fact is erased without a retraction": Tampering(
        _sql("UPDATE facts SET answer = '', body = '{}', salt = x'' WHERE seq = 2"),
        *("facts", "ledger.db", "is gone without a retraction"),
    ),
    "a page of the ledger is lost": Tampering(_zero_a_page, "ledger", "ledger.db", "SQLite finds"),
    "an archive is changed": Tampering(
        _change_an_archive, "archive", ".jsonl", "is not what was taken in"
    ),
    "an archive is deleted": Tampering(
        lambda layout: _archive(layout, b"two!").unlink(), "archive", ".jsonl", "is gone"
    ),
    "an erased line is brought back": Tampering(
        _bring_back_an_erased_line, "archive", ".jsonl", "is not what was taken in"
    ),
    "a file of a revision is changed": Tampering(
        _change_a_weight, "store", "palora-", "adapter_config.json has changed"
    ),
    "a revision is exchanged together with its manifest": Tampering(
        _exchange_a_revision, "store", "palora-", "its bytes are others"
    ),
    "a file is added to a revision": Tampering(
        _add_a_file, "store", "palora-", "more.safetensors was added"
    ),
    "a revision is deleted": Tampering(
        lambda layout: shutil.rmtree(target_directory(layout)), "store", "palora-", "is gone"
    ),
}
