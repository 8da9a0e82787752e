"""The identity of the base: what it was when it was first served, and whether it still is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from adapters import files, fingerprint
from daemon.serving.identity import Answered, Tolerance, differs
from daemon.serving.protocol import Completion
from policies.records import Record

PROMPTS: Final = ("The capital of France is", "12 + 30 =", "Once upon a time")
MAX_TOKENS: Final = 8


class BaseIdentity(Record):
    """One model as it was first served: the hash of its files, and its greedy answers."""

    sha256: str
    answers: tuple[Answered, ...]


_RECORDS: Final = TypeAdapter(dict[str, BaseIdentity])


class BaseRecord:
    """Compares the base with what `path` says of its first use, and writes that down then.

    `state` is the state directory: a model outside it is "base", one inside goes by its place.
    `model_dir` is None while it is not known yet what is served.
    """

    def __init__(self, path: Path, state: Path, model_dir: Path | None) -> None:
        self._path = path
        self._state = state
        self.model_dir = model_dir
        self._one_at_a_time = asyncio.Lock()

    async def problem(
        self, ask: Callable[[Sequence[str], int], Awaitable[Sequence[Completion]]], near: Tolerance
    ) -> str | None:
        """Why the base is not the one that was first served; None where it is.

        `ask` has the server answer prompts with so many tokens. Both what lies in the files and
        what the process has loaded is compared.
        """
        model_dir = self.model_dir
        if model_dir is None:
            return "it is not known yet what is served"
        async with self._one_at_a_time:
            try:
                sha256 = await asyncio.to_thread(fingerprint.model_hash, model_dir)
                known = self._read()
            except (OSError, ValidationError) as error:
                return f"the base cannot be verified: {' '.join(str(error).split())[:200]}"
            first = known.get(self._name(model_dir))
            if first is not None and sha256 != first.sha256:
                return self._changed(f"the files in {model_dir} are not those that were first used")
            if first is None:
                answers = await ask(PROMPTS, MAX_TOKENS)
                return self._keep(known, self._name(model_dir), sha256, answers)
        # Without the lock: a replica that hangs keeps no other from being asked.
        answers = await ask(PROMPTS, MAX_TOKENS)
        if (reason := differs(first.answers, answers, near)) is not None:
            return self._changed(
                f"the base answers otherwise than when it was first used: {reason}"
            )
        return None

    def _keep(
        self, known: dict[str, BaseIdentity], name: str, sha256: str, answers: Sequence[Completion]
    ) -> str | None:
        given = tuple(
            Answered(prompt=prompt, token_ids=one.token_ids, logprobs=one.logprobs)
            for prompt, one in zip(PROMPTS, answers, strict=False)
        )
        if (reason := differs(given, answers)) is not None:
            return f"the base cannot be verified: {reason}"
        known[name] = BaseIdentity(sha256=sha256, answers=given)
        files.write_bytes(self._path, _RECORDS.dump_json(known, indent=2))
        return None

    def _read(self) -> dict[str, BaseIdentity]:
        if not self._path.exists():
            return {}
        return _RECORDS.validate_json(self._path.read_bytes())

    def _name(self, model_dir: Path) -> str:
        inside = model_dir.is_relative_to(self._state)
        return model_dir.relative_to(self._state).as_posix() if inside else "base"

    def _changed(self, what: str) -> str:
        return (
            f"{what}: put the former base back, or begin with an empty state_dir: what was learnt "
            "belongs to the former one"
        )
