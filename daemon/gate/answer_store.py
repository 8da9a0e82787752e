"""What each model answered to each suite: append-only, kept for ever."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Final

from adapters import files
from daemon.gate.messages import SuiteCard
from policies.errors import PaloradError
from policies.gate.records import ItemResult

_CARD: Final = ".suite.json"
_NAME: Final = re.compile(r"[0-9A-Za-z_-]{8,128}")


class DamagedAnswers(PaloradError, ValueError):
    """A line within a file of answers that is no answer."""

    final = True


class AnswerStore:
    """Answers under `root/<model-sha12>/<suite-fingerprint>.jsonl`, one line an item.

    A model is named by the hash of the bytes that were served, a suite by its fingerprint, so
    nothing here ever becomes stale: a changed suite or model has another file. One process
    writes a file at a time (the evaluation child holds its work directory's lock).
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str, fingerprint: str) -> Path:
        """Where the answers of one model to one suite lie."""
        if not _NAME.fullmatch(sha256) or not _NAME.fullmatch(fingerprint):
            raise ValueError(f"not a content hash: {sha256!r}, {fingerprint!r}")
        return self._root / sha256[:12] / f"{fingerprint}.jsonl"

    def read(self, sha256: str, fingerprint: str) -> Mapping[str, ItemResult]:
        """Every answer stored, by item; a last line torn by a crash does not count."""
        path = self.path(sha256, fingerprint)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}
        whole = data[: data.rfind(b"\n") + 1]
        found: dict[str, ItemResult] = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            result = _parse(line, path, number)
            found.setdefault(result.id, result)
        return found

    def card(self, sha256: str, name: str) -> SuiteCard | None:
        """What was written down of a suite on this model, if anything."""
        path = self._card(sha256, name)
        try:
            return SuiteCard.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise DamagedAnswers(
                f"{path}: is no suite card; delete the file to have the base measured again"
            ) from None

    def write_card(self, sha256: str, name: str, card: SuiteCard) -> None:
        """Write down what was seen of a suite on this model, in place of what was there."""
        path = self._card(sha256, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, card.model_dump_json(indent=1) + "\n")

    def cards(self, name: str) -> tuple[SuiteCard, ...]:
        """What was written down of a suite on any model."""
        found = sorted(self._root.glob(f"*/{name}{_CARD}"), key=lambda path: path.stat().st_mtime)
        return tuple(SuiteCard.model_validate_json(path.read_bytes()) for path in found)

    def _card(self, sha256: str, name: str) -> Path:
        return self.path(sha256, name).with_suffix(_CARD)

    def append(self, sha256: str, fingerprint: str, results: Iterable[ItemResult]) -> None:
        """Add answers and wait until they are on the disk; a torn last line is cut off first."""
        block = "".join(
            json.dumps(result.model_dump(mode="json"), ensure_ascii=False) + "\n"
            for result in results
        ).encode(errors="replace")
        if not block:
            return
        path = self.path(sha256, fingerprint)
        fresh = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x+b" if fresh else "r+b") as file:
            _to_end_of_last_line(file)
            file.write(block)
            files.sync_stream(file)
        if fresh:
            files.sync(path.parent)
            files.sync(self._root)


def _parse(line: bytes, path: Path, number: int) -> ItemResult:
    try:
        return ItemResult.model_validate_json(line)
    except ValueError:
        raise DamagedAnswers(
            f"{path}: line {number} is no answer; delete the file to have the suite asked again"
        ) from None


def _to_end_of_last_line(file: IO[bytes]) -> None:
    data = file.read()
    end = data.rfind(b"\n") + 1
    file.seek(end)
    file.truncate()
