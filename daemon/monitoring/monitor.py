"""Rounds of questions to every replica, what they show, and an automatic rollback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final, Protocol

import structlog

from daemon.config.settings import Settings
from daemon.gate.asking import Asker, ModelNotServed
from daemon.ledger.ledger import Ledger
from daemon.monitoring.questions import Pool, Question, pool_of
from daemon.serving.protocol import Server
from policies.errors import RequestRefused, ServerUnreachable
from policies.monitoring import ReplicaStanding, Round
from policies.notifications import Notification
from policies.records import Record, Revision

DAY_S: Final = 86400.0
AT_ONCE: Final = 4
TRIES: Final = 2
BECAUSE: Final = "monitor: "

log = structlog.get_logger(__name__)


class MonitoredReplicas(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    @property
    def servers(self) -> Sequence[Server]:
        """The replicas, each with the alias."""
        ...


class Monitored(Record):
    """The last round of one replica, and how it stands."""

    url: str
    facts: Round
    reasoning: Round
    standing: ReplicaStanding


class Monitor:
    """Asks what the target answered right in the gate; nothing is asked while the alias moves.

    What is not answered counts for nothing here: that a replica is away is told elsewhere.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        replicas: MonitoredReplicas,
        *,
        settled: Callable[[], bool],
        wake: Callable[[], None],
        rng: random.Random,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`settled`: the alias answers from the target; `wake` after a rollback; `rng` draws the
        questions, `now` dates, `clock` counts the day of the budget."""
        self._ledger = ledger
        self._settings = settings
        self._replicas = replicas
        self._settled = settled
        self._wake = wake
        self._rng = rng
        self._now = now
        self._clock = clock
        self._pool: tuple[Revision, Pool] | None = None
        self._day, self._asked = clock(), 0
        self._refused = ""
        self.last: dict[str, Monitored] = {}

    @property
    def trouble(self) -> tuple[str, ...]:
        """One line for each replica that fails, and why it was not rolled back if it should be."""
        failing = [one for one in self.last.values() if one.standing.failing]
        lines = [
            f"{one.url}: the alias answers wrong: {_said(one)}; `palorad rollback` serves the "
            "revision before, `palorad verify` looks for what was changed"
            for one in failing
        ]
        return (*lines, self._refused) if failing and self._refused else tuple(lines)

    async def step(self) -> None:
        """One round of every replica, if it may be asked and the budget allows it."""
        target = self._ledger.revisions.target()
        if not self._settled():
            return
        pool = await self._known(target)
        chosen = self._settings.monitor
        drawn = pool.draw(chosen.facts, chosen.reasoning, self._rng)
        count = len(drawn.facts) + len(drawn.reasoning)
        if not count or not self._affordable(count * len(self._replicas.servers)):
            return
        rounds = await asyncio.gather(*(self._round(s, drawn) for s in self._replicas.servers))
        if not self._settled() or self._ledger.revisions.target() != target:
            return  # some answers may be of another revision
        for server, asked in zip(self._replicas.servers, rounds, strict=True):
            if asked is not None:
                self._note(server.url, *asked, target)
        failing = [
            self.last[s.url].standing.failing for s in self._replicas.servers if s.url in self.last
        ]
        if chosen.rollback and failing and all(failing):
            self._roll_back(target)

    async def _known(self, target: Revision) -> Pool:
        """What may be asked of the target, read once, in a thread with its own reader."""
        if self._pool is None or self._pool[0] != target:
            self.last, self._refused = {}, ""
            path = self._ledger.db.path
            if path.exists():
                pool = await asyncio.to_thread(self._read, target)
            else:  # a ledger in memory has no other reader
                pool = pool_of(self._ledger, self._settings, target)
            self._pool = target, pool
        return self._pool[1]

    def _read(self, target: Revision) -> Pool:
        with Ledger.open(self._ledger.db.path, readonly=True) as reader:
            return pool_of(reader, self._settings, target)

    def _affordable(self, count: int) -> bool:
        now = self._clock()
        if now - self._day >= DAY_S:
            self._day, self._asked = now, 0
        if self._asked + count > self._settings.monitor.budget:
            return False
        self._asked += count
        return True

    # --- one replica ---------------------------------------------------------------------------

    async def _round(self, server: Server, drawn: Pool) -> tuple[Round, Round] | None:
        """Facts and reasoning; None where less than half of the questions were answered."""
        try:
            facts = await self._right(server, drawn.facts)
            reasoning = await self._right(server, drawn.reasoning)
        except (ModelNotServed, ServerUnreachable) as error:
            log.info("not monitored", url=server.url, reason=str(error))
            return None
        whole = len(drawn.facts) + len(drawn.reasoning)
        if 2 * (facts.asked + reasoning.asked) < whole:
            return None
        return facts, reasoning

    async def _right(self, server: Server, questions: Sequence[Question]) -> Round:
        asker = Asker(server, concurrency=AT_ONCE, attempts=TRIES)
        alias, said = self._settings.model.alias, dict[str, str]()
        by_length = sorted(questions, key=lambda question: question.max_tokens)
        for max_tokens, group in groupby(by_length, key=lambda question: question.max_tokens):
            queries = [question.query for question in group]
            answers = await asker.ask(alias, queries, max_tokens=max_tokens)
            said |= {answer.id: answer.text for answer in answers if answer.text is not None}
        answered = [question for question in questions if question.id in said]
        right = await asyncio.to_thread(
            lambda: sum(question.is_right(said[question.id]) for question in answered)
        )
        return Round(right=right, asked=len(answered))

    # --- what follows --------------------------------------------------------------------------

    def _note(self, url: str, facts: Round, reasoning: Round, target: Revision) -> None:
        chosen = self._settings.monitor
        before = self.last[url].standing if url in self.last else ReplicaStanding()
        short = facts.falls_short(chosen.share) or reasoning.falls_short(chosen.share)
        standing = before.after(
            short=short, fail_after=chosen.fail_after, recover_after=chosen.recover_after
        )
        found = Monitored(url=url, facts=facts, reasoning=reasoning, standing=standing)
        self.last[url] = found
        log.info("monitored", url=url, said=_said(found), failing=standing.failing)
        if standing.failing != before.failing:
            kind = Notification.WRONG if standing.failing else Notification.RIGHT_AGAIN
            said = {"url": url, "line": _said(found)}
            revision = f"revision:{target.number}"
            self._ledger.events.record(kind.value, revision, said, self._now(), told=kind)

    def _roll_back(self, target: Revision) -> None:
        """Once: what was rolled back to by this is left to a person."""
        because = (self._ledger.audit.target() or (0, ""))[1]
        if target.parent is None or because.startswith(BECAUSE):
            self._refused = "monitor.rollback: no further rollback by itself; decide by hand"
            return
        said = "; ".join(_said(one) for one in self.last.values())
        try:
            self._ledger.revisions.rollback(target.parent, f"{BECAUSE}{said}", self._now())
        except RequestRefused as error:
            self._refused = f"monitor.rollback: {error}"
            return
        log.warning("rolled back", revision=target.parent, was=target.number, because=said)
        self._wake()


def _said(one: Monitored) -> str:
    asked = ((one.facts, "live facts"), (one.reasoning, "reasoning items"))
    parts = [f"{r.right} of {r.asked} {what} right" for r, what in asked if r.asked]
    return f"{' and '.join(parts)}, round {max(one.standing.short, one.standing.good)} in a row"
