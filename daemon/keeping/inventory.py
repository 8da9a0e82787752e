"""What lies on the disk and what the ledger says of it, as plain records for the policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from daemon.config.layout import Layout
from daemon.intake.inbox import RECEIPT_ENDINGS
from daemon.ledger.ledger import Ledger
from daemon.ledger.meta import BASE
from daemon.serving import pointer
from policies.retention import (
    Holdings,
    KeepLimits,
    Removal,
    StoredItem,
    StoredKind,
    removable,
)

HALF: Final = ".tmp-"


def to_remove(
    ledger: Ledger, layout: Layout, limits: KeepLimits, serving: Collection[str], now: datetime
) -> tuple[Removal, ...]:
    """What may go now; `serving` names what replicas have loaded."""
    found = list(items(layout, archives=bool(limits.archive_days)))
    return removable(standing(ledger, layout, serving, now, found, limits), found, limits)


def path_of(layout: Layout, kind: StoredKind, name: str) -> Path:
    """Where an item lies."""
    return _HOMES[kind](layout, name)


_HOMES: Final[dict[StoredKind, Callable[[Layout, str], Path]]] = {
    StoredKind.ARCHIVE: lambda layout, name: layout.archived(name),
    StoredKind.ADAPTER: lambda layout, name: layout.adapters / name,
    StoredKind.REVISION: lambda layout, name: layout.served / name,
    StoredKind.ANSWERS: lambda layout, name: layout.answers / name,
    StoredKind.WORK: lambda layout, name: layout.work / name,
    StoredKind.RECEIPT: lambda layout, name: layout.inbox / name,
    StoredKind.HALF: lambda layout, name: layout.root / name,
}


def standing(
    ledger: Ledger,
    layout: Layout,
    serving: Collection[str],
    now: datetime,
    found: Sequence[StoredItem],
    limits: KeepLimits,
) -> Holdings:
    """What the ledger, the replicas and the alias say of what is needed, and of what was found."""
    names: defaultdict[StoredKind, set[str]] = defaultdict(set)
    for item in found:
        names[item.kind].add(item.name)
    routed = pointer.read(layout.alias)
    served = frozenset(serving) | ({routed.model} if routed is not None else set())
    adapters = names[StoredKind.ADAPTER]
    running = frozenset(lease.plan for lease in ledger.steps.leases())
    ids = {name.partition("-")[0] for name in names[StoredKind.WORK]} | {str(n) for n in running}
    plans = tuple(ledger.stored.plans(ids, names[StoredKind.REVISION], adapters))
    target = ledger.revisions.target().number
    numbers = ledger.stored.reachable(target, limits.revisions) | {plan.parent for plan in plans}
    unfinished = [found.handle for found in ledger.retractions.all(unfinished=True)]
    tainted = ledger.retractions.tainted(unfinished)
    return Holdings(
        now=now,
        target=target,
        base=ledger.meta.get(BASE),
        revisions=tuple(
            ledger.stored.revisions(numbers, served | names[StoredKind.REVISION], adapters)
        ),
        plans=plans,
        batches=tuple(
            ledger.stored.batches(
                names[StoredKind.ARCHIVE], {_drop(name) for name in names[StoredKind.RECEIPT]}
            )
        ),
        running=running,
        serving=served,
        tainted=frozenset({*tainted.adapters, *tainted.served, *tainted.models}),
    )


def items(layout: Layout, *, archives: bool) -> Iterator[StoredItem]:
    """Everything on the disk of which some may go; what vanishes meanwhile is left out."""
    for kind, folder in (
        (StoredKind.ADAPTER, layout.adapters),
        (StoredKind.REVISION, layout.served),
        (StoredKind.ANSWERS, layout.answers),
        (StoredKind.WORK, layout.work),
    ):
        for path in _entries(folder):
            if path.is_dir() and not path.name.startswith("."):
                yield from _item(kind, path.name, path)
    for folder in (layout.adapters, layout.served, layout.probes):
        for path in _entries(folder):
            if path.name.startswith(HALF):
                yield from _item(StoredKind.HALF, f"{folder.name}/{path.name}", path)
    for path in _entries(layout.archive) if archives else ():
        if path.suffix == ".jsonl" and not path.name.startswith("."):
            yield from _item(StoredKind.ARCHIVE, path.stem, path)
    for path in _entries(layout.inbox):
        if path.name.endswith(RECEIPT_ENDINGS) and not path.with_name(_drop(path.name)).exists():
            yield from _item(StoredKind.RECEIPT, path.name, path)


def _drop(receipt: str) -> str:
    """The name of the file that a receipt stands beside."""
    return receipt.rsplit(".", 2)[0]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _item(kind: StoredKind, name: str, path: Path) -> Iterator[StoredItem]:
    try:
        seen = [p.lstat() for p in (path, *(path.rglob("*") if path.is_dir() else ()))]
    except FileNotFoundError:
        return
    changed = datetime.fromtimestamp(max(s.st_mtime for s in seen), UTC)
    yield StoredItem(kind=kind, name=name, bytes=sum(s.st_size for s in seen), changed_at=changed)
