"""What can be asked of the running daemon over its control socket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from daemon.base.control import Handler
from daemon.config.settings import Settings
from daemon.intake.intake import Intake
from daemon.intake.preview import BAD, preview
from daemon.ledger.ledger import Ledger
from daemon.loop import requests
from daemon.loop.notifying import Notifications
from daemon.loop.retention import Retention
from daemon.views.status import DaemonView
from policies.errors import NotFound, RequestRefused
from policies.planning import rebuild
from policies.records import BatchState, PlanKind, PlanState

CommandResult = dict[str, Any]
FOUND: Final = 100
_PLAN: Final = re.compile(r"[0-9]{1,18}\Z")


class Commands:
    """Each public method is one command; every answer has a `line` for people."""

    def __init__(
        self,
        ledger: Ledger,
        intake: Intake,
        settings: Settings,
        retention: Retention,
        accept: Callable[[str], Awaitable[int]],
        notifications: Notifications,
        *,
        now: Callable[[], datetime],
        live: Callable[[], DaemonView],
        wake: Callable[[], None],
    ) -> None:
        """`accept` signs the history as it is; `live` is what only the daemon knows; `wake` has it
        act on a change at once."""
        self._ledger = ledger
        self._intake = intake
        self.settings = settings
        self._retention = retention
        self._now = now
        self._live = live
        self._wake = wake
        self._accept = accept
        self._notifications = notifications

    def table(self) -> Mapping[str, Handler]:
        """The commands by name."""
        names = (
            *("submit", "retry", "rollback", "forward", "promote", "reject"),
            *("pause", "resume", "retract", "consolidate", "status", "requeue", "prune"),
            *("accept", "correct", "notify_test", "notify_retry", "notify_discard"),
        )
        return {name: getattr(self, name) for name in names}

    async def status(self) -> CommandResult:
        """The live part of `palorad status`."""
        return self._live().model_dump(mode="json")

    async def submit(self, path: str, again: bool = False) -> CommandResult:
        """Take a copy of a file; known bytes are learnt once more only if `again`."""
        try:
            batch_id, known = self._intake.submit(Path(path))
        except OSError as error:
            raise RequestRefused(f"{path}: {error.strerror}") from None
        self._wake()
        short, name = batch_id[:12], Path(path).name
        if not known:
            return {"batch": batch_id, "known": False, "line": f"{name}: submitted as {short}"}
        state = self._ledger.batches.state(batch_id)
        line = f"{name}: already known as {short}, {state.value}"
        if again and state not in (BatchState.WAITING, BatchState.LEARNING):
            facts = self._ledger.batches.retry(batch_id, "submitted again", self._now())
            line = f"{name}: known as {short}, was {state.value}; {facts} facts are planned again"
        return {"batch": batch_id, "known": True, "state": state.value, "line": line}

    async def retry(self, subject: str, because: str = "") -> CommandResult:
        """Try what failed or was rejected once more: a plan's number, or a batch."""
        if _PLAN.match(str(subject)):
            plan = self._ledger.plans.head(int(subject))
            if plan.state is PlanState.FAILED:
                self._ledger.plans.retry(plan.id, because, self._now())
                return self._done(f"plan {plan.id} is tried again")
            batches = self._ledger.plans.batches(plan.id)
            if not batches:
                raise RequestRefused(
                    f"plan {plan.id} is {plan.state.value}: there is nothing to retry"
                )
            facts = sum(self._ledger.batches.retry(b, because, self._now()) for b in batches)
        else:
            batch = self._ledger.batches.get(subject)
            facts = self._ledger.batches.retry(batch.id, because, self._now())
        return self._done(f"{facts} facts are planned again", facts=facts)

    async def rollback(
        self, to: int | None = None, because: str = "", seen: int | None = None
    ) -> CommandResult:
        """Serve an earlier revision; without `to` the parent of the target.

        Refused where `seen` is given and is not the target any more: so a click that is made
        twice, or on a page of before, moves nothing.
        """
        self._still(seen)
        target = self._ledger.revisions.target()
        if to is None:
            to = target.parent
        if to is None:
            raise RequestRefused("the base is the target: there is nothing to roll back to")
        return self._point(to, because)

    async def forward(
        self, to: int | None = None, because: str = "", seen: int | None = None
    ) -> CommandResult:
        """Undo a rollback; without `to` the newest revision built on the target. `seen` as in
        `rollback`."""
        self._still(seen)
        return self._point(self._ledger.revisions.forward_target() if to is None else to, because)

    def _still(self, seen: int | None) -> None:
        number = self._ledger.revisions.target().number
        if seen not in (None, number):
            raise RequestRefused(
                f"revision {number} is the target now, not {seen} as you saw it; look again"
            )

    def _point(self, to: int, because: str) -> CommandResult:
        before = self._ledger.revisions.target().number
        revision = self._ledger.revisions.rollback(to, because or "asked for", self._now())
        line = f"revision {revision.number} ({revision.served_name}) is the target, was {before}"
        return self._done(line, revision=revision.number, was=before)

    async def promote(self, plan: int, because: str = "") -> CommandResult:
        """A person lets an inconclusive candidate go live."""
        return self._decide(plan, PlanState.PASSED, because)

    async def reject(self, plan: int, because: str = "") -> CommandResult:
        """A person turns an inconclusive candidate down."""
        return self._decide(plan, PlanState.REJECTED, because)

    def _decide(self, plan: int, to: PlanState, because: str) -> CommandResult:
        head = self._ledger.plans.head(plan)
        if head.state is not PlanState.INCONCLUSIVE:
            raise RequestRefused(
                f"plan {plan} is {head.state.value}; only inconclusive ones are decided"
            )
        if not because.strip():
            raise RequestRefused('say why: --because "…"; it is recorded')
        self._ledger.plans.decide(plan, to, because, self._now())
        return self._done(f"plan {plan} is {to.value}", plan=plan, state=to.value)

    async def pause(self, because: str = "") -> CommandResult:
        """Start nothing new; intake and serving go on."""
        self._ledger.meta.pause(True, because, self._now())
        return self._done("paused: nothing new is started; 'palorad resume' goes on")

    async def resume(self) -> CommandResult:
        """Undo a pause."""
        self._ledger.meta.pause(False, "", self._now())
        return self._done("going on")

    async def requeue(
        self, batch: str, line: int | None = None, newest: bool = False
    ) -> CommandResult:
        """Read quarantined lines of a batch again; `newest` has them win over what stands."""
        found = self._ledger.batches.get(batch)
        read = bad = 0
        try:
            for some, refused in self._intake.retry(found.id, self._now(), line, newest):
                read, bad = read + some, bad + refused
                await asyncio.sleep(0)
        except OSError as error:
            raise RequestRefused(
                f"{found.name}: its archive cannot be read: {error.strerror}"
            ) from None
        summary = f"{read - bad} of {read} quarantined lines are admitted now"
        return self._done(summary, read=read, admitted=read - bad)

    async def correct(self, batch: str, line: int, text: str) -> CommandResult:
        """Submit a quarantined line as a person has corrected it; then it leaves quarantine."""
        found = self._ledger.batches.get(batch)
        if self._ledger.quarantine.kind(found.id, line) is None:
            raise NotFound(f"{found.name} has no line {line} in quarantine")
        with TemporaryDirectory(prefix="palorad-") as folder:
            path = Path(folder) / f"{Path(found.name).stem}.line-{line}.jsonl"
            path.write_text(text.strip() + "\n", encoding="utf-8")
            now, rules = self._now(), self._intake.rules
            verdicts = list(preview(self._ledger, path, rules, now, 2))
            if len(verdicts) != 1:
                raise RequestRefused("that is not one line; a corrected line is one JSON object")
            if verdicts[0].verdict == BAD:
                raise RequestRefused(f"the line would not be admitted: {verdicts[0].reason}")
            by, _ = self._intake.submit(path)
        self._ledger.quarantine.correct(found.id, line, by, now)
        return self._done(f"line {line} of {found.name} is submitted as {by[:12]}", batch=by)

    async def prune(self) -> CommandResult:
        """Begin to remove what need not be kept; what that is."""
        found = await self._retention.begin()
        size = sum(one.bytes for one in found) / 1e6
        line = (
            f"{len(found)} items ({size:.1f} MB) are being removed; 'palorad history' tells which"
        )
        return {
            "items": [one.model_dump(mode="json") for one in found],
            "line": line if found else "there is nothing that need not be kept",
        }

    async def retract(
        self,
        fact: str = "",
        subject: str = "",
        relation: str = "",
        search: str = "",
        every: bool = False,
        because: str = "",
    ) -> CommandResult:
        """Facts must be forgotten: one by id or prompt, all of a subject and relation, or what a
        search finds (`every` where it finds several).
        """
        ids = self._named(fact, subject, relation, search, every=every)
        fresh = [i for i in ids if self._ledger.retractions.retract(i, because, self._now())]
        if not fresh:
            raise RequestRefused(f"fact {ids[0]} was retracted before")
        found = [r for r in self._ledger.retractions.all(unfinished=True) if r.id in set(fresh)]
        handles = [r.handle for r in found]
        served = any(r.served for r in found)
        what = f"fact {fresh[0]} is" if len(fresh) == 1 else f"{len(fresh)} facts are"
        line = f"{what} retracted"
        if served:
            line += "; still served until an adapter without it has passed the gate"
        line += f"; 'palorad certificate {handles[0]}' says when it is done"
        return self._done(line, facts=fresh, handles=handles, still_served=served)

    def _named(
        self, fact: str, subject: str, relation: str, search: str, *, every: bool
    ) -> list[str]:
        if sum(map(bool, (fact, subject or relation, search))) != 1:
            raise RequestRefused(
                "name a fact, or --subject and --relation, or --search; one of them"
            )
        if fact:
            return [self._fact(fact)]
        if search:
            near = [f.id for f in self._ledger.text.search(search, FOUND) if self._stands(f.id)]
            if not near:
                raise NotFound(f"no fact is about {search!r}")
            if len(near) > 1 and not every:
                listed = ", ".join(near[:5])
                raise RequestRefused(
                    f"{len(near)} facts are about {search!r} ({listed}, …): name one by its id, "
                    "or say --all"
                )
            return near
        if not (subject and relation):
            raise RequestRefused("a subject and a relation are one key: give both")
        known = self._ledger.facts.about(subject, relation)
        if not known:
            raise NotFound(f"no fact about {relation} of {subject}")
        return list(known)

    def _fact(self, name: str) -> str:
        for found in self._ledger.text.search(name, 5):
            if found.id == name or found.prompt.casefold() == name.strip().casefold():
                return found.id
        raise NotFound(f"no fact {name!r}; give its id or its prompt as 'palorad why' shows it")

    def _stands(self, fact_id: str) -> bool:
        return bool(self._ledger.facts.state(fact_id)["validity"] != "retracted")

    async def consolidate(self, because: str = "") -> CommandResult:
        """Retrain one adapter from everything valid, in place of the lineage."""
        now, limits = self._now(), requests.limits_of(self.settings)
        snapshot = self._ledger.planning.snapshot(now, limits)
        if snapshot.open is not None:
            raise RequestRefused(f"plan {snapshot.open.id} is under way; wait until it is decided")
        known = self._ledger.knowledge.known_count(snapshot.lineage, now)
        if not known:
            raise RequestRefused("nothing is learnt that could be consolidated")
        complete = snapshot.model_copy(update={"known": known})
        action = rebuild(complete, PlanKind.CONSOLIDATE, because or "asked for")
        plan = self._ledger.planning.make_plan(action, now, max_replay=0)
        return self._done(f"plan {plan.id}: {known} facts in one adapter", plan=plan.id)

    async def accept(self, because: str = "") -> CommandResult:
        """A person accepts the history as it is, for instance after a restore."""
        if not because.strip():
            raise RequestRefused('say why: --because "…"; it is recorded')
        events = await self._accept(because)
        return self._done(f"the history of {events} events is accepted and signed", events=events)

    async def notify_test(self) -> CommandResult:
        """Post a test notification and wait for the receiver."""
        return {"line": await self._notifications.test()}

    async def notify_retry(self) -> CommandResult:
        """Send the dead letters again."""
        count = self._notifications.retry()
        return self._done(f"{count} notifications are sent again", notifications=count)

    async def notify_discard(self) -> CommandResult:
        """Forget the dead letters."""
        count = self._ledger.outbox.discard()
        return self._done(f"{count} notifications are forgotten", notifications=count)

    def _done(self, line: str, **fields: object) -> CommandResult:
        self._wake()
        return {**fields, "line": line}
