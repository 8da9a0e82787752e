"""The ledger: everything that is durably true, in one SQLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from daemon.ledger.admission import Admission
from daemon.ledger.ancestry import Ancestry
from daemon.ledger.audit import Audit
from daemon.ledger.batches import Batches
from daemon.ledger.database import Database
from daemon.ledger.erasure import Erasure
from daemon.ledger.events import Events
from daemon.ledger.facts import Facts
from daemon.ledger.feeds import FeedCursors
from daemon.ledger.knowledge import Knowledge
from daemon.ledger.listings import Listings
from daemon.ledger.meta import Meta
from daemon.ledger.outbox import Outbox
from daemon.ledger.paraphrases import ParaphraseCache
from daemon.ledger.planning import Planning
from daemon.ledger.plans import Plans
from daemon.ledger.quarantine import Quarantine
from daemon.ledger.removals import Removals
from daemon.ledger.retractions import Retractions
from daemon.ledger.revisions import Revisions
from daemon.ledger.steps import Steps
from daemon.ledger.stored import Stored
from daemon.ledger.text import TextIndex
from daemon.ledger.troubles import Troubles


class Ledger:
    """One database and the parts that read and change it; the parts share its transactions."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.meta = Meta(db)
        self.events = Events(db)
        self.outbox = Outbox(db)
        self.troubles = Troubles(db)
        self.feeds = FeedCursors(db)
        self.audit = Audit(db)
        self.facts = Facts(db)
        self.text = TextIndex(db)
        self.paraphrases = ParaphraseCache(db)
        self.plans = Plans(db)
        self.batches = Batches(db, self.plans)
        self.removals = Removals(db)
        self.stored = Stored(db, self.batches)
        self.steps = Steps(db, self.plans, self.removals)
        self.knowledge = Knowledge(db, Ancestry(db))
        self.revisions = Revisions(db, self.plans, self.steps, self.knowledge, self.removals)
        self.retractions = Retractions(db, self.facts, self.revisions, self.knowledge)
        self.erasure = Erasure(db)
        self.admission = Admission(db, self.batches, self.feeds, self.retractions)
        self.quarantine = Quarantine(db, self.admission)
        self.listings = Listings(db)
        self.planning = Planning(
            db, self.meta, self.facts, self.plans, self.steps, self.revisions, self.knowledge
        )

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Self:
        """The ledger at `path`, made when it is written; raises `LedgerUnusable`."""
        return cls(Database.open(path, readonly))

    def close(self) -> None:
        """End the connection."""
        self.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
