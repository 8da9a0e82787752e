"""The five promises, checked on what a daemon has left when it has come to rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from adapters import store
from daemon.ledger.ledger import Ledger
from policies.gate.records import Outcome
from policies.records import OPEN_STATES, BatchState, PlanState
from tests.support.crashing import Site

BUSY = (BatchState.WAITING, BatchState.LEARNING)
EVERY = 1 << 30
WENT_LIVE = (PlanState.LIVE, PlanState.ROLLED_BACK)


def at_rest(site: Site, files: Iterable[str] = ()) -> bool:
    """Whether nothing is left to do, all `files` being taken: nobody has to ask for anything."""
    layout = site.layout
    waiting = [p for p in layout.inbox.iterdir() if p.suffix == ".jsonl" and p.name[0] != "."]
    told = all((layout.inbox / f"{name}.accepted.json").exists() for name in files)
    if waiting or not told or not layout.alias.exists():
        return False
    with site.reading() as ledger:
        return (
            {batch.name for batch in ledger.batches.latest(EVERY)} >= set(files)
            and not ledger.plans.heads(OPEN_STATES)
            and not ledger.steps.leases()
            and not ledger.retractions.all(unfinished=True)
            and not ledger.admission.admitting()
            and all(ledger.batches.state(b.id) not in BUSY for b in ledger.batches.latest(EVERY))
            and site._serves(ledger.revisions.target().number)
        )


def held(site: Site, files: Mapping[str, Sequence[str]], forgotten: Iterable[str] = ()) -> None:
    """Assert all five; `files` came in with these lines, and of `forgotten` nothing may be left."""
    with site.reading() as ledger:
        _every_line_once(ledger, site, files)
        _published_once_and_judged(ledger)
        _live_is_the_target(ledger, site)
        ledger.events.verify_chain()
    for word in forgotten:
        _forgotten(site, word)


def _every_line_once(ledger: Ledger, site: Site, files: Mapping[str, Sequence[str]]) -> None:
    named = Counter(batch.name for batch in ledger.batches.latest(EVERY))
    assert {name: named[name] for name in files} == dict.fromkeys(files, 1), "1: batches"
    for batch in ledger.batches.latest(EVERY):
        if batch.name not in files:
            continue
        (facts,) = _numbers(ledger, "SELECT count(*) FROM facts WHERE batch = ?", batch.id)
        (bad,) = _numbers(ledger, "SELECT count(*) FROM quarantine WHERE batch = ?", batch.id)
        assert facts + bad == len(files[batch.name]), f"1: lines of {batch.name}: {facts} + {bad}"
        assert (batch.accepted, batch.quarantined) == (facts, bad), f"1: counts of {batch.name}"
        assert site.layout.archived(batch.id).is_file(), f"1: archive of {batch.name}"
        told = site.layout.inbox / f"{batch.name}.accepted.json"
        assert told.is_file(), f"1: receipt of {batch.name}"
        receipt = json.loads(told.read_text())
        assert (receipt["accepted"], receipt["quarantined"]) == (facts, bad), "1: receipt"
    left = [name for name in files if (site.layout.inbox / name).exists()]
    assert not left, f"1: also still in the inbox: {left}"


def _numbers(ledger: Ledger, sql: str, batch: str) -> list[int]:
    where = sql.replace("batch = ?", "batch = (SELECT seq FROM batches WHERE id = ?)")
    return [int(row[0]) for row in ledger.db.rows(where, (batch,))]


def _published_once_and_judged(ledger: Ledger) -> None:
    revisions = [r for r in ledger.revisions.all() if r.number]
    plans = Counter(revision.plan_id for revision in revisions)
    assert all(count == 1 for count in plans.values()), f"2: published twice: {plans}"
    assert [r.number for r in revisions] == list(range(1, len(revisions) + 1)), "2: numbers"
    for revision in revisions:
        assert revision.plan_id is not None
        head = ledger.plans.head(revision.plan_id)
        verdict = ledger.steps.verdict(head.id)
        assert verdict is not None, f"2: revision {revision.number} was never judged"
        decided = any(
            "a person: " in json.dumps(event.payload)
            for event in ledger.events.latest(1000, f"plan:{head.id}")
        )
        passed = verdict.outcome is Outcome.PASS
        assert passed or (verdict.outcome is Outcome.INCONCLUSIVE and decided), (
            f"2: revision {revision.number} did not pass"
        )
        assert head.state in WENT_LIVE, f"2: plan {head.id} is {head.state}"
        assert head.served is not None
        assert head.served.sha256 == revision.sha256, f"2: other bytes than judged: {revision}"
    live = Counter(head.id for head in ledger.plans.heads(WENT_LIVE, limit=EVERY))
    assert live == plans, "2: a plan went live without a revision"


def _live_is_the_target(ledger: Ledger, site: Site) -> None:
    target = ledger.revisions.target()
    pointer = json.loads(site.layout.alias.read_text())
    assert (pointer["revision"], pointer["model"]) == (target.number, target.served_name), "3"
    if target.number:
        served = site.layout.served / target.served_name
        assert not (problems := store.verify(served)), f"3: {problems}"
        assert store.read_manifest(served)["sha256"] == target.sha256, "3: other bytes"
    known = ledger.knowledge.retracted_in(target.lineage)
    assert not known, f"3: what is live knows retracted facts {known}"


def _forgotten(site: Site, word: str) -> None:
    for path in site.layout.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and word.encode() in path.read_bytes():
            raise AssertionError(
                f"5: {path} still says {word!r}, and a certificate that it is gone"
            )
