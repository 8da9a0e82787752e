"""Twenty-odd ways to break palorad in one place, each as small as a slip in a review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutation:
    """`old` stands exactly once in `file`, and becomes `new`; `what` is told in the table."""

    name: str
    what: str
    file: str
    old: str
    new: str


MUTATIONS: Final = (
    # --- what is synced, and in which order ----------------------------------------------------
    Mutation(
        "content not synced",
        "a file is renamed to its place before its content is on the disk",
        "adapters/files.py",
        "    sync(part)\n    part.replace(path)",
        "    part.replace(path)",
    ),
    Mutation(
        "folder not synced",
        "a rename into place is not followed by the folder's sync",
        "adapters/files.py",
        "    part.replace(path)\n    sync(path.parent)",
        "    part.replace(path)",
    ),
    Mutation(
        "publication not synced",
        "the files of an adapter are not synced before it is published",
        "adapters/store.py",
        "    for file in hashes:\n        files.sync(source / file)\n",
        "",
    ),
    Mutation(
        "ledger not synced",
        "SQLite leaves syncing to the operating system",
        "daemon/ledger/database.py",
        "PRAGMA synchronous=EXTRA",
        "PRAGMA synchronous=NORMAL",
    ),
    Mutation(
        "begun before archived",
        "a batch is begun in the ledger before its bytes are in the archive",
        "daemon/intake/admit.py",
        "    files.put_in_place(body, layout.archived(batch.id))\n",
        "    if ledger.admission.row_of(batch.id) is None:\n"
        "        ledger.admission.begin_batch(batch, signature=signature, cursor=cursor)\n"
        "    files.put_in_place(body, layout.archived(batch.id))\n",
    ),
    # --- intake ---------------------------------------------------------------------------------
    Mutation(
        "file not looked at again",
        "a claimed file goes although lines have come that were not read",
        "daemon/intake/following.py",
        "                if sure and _state(os.fstat(descriptor)) == self._read.get(claim.mark):",
        "                if sure:",
    ),
    Mutation(
        "place in the batch lost",
        "what was admitted of a batch is not remembered, and is admitted again after a crash",
        "daemon/ledger/admission.py",
        '"UPDATE batches SET line = ?, position = ? WHERE seq = ?",\n'
        "                    (line, position, seq),",
        '"UPDATE batches SET line = ?1 * 0, position = ?2 * 0 WHERE seq = ?3",\n'
        "                    (line, position, seq),",
    ),
    Mutation(
        "quarantine dropped",
        "lines that are no facts are left out",
        "daemon/intake/admit.py",
        "    bad = [refused for _, refused in read if isinstance(refused, Quarantined)]",
        "    bad: list[Quarantined] = []",
    ),
    Mutation(
        "admission not told",
        "that a batch was admitted is no event",
        "daemon/ledger/admission.py",
        '        self._db.event("batch.admitted", batch_id, counts, now)\n',
        "",
    ),
    # --- clocks ---------------------------------------------------------------------------------
    Mutation(
        "clock believed",
        "history is dated by the wall clock although it was set back",
        "daemon/ledger/database.py",
        "        self._latest = max(self._latest, stamp(now))\n",
        "        self._latest = stamp(now)\n",
    ),
    # --- plans and children ---------------------------------------------------------------------
    Mutation(
        "lost child not noticed",
        "the lease of a child that is gone is kept",
        "daemon/loop/reconcile.py",
        "            self._ledger.steps.interrupted(lease.plan, lease.step, now)\n",
        "            pass\n",
    ),
    Mutation(
        "forgotten lock",
        "a child is started in a directory in which another one still works",
        "daemon/children/jobs.py",
        "    except BlockingIOError:\n        return True\n",
        "    except BlockingIOError:\n        return False\n",
    ),
    Mutation(
        "verdict not heeded",
        "what the gate refuses is passed",
        "daemon/loop/reconcile.py",
        "    Outcome.FAIL: PlanState.REJECTED,",
        "    Outcome.FAIL: PlanState.PASSED,",
    ),
    Mutation(
        "inconclusive is good enough",
        "what the gate could not decide is passed without a person",
        "daemon/loop/reconcile.py",
        "    Outcome.INCONCLUSIVE: PlanState.INCONCLUSIVE,",
        "    Outcome.INCONCLUSIVE: PlanState.PASSED,",
    ),
    Mutation(
        "facts of a cancelled plan kept back",
        "facts whose plan was cancelled do not wait again",
        "daemon/ledger/plans.py",
        "        if to is PlanState.CANCELLED:\n            self._to_pending(plan_id)\n",
        "        if to is PlanState.CANCELLED:\n            pass\n",
    ),
    Mutation(
        "plan on a former target goes live",
        "promotion does not look whether the target has moved",
        "daemon/ledger/revisions.py",
        "            if parent.lineage != target.lineage or not",
        "            if False and not",
    ),
    Mutation(
        "number of a revision given twice",
        "a new revision is numbered after its parent",
        "daemon/ledger/revisions.py",
        'number = int(self._db.one("SELECT max(number) FROM revisions")) + 1',
        "number = target.number + 1",
    ),
    Mutation(
        "target moved without a word",
        "that the target moved is no event",
        "daemon/ledger/revisions.py",
        '        self._db.event("target", f"revision:{number}", said, now, told=told)\n',
        "",
    ),
    # --- serving --------------------------------------------------------------------------------
    Mutation(
        "flip without looking",
        "the alias moves although the target has changed meanwhile",
        "daemon/serving/fleet.py",
        "            if not is_target():",
        "            if False:",
    ),
    Mutation(
        "identity not compared",
        "whatever a replica answers counts as the adapter that was published",
        "daemon/serving/identity.py",
        "    if (reason := differs(identity.items, answers, tolerance)) is not None:\n",
        "    if answers:\n        return None\n    if (reason := None) is not None:\n",
    ),
    Mutation(
        "bytes not compared",
        "a revision is loaded without comparing its files with their hashes",
        "daemon/serving/replica.py",
        "problems = await self.common.unfit(name)\n",
        "problems: tuple[str, ...] = ()\n",
    ),
    # --- retraction -----------------------------------------------------------------------------
    Mutation(
        "rollback to what was revoked",
        "a revision that knows a retracted fact can be rolled back to",
        "daemon/ledger/revisions.py",
        "        if known and chosen.lineage != current.lineage:",
        "        if False:",
    ),
    Mutation(
        "archive left out",
        "a retracted fact stays in the archived drop",
        "daemon/retraction/erasure.py",
        "        if finder.traces:\n",
        "        if not finder.traces:\n",
    ),
    Mutation(
        "working directories left out",
        "a retracted fact stays in what its children worked on",
        "daemon/retraction/erasure.py",
        "        if not folder.is_dir() or (plan.isdigit() and int(plan) in open_plans):\n",
        "        if True:\n",
    ),
    Mutation(
        "free pages left",
        "the ledger's file is not rewritten after an erasure",
        "daemon/retraction/workflow.py",
        "                await asyncio.to_thread(self._ledger.erasure.compact)\n",
        "                pass\n",
    ),
    Mutation(
        "replica that does not answer",
        "a revision counts as unloaded on a replica that could not be asked",
        "daemon/retraction/workflow.py",
        "            if still or not status.healthy:",
        "            if still:",
    ),
    # --- history --------------------------------------------------------------------------------
    Mutation(
        "payload not compared",
        "what an event says can be edited without the check's notice",
        "daemon/ledger/events.py",
        "                or not (erased or digest == salted(salt, body))\n",
        "",
    ),
)
