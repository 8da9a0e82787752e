"""The five promises, as checks of a site that may stand anywhere in the middle of anything."""

from __future__ import annotations

import json

from adapters import store
from daemon.serving import pointer
from policies.gate.records import Outcome
from policies.records import OPEN_STATES, PlanState, Revision
from tests.support.life.engine import BASE_TOKEN
from tests.support.life.site import Site
from tests.support.life.writers import TOKEN, Writers, places, waiting

SETTLED_FACTS = ("done", "idle", "rejected", "unlearnt", "pending")


class Promises:
    """What has been seen so far of a site, which must not be taken back."""

    def __init__(self, site: Site, writers: Writers) -> None:
        self.site = site
        self.writers = writers
        self.decided: set[int] = set()
        self.tampered: set[str] = set()
        self.facts: dict[int, str] = {}
        self._events: list[tuple[int, str]] = []
        self._revisions: dict[int, tuple[object, ...]] = {}
        self._adapters: dict[int, str] = {}
        self._certified: set[str] = set()
        self._served: set[int] = {0}
        self._judged_bytes: dict[str, str] = {}

    def check(self) -> None:
        """All that can be said at any moment."""
        self.lines()
        self.publications()
        self.history()
        self.live()
        self.certificates()

    # --- 1 -------------------------------------------------------------------------------------

    def lines(self) -> None:
        """Every line is in the ledger once, or in quarantine once, or where its writer put it."""
        found = places(self.site)
        ledger_erases = bool(self.site.ledger.retractions.all())
        for token, line in self.writers.lines.items():
            at = found.get(token, [])
            kept = sum(place in ("fact", "quarantine") for place in at)
            if line.copies == 1:
                assert kept <= 1, f"{token} was taken twice: {at}"
            if not line.gone:
                assert at, f"{token} is lost: {line.raw.decode()}"
        for batch, accepted, quarantined in self.site.ledger.db.rows(
            "SELECT id, accepted, quarantined FROM batches WHERE complete"
        ):
            archived = self.site.layout.archived(batch)
            assert archived.exists(), f"the archive of {batch} is lost"
            if not ledger_erases:
                lines = sum(bool(raw.strip()) for raw in archived.read_bytes().split(b"\n"))
                assert accepted + quarantined == lines, f"{batch}: {lines} lines are not counted"
        for seq, body in self.site.ledger.db.rows("SELECT seq, body FROM facts"):
            for token in TOKEN.findall(body.encode())[-1:]:
                self.facts[seq] = token.decode()

    # --- 2 -------------------------------------------------------------------------------------

    def publications(self) -> None:
        """Once per plan, and live only with a passing word for exactly those bytes."""
        ledger, judged = self.site.ledger, self.site.world.judged
        plans = [revision.plan_id for revision in ledger.revisions.all() if revision.number]
        assert len(set(plans)) == len(plans), "a plan went live twice"
        for revision in ledger.revisions.all():
            if not revision.number:
                continue
            assert revision.plan_id is not None
            known = (revision.plan_id, revision.lineage, revision.served_name, revision.sha256)
            assert self._revisions.setdefault(revision.number, known) == known
            assert revision.plan_id in judged, f"revision {revision.number} was never judged"
            sha, outcome = judged[revision.plan_id]
            assert sha == revision.sha256, f"revision {revision.number}: other bytes were judged"
            may = outcome is Outcome.PASS or revision.plan_id in self.decided
            assert may, f"revision {revision.number} went live with {outcome}"
            head = ledger.plans.head(revision.plan_id)
            assert revision.lineage[-1] == head.adapter
            built_on, followed = ledger.revisions.get(head.parent), revision.parent or 0
            same = built_on.lineage == ledger.revisions.get(followed).lineage
            assert same, f"revision {revision.number} follows {followed}, not what it builds on"
        numbers = sorted(self._revisions)
        assert numbers == list(range(1, len(numbers) + 1))
        for head in ledger.plans.heads(limit=1000):
            if head.adapter is not None:
                known_as = self._adapters.setdefault(head.id, head.adapter)
                assert known_as == head.adapter, f"plan {head.id} was published twice"
        live = set(plans)
        for head in ledger.plans.heads(limit=1000):
            is_live = head.state in (PlanState.LIVE, PlanState.ROLLED_BACK)
            assert (head.id in live) == is_live, f"plan {head.id} is {head.state}"

    def bytes_on_disk(self) -> None:
        """What the target is made of lies there, as it was published."""
        ledger = self.site.ledger
        target = ledger.revisions.target()
        if target.number and not self.tampered:
            directory = self.site.layout.served / target.served_name
            assert store.verify(directory) == (), f"{directory.name}: {store.verify(directory)}"
            for sha in target.lineage:
                adapter = self.site.layout.adapter(sha)
                assert store.verify(adapter) == (), f"{adapter.name}: {store.verify(adapter)}"

    # --- 3 -------------------------------------------------------------------------------------

    def live(self) -> None:
        """What every replica answers is the target or what was served before; never a revoked one,
        never a mixture, never other bytes than those judged."""
        ledger = self.site.ledger
        target = ledger.revisions.target()
        revisions = {r.number: r for r in ledger.revisions.all()}
        said = pointer.read(self.site.layout.alias)
        assert self.site.wrong_flips == [], (
            f"flipped to what is not the target: {self.site.wrong_flips}"
        )
        self._served |= self.site.flips
        self.site.flips.clear()
        for engine in self.site.engines:
            answer = self.site.loop.run_until_complete(
                engine.ask(self.site.settings.model.alias, "prompt 0")
            )
            if answer is None or answer.status != 200:
                continue
            number = answer.revision
            assert number in revisions, f"an unknown revision {number} answers"
            assert said is None or said.revision == number
            if number == 0:
                assert set(answer.tokens) == {BASE_TOKEN}, "the base answers like something else"
            else:
                self._bytes(engine.weights[revisions[number].served_name].sha256, revisions[number])
            if number != target.number:
                assert number in self._served, f"{number} answers, the target is {target.number}"
                self._not_revoked(revisions[number])
        if self._settled():
            self._served = {target.number}
        else:
            self._served |= {target.number}

    def _settled(self) -> bool:
        service = self.site.service
        return service is not None and service._rollout.settled

    def _bytes(self, sha: str, revision: Revision) -> None:
        assert revision.plan_id is not None
        judged = self.site.world.judged[revision.plan_id][0]
        assert sha == judged, f"revision {revision.number} answers from other bytes: {sha[:12]}"

    def _not_revoked(self, revision: Revision) -> None:
        """Whether it knows a fact that is said to be unloaded everywhere."""
        ledger = self.site.ledger
        unloaded = {
            row[0]
            for row in ledger.db.rows("SELECT fact FROM retractions WHERE unloaded_at IS NOT NULL")
        }
        known = ledger.knowledge.retracted_in(revision.lineage) & unloaded
        assert not known, f"revision {revision.number} is served and knows facts {known}"

    # --- 5 -------------------------------------------------------------------------------------

    def history(self) -> None:
        """Nothing that was told is untold, times never run back, and it says what is so."""
        ledger = self.site.ledger
        ledger.events.verify_chain()
        rows = ledger.db.rows("SELECT seq, at, kind, subject, hash FROM events ORDER BY seq")
        before = self._events
        assert [(row[0], row[4]) for row in rows[: len(before)]] == before, "events were lost"
        self._events = [(row[0], row[4]) for row in rows]
        times = [row[1] for row in rows]
        assert times == sorted(times), "history runs backwards"
        last: dict[str, str] = {}
        for _, _, kind, subject, _ in rows:
            if kind.startswith("plan.") or kind == "target":
                last["target" if kind == "target" else subject] = f"{kind} {subject}"
        target = ledger.revisions.target().number
        assert last.get("target", "target revision:0") == f"target revision:{target}"
        for head in ledger.plans.heads(limit=1000):
            state = "live" if head.state is PlanState.ROLLED_BACK else head.state.value
            told = last[f"plan:{head.id}"].split()[0]
            assert told in (f"plan.{state}", "plan.made"), f"plan {head.id}: {told}, is {state}"
            assert told != "plan.made" or state == "planned"
        admitted = sum(row[2] == "batch.admitted" for row in rows)
        complete = ledger.db.one("SELECT count(*) FROM batches WHERE complete")
        assert admitted == complete, "admissions and batches differ"
        asked = sum(row[2] == "fact.retracted" for row in rows)
        assert asked == ledger.db.one("SELECT count(*) FROM retractions")

    def certificates(self) -> None:
        """Where a certificate lies, nothing is left of the fact, and nothing that learnt it."""
        folder = self.site.layout.certificates
        here = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
        done = {r.handle for r in self.site.ledger.retractions.all() if r.certified_at is not None}
        assert done <= here, "a certificate is lost"
        fresh = (here & done) - self._certified
        if fresh:
            self._certified |= fresh
            self.nothing_left()

    def nothing_left(self) -> None:
        """No file of the state directory tells a certified fact, no replica has learnt it."""
        ledger, layout = self.site.ledger, self.site.layout
        gone = set()
        for found in ledger.retractions.all():
            token = self.facts.get(found.fact)
            if found.certified_at is None or token is None:
                continue
            line = self.writers.lines.get(token)
            if line is not None and line.copies == 1:
                gone.add(token.encode())
        for path in layout.root.rglob("*"):
            waits = layout.inbox in path.parents and path.suffix == ".jsonl"
            if path.is_file() and not waits:
                left = gone & set(TOKEN.findall(path.read_bytes()))
                assert not left, f"{path.relative_to(layout.root)} still tells {left}"
        for found in ledger.retractions.all():
            if found.certified_at is None:
                continue
            text = json.loads(layout.certificate(found.handle).read_text())
            for name in text["tainted_together"]["served"]:
                assert not (layout.served / name).exists(), f"{name} was not deleted"
                for engine in self.site.engines:
                    assert name not in engine.weights, f"{name} is still loaded"
            for sha in text["tainted_together"]["adapters"]:
                assert not layout.adapter(sha).exists(), f"adapter {sha[:12]} was not deleted"

    # --- 4 -------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """After everything has been put right, all has come to its end."""
        site, ledger = self.site, self.site.ledger
        self.check()
        self.bytes_on_disk()
        self.nothing_left()
        assert ledger.plans.open_plan() is None
        assert ledger.steps.leases() == ()
        assert site.trouble == (), site.trouble
        left = [p for p in waiting(site) if p.stat().st_size]  # an empty one is refused and stays
        assert left == [], f"not taken: {left}; {site._service._intake.problems}"
        target = ledger.revisions.target()
        said = pointer.read(site.layout.alias)
        assert said is not None and said.revision == target.number
        for status in site._service._servers.fleet.statuses:
            assert status.active == target.served_name, f"{status.url}: {status.reason}"
        for fact, state, plan in ledger.db.rows("SELECT id, state, plan FROM facts"):
            if state == "planned":
                waits = ledger.plans.head(plan).state
                assert waits in {PlanState.FAILED, PlanState.INCONCLUSIVE}, (fact, waits)
            else:
                assert state in SETTLED_FACTS, (fact, state)
        for head in ledger.plans.heads(limit=1000):
            assert head.state not in OPEN_STATES
