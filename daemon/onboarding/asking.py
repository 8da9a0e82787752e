"""A base asked many questions: by its own weights or through a server, and nothing asked twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from adapters import files
from daemon.gate.asking import Asker, Query
from daemon.gate.suites import PromptForm, has_chat_template
from daemon.serving.client import HttpServer, Timeouts
from policies.errors import ServerUnusable
from policies.records import content_id

if TYPE_CHECKING:
    from adapters.generate import Generator

FIRST: Final = 16
"""Questions in the first round, so that the time left is soon known."""
ROUND: Final = 64
ANSWER_S: Final = 600.0
SEED: Final = 7


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """What the base said; `cut` where the longest answer allowed ended it."""

    text: str
    cut: bool = False


class Base(Protocol):
    """A base that can be asked; `engine` names its weights and what decodes them."""

    engine: str

    def prepare(self) -> None:
        """Whatever takes long before the first question can be asked."""
        ...

    def answer(
        self, prompts: Sequence[str], max_tokens: int, sample: int = 0
    ) -> Sequence[BaseAnswer | None]:
        """One reply for each prompt in its order; None where there is none.

        Sample 0 is the greedy answer; 1, 2, … are drawn at temperature 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Asking:
    """How far a round of questions has come; seconds are None until the first answers are there."""

    stage: str
    done: int
    total: int
    seconds_left: float | None


class LocalBase:
    """The base in this process; its weights are read when the first question is asked."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._generator: Generator | None = None
        self._chat = has_chat_template(model)
        self.engine = f"local {_weights(model)}"

    def prepare(self) -> None:
        """Read the weights, once."""
        from adapters.generate import Generator  # noqa: PLC0415 - torch takes seconds

        if self._generator is None:
            self._generator = Generator(self._model)

    def answer(
        self, prompts: Sequence[str], max_tokens: int, sample: int = 0
    ) -> Sequence[BaseAnswer | None]:
        """All together; as a chat where the model has a template."""
        from adapters.generate import Request  # noqa: PLC0415 - torch takes seconds

        self.prepare()
        assert self._generator is not None  # noqa: S101 - `prepare` has just made it
        generator = self._generator
        requests = [
            Request(
                generator.encode_chat([{"role": "user", "content": prompt}])
                if self._chat
                else generator.encode(prompt),
                max_tokens,
                temperature=1.0 if sample else 0.0,
                seed=SEED + sample * 1_000_003 + n,
            )
            for n, prompt in enumerate(prompts)
        ]
        said = generator.generate(None, requests)
        return [BaseAnswer(one.text.strip(), one.finish_reason == "length") for one in said]


class ServedBase:
    """The base behind a server's URL; `name` is what it is called there."""

    def __init__(self, url: str, name: str, model: Path, key: str | None, concurrency: int) -> None:
        self._url, self._name, self._key, self._concurrency = url, name, key, concurrency
        self._form = PromptForm.CHAT if has_chat_template(model) else PromptForm.PLAIN
        self.engine = f"{url} {name} {_weights(model)}"

    def prepare(self) -> None:
        """It runs already."""

    def answer(
        self, prompts: Sequence[str], max_tokens: int, sample: int = 0
    ) -> Sequence[BaseAnswer | None]:
        """As the protocol says; raises `ModelNotServed`, `ServerUnreachable`, `ServerUnusable`."""
        return asyncio.run(self._answer(prompts, max_tokens, sample))

    async def _answer(
        self, prompts: Sequence[str], max_tokens: int, sample: int
    ) -> list[BaseAnswer | None]:
        server = HttpServer(
            self._url,
            user_key=self._key,
            timeouts=Timeouts(request_s=ANSWER_S),
            seed=SEED + sample if sample else None,
        )
        queries = [Query(str(n), prompt, self._form) for n, prompt in enumerate(prompts)]
        try:
            asker = Asker(server, self._concurrency)
            replies = await asker.ask(self._name, queries, max_tokens=max_tokens)
        finally:
            await server.aclose()
        if replies and all(reply.text is None for reply in replies):
            raise ServerUnusable(f"{self._url} answers no question: {replies[0].problem}")
        return [None if r.text is None else BaseAnswer(r.text.strip(), r.cut) for r in replies]


@dataclass(slots=True)
class Interview:
    """Asks a base round by round and keeps every answer in `file`, so that none is asked for twice.

    `progress` hears how far it is. What the base did not answer is asked again next time.
    """

    base: Base
    file: Path
    progress: Callable[[Asking], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    asked: int = 0
    _known: dict[str, BaseAnswer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                self._known[row["key"]] = BaseAnswer(row["text"], row["cut"])
            except (ValueError, KeyError, TypeError):
                continue  # the line on which a former run was killed

    def ask(
        self, stage: str, prompts: Sequence[str], max_tokens: int, sample: int = 0
    ) -> list[BaseAnswer | None]:
        """The base's answer to each prompt, in its order; None where it gave none."""
        asked_as = (self.base.engine, str(max_tokens), str(sample))
        keys = [content_id(*asked_as, prompt) for prompt in prompts]
        wanted = dict(zip(keys, prompts, strict=True))
        left = {key: prompt for key, prompt in wanted.items() if key not in self._known}
        if left:
            self._rounds(stage, list(left.items()), max_tokens, sample)
        return [self._known.get(key) for key in keys]

    def _rounds(
        self, stage: str, left: Sequence[tuple[str, str]], max_tokens: int, sample: int
    ) -> None:
        self.progress(Asking(stage, 0, len(left), None))
        self.base.prepare()
        done, began = 0, self.clock()
        while done < len(left):
            chosen = left[done : done + (ROUND if done else FIRST)]
            replies = self.base.answer([prompt for _, prompt in chosen], max_tokens, sample)
            fresh = {key: r for (key, _), r in zip(chosen, replies, strict=True) if r is not None}
            self._keep(fresh)
            done += len(chosen)
            self.asked += len(chosen)
            each = (self.clock() - began) / done
            self.progress(Asking(stage, done, len(left), each * (len(left) - done)))

    def _keep(self, fresh: dict[str, BaseAnswer]) -> None:
        whole = not self.file.exists() or self.file.read_bytes().endswith(b"\n")
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("" if whole else "\n")
            for key, reply in fresh.items():
                row = {"key": key, "text": reply.text, "cut": reply.cut}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            files.sync_stream(stream)
        self._known |= fresh


def _weights(model: Path) -> str:
    """What tells these weights from others without reading them: names, sizes and times."""
    parts = [
        f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(model.glob("*.safetensors"))
    ]
    return content_id(*parts)
