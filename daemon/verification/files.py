"""The store's directories against their manifests and the ledger, the alias against history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from adapters import store
from daemon.config.layout import Layout
from daemon.ledger.ledger import Ledger
from daemon.serving import pointer
from daemon.serving.fleet import SWITCHED
from daemon.verification.confirming import Confirmed
from daemon.verification.findings import RESTORE, Inspection
from policies.records import Revision
from policies.retention import StoredKind

_ADVICE = "restore it from a backup, or retrain with `palorad consolidate`"


def check_store(layout: Layout, confirmed: Confirmed, inspection: Inspection) -> None:
    """Every revision within reach, and every other published directory."""
    for revision in confirmed.ledger.revisions.all():
        if revision.number:
            check_revision(layout, revision, confirmed, inspection)
    for sha in confirmed.ledger.revisions.target().lineage:
        _check_adapter(layout, sha, confirmed, inspection)
    known = {layout.served / r.served_name for r in confirmed.ledger.revisions.all()}
    for directory in _published(layout):
        if directory not in known and (problem := _problem(directory)):
            inspection.found("store", directory, problem, _ADVICE)
        inspection.count("directories")


def check_revision(
    layout: Layout, revision: Revision, confirmed: Confirmed, inspection: Inspection
) -> None:
    """The files of one revision: all there, as they were judged, and none besides."""
    directory = layout.served / revision.served_name

    def problem(ledger: Ledger) -> str:
        if not directory.is_dir():
            gone = _lawfully_gone(ledger, StoredKind.REVISION, revision.served_name)
            lawful = gone or revision.served_name in _retracted(ledger)[0]
            return "" if lawful else f"revision {revision.number} is gone"
        if found := _problem(directory):
            return f"is not what was published: {found}"
        if directory.is_dir() and store.manifest_hash(directory) != revision.sha256:
            return f"is not revision {revision.number} as it was judged: its bytes are others"
        return ""

    if found := confirmed(problem):
        inspection.found("store", directory, found, _ADVICE)


def _check_adapter(
    layout: Layout, sha256: str, confirmed: Confirmed, inspection: Inspection
) -> None:
    directory = layout.adapter(sha256)

    def problem(ledger: Ledger) -> str:
        if directory.is_dir():
            if _problem(directory):
                return ""  # told below, as of every published directory
            same = store.manifest_hash(directory) == sha256
            return "" if same else "is not the adapter that was trained: its bytes are others"
        gone = _lawfully_gone(ledger, StoredKind.ADAPTER, directory.name)
        return "" if gone or sha256 in _retracted(ledger)[1] else "an adapter of the target is gone"

    if found := confirmed(problem):
        inspection.found("store", directory, found, _ADVICE)


def _lawfully_gone(ledger: Ledger, kind: StoredKind, name: str) -> bool:
    """Whether retention has removed it, by its own books and by history: the books know what was
    published once more since, and only history cannot be edited unnoticed."""
    books = ledger.removals.has(kind, name)
    return books and ledger.events.was_removed(f"{kind.value}:{name}")


def _retracted(ledger: Ledger) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of revisions and hashes of adapters that retractions have deleted.

    A retraction that may go on deletes first and records it afterwards: what it was killed over is
    gone lawfully, too.
    """
    handles = {r.handle for r in ledger.retractions.all() if r.unloaded_at is not None}
    handles |= {r.handle for r in ledger.retractions.erasable()}
    tainted = ledger.retractions.tainted(sorted(handles))
    return tainted.served, tuple(tainted.adapters)


def _published(layout: Layout) -> Iterator[Path]:
    for parent in (layout.adapters, layout.served, layout.probes):
        if parent.is_dir():
            yield from (p for p in sorted(parent.iterdir()) if p.is_dir() and p.name[0] != ".")


def _problem(directory: Path) -> str:
    """What is wrong with a directory first; nothing if it has been deleted meanwhile."""
    problems = store.verify(directory)
    return problems[0] if problems and directory.is_dir() else ""


# --- the alias -------------------------------------------------------------------------------


def check_alias(
    layout: Layout, alias: str, base: str, confirmed: Confirmed, inspection: Inspection
) -> None:
    """The alias stands for the target, or while a switch is under way for what it stood for before
    or for a target in between."""

    def problem(ledger: Ledger) -> str:
        said = pointer.read(layout.alias)
        if said is None:
            flipped = any(True for _ in ledger.events.of_kinds("served"))
            return "is gone or damaged" if flipped or layout.alias.exists() else ""
        names = {r.number: r.served_name if r.number else base for r in ledger.revisions.all()}
        wanted = names[ledger.revisions.target().number]
        allowed = {wanted, *_stood_for(ledger, names)}
        known = names.get(said.revision) == said.model
        if said.alias == alias and known and said.model in allowed:
            return ""
        return f"stands for {said.model} (revision {said.revision}), the target is {wanted}"

    if found := confirmed(problem):
        advice = f"{RESTORE}, or remove the file: the daemon writes it again"
        inspection.found("pointer", layout.alias, found, advice)
    inspection.count("pointers")


def _stood_for(ledger: Ledger, names: Mapping[int, str]) -> set[str]:
    """What the alias was switched to last, by history, and every target since."""
    target, found = names[0], {names[0]}
    for _, kind, subject, said in ledger.events.of_kinds("target", "served"):
        if kind == "target":
            target = names.get(int(subject.rpartition(":")[2]), "")
            found.add(target)
        for step in said.get("steps", ()) if kind == "served" else ():
            if any(f" {words} " in step for words in SWITCHED) and " closed on " not in step:
                found = {step.rpartition(" ")[2], target}
    return found
