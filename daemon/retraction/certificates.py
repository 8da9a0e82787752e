"""What is certified of a retracted fact: what was done, how it was verified, what cannot be
promised."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Retraction, Tainted
from policies.gate.records import UnlearningResult
from policies.gate.unlearning import UnlearningTolerance
from policies.planning import REBUILDS

NOT_PROMISED: Final = (
    "that the base model does not know the fact from its own training: what it answers is what it "
    "answered before the fact was dropped",
    "that other facts which stay valid do not let it be inferred",
    "that a copy taken earlier holds nothing: backups, exports and clients' logs of before",
    "that the medium keeps no trace of overwritten or deleted blocks (journalling and "
    "copy-on-write file systems, flash memory): that needs erasing or encrypting the medium",
    "that nobody drops the fact again: it would be taken in as a new one",
    "that files which lie in the inbox and were not taken, and files outside the state directory "
    "(the service manager's log among them), hold nothing",
)


def certificate(
    ledger: Ledger,
    found: Retraction,
    tainted: Tainted,
    tolerance: UnlearningTolerance,
    now: datetime,
    *,
    deleted: bool,
) -> dict[str, Any]:
    """The certificate of one retraction, without any text of the fact.

    `deleted` is whether all that is tainted was looked for and is gone.
    """
    target = ledger.revisions.target()
    return {
        "certificate": found.handle,
        "id": {"salt": found.salt, "sha256": found.digest},
        "because": found.because,
        "asked_at": found.asked_at.isoformat(),
        "no_longer_served_since": (found.unloaded_at or now).isoformat(),
        "erased_at": now.isoformat(),
        "served_now": {"revision": target.number, "name": target.served_name},
        "forgotten": _verified(ledger, found, tolerance),
        "tainted_together": {
            "adapters": list(tainted.adapters),
            "served": list(tainted.served),
            "deleted": deleted,
            "unloaded_on_every_replica": found.unloaded_at is not None,
        },
        "erased_from": [
            "ledger: facts, search index, quarantine, verdicts, plans, what events said",
            "archived drops, receipts, working directories, models' answers, logs",
            "adapters and revisions that learnt or replayed it, with their manifests",
        ],
        "not_promised": list(NOT_PROMISED),
    }


def _verified(ledger: Ledger, found: Retraction, tolerance: UnlearningTolerance) -> dict[str, Any]:
    """How it was verified that what is served has forgotten the fact."""
    measured = _measured(ledger, {found.id, found.handle})
    if measured is not None:
        plan, figures = measured
        return {
            "how": "the answer's rank and probability in every paraphrase, over the endpoint, "
            "beside base's; worst paraphrase shown",
            "plan": plan,
            "tolerance": tolerance.model_dump(),
            **figures.model_dump(mode="json", exclude={"fact"}),
        }
    if ledger.revisions.target().number == 0:
        return {"how": "the base is served, which never saw the fact"}
    return {"how": "no adapter that is served learnt or replayed the fact"}


def _measured(ledger: Ledger, names: set[str | None]) -> tuple[int, UnlearningResult] | None:
    for plan_id in ledger.plans.went_live(REBUILDS):
        verdict = ledger.steps.verdict(plan_id)
        for figures in verdict.unlearning if verdict else ():
            if figures.fact in names:
                return plan_id, figures
    return None
