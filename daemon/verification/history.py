"""The chain of events against its signed heads, and the tables that must say the same as it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from daemon.config.layout import Layout
from daemon.ledger.ledger import Ledger
from daemon.verification import anchor
from daemon.verification.anchor import AnchorBroken, Head
from daemon.verification.findings import RESTORE, Inspection
from daemon.verification.keeper import ACCEPT, differs
from policies.gate.records import Outcome
from policies.records import PlanState

_JUDGED: Final = {
    Outcome.PASS.value: PlanState.PASSED.value,
    Outcome.FAIL.value: PlanState.REJECTED.value,
    Outcome.INCONCLUSIVE.value: PlanState.INCONCLUSIVE.value,
}
_MADE: Final = "made"


# --- the chain -------------------------------------------------------------------------------


def read_anchor(layout: Layout) -> tuple[Head | None, str]:
    """The signed head, or what is wrong with it; to be read before the ledger, which may only have
    grown since. Raises `OSError`."""
    try:
        return anchor.read(layout), ""
    except AnchorBroken as error:
        return None, str(error)


def check_chain(
    ledger: Ledger,
    layout: Layout,
    anchored: tuple[Head | None, str],
    inspection: Inspection,
    *,
    quick: bool,
) -> None:
    """The events, or with `quick` those that came after the signed head, and the head itself."""
    (head, why), path = anchored, layout.ledger
    newest = ledger.events.head()[0]
    if head is not None:
        if problem := differs(ledger, head):
            inspection.found("history", path, problem, ACCEPT)
        if mode := stat.S_IMODE(layout.anchor_key.stat().st_mode) & anchor.OTHERS:
            what = f"others may use the key that signs the history ({mode:03o})"
            inspection.found("history", layout.anchor_key, what, "chmod 600, and see who read it")
    elif newest and why:
        where, _, what = why.partition(": ")
        inspection.found("history", where, what, ACCEPT)
    after = min(head.seq, newest) if quick and head is not None else 0
    for broken in ledger.events.broken(after):
        if broken is None:
            inspection.pause()
        else:
            inspection.found("history", path, broken)
    inspection.count("events", newest - after)


def check_outside(ledger: Ledger, layout: Layout, path: Path, inspection: Inspection) -> None:
    """The history against signed heads that were kept elsewhere, from the last that was accepted
    on."""
    if not path.exists():
        inspection.skip(f"{path}: no signed head is kept there yet")
        return
    key = anchor.read_key(layout)
    heads: list[Head | None] = []
    for head in anchor.kept(path):
        if head is not None and head.accepted and anchor.is_signed(key, head):
            heads.clear()
        heads.append(head)
    for number, head in enumerate(heads, 1):
        if head is None or not anchor.is_signed(key, head):
            seq = "a line" if head is None else f"the head of event {head.seq}"
            inspection.found("history", path, f"{seq} is not signed with {layout.anchor_key.name}")
        elif problem := differs(ledger, head):
            inspection.found("history", path, problem, ACCEPT)
        if number % 1000 == 0:
            inspection.pause()
    inspection.count("heads kept outside", len(heads))


# --- tables ----------------------------------------------------------------------------------


def check_target(ledger: Ledger, path: Path, inspection: Inspection) -> None:
    """Whether the target is the one that history moved to last, for the reason it gives."""
    target = ledger.audit.target()
    if target is None:
        inspection.found("pointer", path, "there is no target any more")
        return
    last, reason = 0, ""
    for _, _, subject, said in ledger.events.of_kinds("target"):
        last, reason = _number(subject), said.get("because", "")
    if target[0] != last:
        what = f"revision {target[0]} is the target, but history moved to revision {last}"
        inspection.found("pointer", path, what)
    elif reason and target[1] != reason:
        what = f"revision {last} is the target for another reason than history gives"
        inspection.found("pointer", path, what)


def _number(subject: str) -> int:
    return int(subject.rpartition(":")[2])


def check_plans(ledger: Ledger, path: Path, inspection: Inspection) -> None:
    """States of plans, their verdicts and the revisions they became, against what happened."""
    reached: dict[int, str] = {}
    judged: dict[int, str] = {}
    passed: set[int] = set()
    published: dict[int, tuple[str, str]] = {}
    for _, kind, subject, said in ledger.events.of_plans():
        plan, state = _number(subject), kind.removeprefix("plan.")
        reached[plan] = PlanState.PLANNED.value if state == _MADE else state
        if state == PlanState.PASSED.value:
            passed.add(plan)
        if said.get("from") == PlanState.TRAINED.value:
            judged[plan] = state
        if state == PlanState.LIVE.value and "sha256" in said:
            published[said["revision"]] = said["name"], said["sha256"]
    for plan, state in ledger.audit.plan_states():
        if _forged(state, reached.get(plan, "")):
            what = f"plan {plan} is {state}, but history says {reached.get(plan, 'nothing')}"
            inspection.found("history", path, what)
    for plan, outcome in ledger.audit.outcomes():
        if plan not in judged or _JUDGED.get(outcome) != judged[plan]:
            instead = judged.get(plan, "that there was none")
            what = f"the verdict on plan {plan} says {outcome}, but history says {instead}"
            inspection.found("history", path, what)
    for revision in ledger.revisions.all():
        if revision.number == 0:
            continue
        if revision.plan_id not in passed:
            what = f"revision {revision.number} became one although its plan never passed"
            inspection.found("history", path, what)
        name, sha = published.get(revision.number, (revision.served_name, revision.sha256))
        if (name, sha) != (revision.served_name, revision.sha256):
            what = f"revision {revision.number} names {revision.served_name}, history {name}"
            inspection.found("history", path, f"{what}, or other bytes of it")
    inspection.count("plans", len(reached))


def _forged(state: str, reached: str) -> bool:
    live = {PlanState.LIVE.value, PlanState.ROLLED_BACK.value}
    return state != reached and not (state in live and reached == PlanState.LIVE.value)


def check_pages(ledger: Ledger, path: Path, inspection: Inspection, *, quick: bool) -> None:
    """SQLite's own check, and its foreign keys."""
    for line in ledger.audit.damage(quick=quick):
        inspection.found("ledger", path, f"SQLite finds: {line}", RESTORE)
    for what in () if quick else ledger.audit.orphans():
        inspection.found("ledger", path, what)
    inspection.count("pages", ledger.audit.pages)
