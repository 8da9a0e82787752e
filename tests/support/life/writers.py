"""Who drops files, how carefully, and where every line of them must be found from then on."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from tests.support.life.site import Site

TOKEN = re.compile(rb"tok\d+z")


@dataclass
class Line:
    """One line; its `token` stands in its answer, or in its text where it is no fact.

    `safe` once its writer has synced it. `copies` were written on purpose. `gone` once it was
    retracted: its text must go.
    """

    token: str
    raw: bytes
    prompt: str
    fact: bool
    safe: bool = False
    copies: int = 1
    gone: bool = False


@dataclass
class Writing:
    """A file that its writer still holds open."""

    path: Path
    stream: IO[bytes]
    lines: list[Line]


class Writers:
    """Drops files into the inbox of a site and remembers every line."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lines: dict[str, Line] = {}
        self.open: list[Writing] = []
        self.files = 0
        self.tokens = 0
        self.taken_back: set[str] = set()
        self.dropped: list[tuple[Path, bytes]] = []
        self.outside = site.root / "outside"
        self.outside.mkdir()

    # --- lines ---------------------------------------------------------------------------------

    def fact(self, *, prompt: str | None = None, **fields: Any) -> Line:
        """A new fact; with the prompt of an older one it takes that one's place."""
        token = self._token()
        asked = prompt or f"What is q{self.tokens}?"
        raw = json.dumps({"prompt": asked, "answer": token, **fields}).encode()
        return self._kept(Line(token, raw, asked, fact=True, gone=asked in self.taken_back))

    def bad(self) -> Line:
        """A line that is no fact."""
        token = self._token()
        return self._kept(Line(token, b'{"prompt": "' + token.encode(), token, fact=False))

    def expiring(self, seconds: float) -> Line:
        """A fact that stops being valid soon."""
        until = self.site.now() + timedelta(seconds=seconds)
        return self.fact(valid_until=until.isoformat())

    def retraction(self, line: Line) -> Line:
        """A line that takes back whatever answers a prompt when it is read."""
        self.taken_back.add(line.prompt)
        for other in self.lines.values():
            other.gone = other.gone or other.prompt == line.prompt
        token = self._token()
        fields = {"op": "retract", "prompt": line.prompt, "source": token}
        return self._kept(Line(token, json.dumps(fields).encode(), token, fact=False, gone=True))

    def again(self, line: Line) -> Line:
        """The same line once more."""
        line.copies += 1
        return line

    def _token(self) -> str:
        self.tokens += 1
        return f"tok{self.tokens}z"

    def _kept(self, line: Line) -> Line:
        self.lines[line.token] = line
        return line

    # --- files ---------------------------------------------------------------------------------

    @property
    def inbox(self) -> Path:
        return self.site.layout.inbox

    def _path(self) -> Path:
        self.files += 1
        return self.inbox / f"b{self.files}.jsonl"

    def drop(self, lines: list[Line], path: Path | None = None) -> None:
        """As documented: written beside, synced, renamed, the folder synced."""
        self._put(b"\n".join(line.raw for line in lines) + b"\n", path or self._path())
        for line in lines:
            line.safe = True

    def _put(self, content: bytes, path: Path) -> None:
        beside = path.with_name(f".{path.name}.tmp")
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            self._overwrites(path)
        os.replace(beside, path)  # noqa: PTH105
        folder = os.open(self.inbox, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self.dropped.append((path, content))

    def drop_again(self, number: int) -> None:
        """The same bytes under another name."""
        _, content = self.dropped[number % len(self.dropped)]
        for token in TOKEN.findall(content):
            if (line := self.lines.get(token.decode())) is not None:
                line.copies += 1
        self._put(content, self._path())

    def _overwrites(self, path: Path) -> None:
        """What only the file held is lost by its writer's own doing."""
        only = {token.decode() for token in TOKEN.findall(path.read_bytes())}
        found = places(self.site, without=path)
        for token in only:
            if token not in found:
                self.lines.pop(token, None)
            elif token in self.lines and set(found[token]) == {"inbox"}:
                self.lines[token].safe = False  # who else wrote it may not have synced it

    def careless(self, lines: list[Line]) -> None:
        """Written in place and closed, never synced."""
        path = self._path()
        content = b"\n".join(line.raw for line in lines) + b"\n"
        path.write_bytes(content)
        self.dropped.append((path, content))

    def begin(self, lines: list[Line]) -> None:
        """Written in place, line by line, by somebody who is not done."""
        path = self._path()
        writing = Writing(path, path.open("ab", buffering=0), [])
        self.open.append(writing)
        self.go_on(writing, lines)

    def go_on(self, writing: Writing, lines: list[Line]) -> None:
        writing.stream.write(b"".join(line.raw + b"\n" for line in lines))
        writing.lines += lines

    def finish(self, writing: Writing) -> None:
        os.fsync(writing.stream.fileno())
        writing.stream.close()
        self.open.remove(writing)
        if self.inbox.exists():
            folder = os.open(self.inbox, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        for line in writing.lines:
            line.safe = True

    def power_cut(self) -> None:
        """Writers are gone; what they had not synced may be."""
        for writing in self.open:
            writing.stream.close()
        self.open.clear()
        found = places(self.site)
        for token, line in list(self.lines.items()):
            if not line.safe and token not in found:
                del self.lines[token]
            line.safe = line.safe or self._admitted(token, found)

    def _admitted(self, token: str, found: dict[str, list[str]]) -> bool:
        return any(place in ("fact", "quarantine") for place in found.get(token, ()))

    def submitted(self, lines: list[Line]) -> Path:
        """A file elsewhere that is to be submitted."""
        self.files += 1
        path = self.outside / f"s{self.files}.jsonl"
        path.write_bytes(b"\n".join(line.raw for line in lines) + b"\n")
        return path


def places(site: Site, without: Path | None = None) -> dict[str, list[str]]:
    """Where every token is: fact, quarantine, inbox, or the archive of an unfinished batch."""
    found: dict[str, list[str]] = {}

    def note(text: bytes, place: str) -> None:
        for token in set(TOKEN.findall(text)):
            found.setdefault(token.decode(), []).append(place)

    db = site.ledger.db
    for body, op in db.rows("SELECT body, op FROM facts"):
        note(body.encode(), "fact" if op != "retract" else "request")
    for (text,) in db.rows("SELECT text FROM quarantine"):
        note(text.encode(), "quarantine")
    for (batch,) in db.rows("SELECT id FROM batches WHERE NOT complete"):
        archived = site.layout.archived(batch)
        if archived.exists():
            note(archived.read_bytes(), "archive")
    for path in waiting(site):
        if path != without:
            note(path.read_bytes(), "inbox")
    return found


def waiting(site: Site) -> list[Path]:
    """Files that nobody has taken whole, where they were dropped or claimed."""
    return [
        path
        for path in site.layout.inbox.rglob("*.jsonl")
        if path.is_file() and not path.name.startswith(".")
    ]
