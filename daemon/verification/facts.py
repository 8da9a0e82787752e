"""Facts against the digests that were taken when they were stored, archives against theirs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Final

from daemon.config.layout import Layout
from daemon.ledger.chain import followed
from daemon.ledger.events import ARCHIVE_ERASED, FACT_ERASED
from daemon.ledger.ledger import Ledger
from daemon.verification.confirming import Confirmed
from daemon.verification.findings import Inspection

_LEARN_AGAIN: Final = (
    "restore a backup; or `palorad retract` it and drop it again, if the archive still has it right"
)


def check_facts(ledger: Ledger, path: Path, inspection: Inspection) -> None:
    """Every fact, and for each batch that none was added, removed or put in another's place."""
    lawful = {
        seq
        for _, _, _, said in ledger.events.of_kinds(FACT_ERASED)
        for seq in said.get("facts", ())
    }
    whole: defaultdict[int, str] = defaultdict(str)
    for rows in ledger.audit.facts():
        for fact in rows:
            whole[fact.batch] = followed(whole[fact.batch], (fact.digest,))
            if fact.erased and fact.seq not in lawful:
                what = f"what fact {fact.id} said is gone without a retraction"
                inspection.found("facts", path, what)
            elif fact.erased and fact.answer:
                inspection.found("facts", path, f"erased fact {fact.id} has an answer again")
            elif not fact.erased and not fact.same:
                what = f"fact {fact.id} is not what was admitted"
                inspection.found("facts", path, what, _LEARN_AGAIN)
        inspection.count("facts", len(rows))
    _check_batches(ledger, path, whole, inspection)


def _check_batches(
    ledger: Ledger, path: Path, whole: defaultdict[int, str], inspection: Inspection
) -> None:
    said: dict[str, str] = {}
    for _, _, batch, counts in ledger.events.of_kinds("batch.admitted", "batch.readmitted"):
        said[batch] = counts.get("digest", "")
    for seq, batch, name, complete, digest in ledger.audit.batches():
        if complete and batch not in said:
            inspection.found("facts", path, f"batch {name} ({batch[:12]}) was never admitted")
        elif whole[seq] != digest or (complete and said[batch] not in (digest, "")):
            what = f"the facts of batch {name} ({batch[:12]}) are not those that were admitted"
            inspection.found("facts", path, what)


def check_archives(layout: Layout, confirmed: Confirmed, inspection: Inspection) -> None:
    """The bytes of every batch."""
    for row in confirmed.ledger.audit.batches():
        batch, path = row.id, layout.archived(row.id)
        problem = confirmed(partial(_archive_problem, layout, batch))
        if problem:
            advice = f"restore {path.name} from a backup: quarantined lines are read from it"
            inspection.found("archive", path, f"{problem} (batch {row.name})", advice)
        inspection.count("archives")


def _archive_problem(layout: Layout, batch: str, ledger: Ledger) -> str:
    """What is wrong with an archive; it bears the beginning of the hash of its first bytes, and
    when retracted lines leave it, history says what it becomes."""
    path = layout.archived(batch)
    if not path.is_file():
        return "" if ledger.events.was_removed(f"archive:{batch}") else "is gone"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    hashes = [batch]
    for _, _, _, said in ledger.events.of_kinds(ARCHIVE_ERASED, subject=batch):
        hashes.append(said.get("sha256", "?"))
    # Until a retraction is certified, its erasure may have been cut off in between.
    allowed = hashes[-2:] if ledger.retractions.all(unfinished=True) else hashes[-1:]
    return "" if any(found.startswith(one) for one in allowed) else "is not what was taken in"
