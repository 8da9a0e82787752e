"""The tables of the ledger: schema 1."""

from __future__ import annotations

from typing import Final

from sqlite_utils import Database, Migrations

SCHEMAS: Final = ("schema_1",)
SCHEMA: Final = SCHEMAS[-1]
migrations: Final = Migrations("palorad")
# What is there before the first tables are: a first start that was cut off leaves no more.
_BOOKS: Final = frozenset({"_sqlite_migrations"})

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE batches (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  source TEXT NOT NULL,
  received_at TEXT NOT NULL,
  signature TEXT NOT NULL DEFAULT '',
  cursor TEXT NOT NULL DEFAULT '',
  complete INTEGER NOT NULL DEFAULT 0,
  aside TEXT NOT NULL DEFAULT '',
  first_fact INTEGER NOT NULL DEFAULT 0,
  alone INTEGER NOT NULL DEFAULT 0,
  line INTEGER NOT NULL DEFAULT 0,
  position INTEGER NOT NULL DEFAULT 0,
  accepted INTEGER NOT NULL DEFAULT 0,
  known INTEGER NOT NULL DEFAULT 0,
  conflicts INTEGER NOT NULL DEFAULT 0,
  quarantined INTEGER NOT NULL DEFAULT 0,
  digest TEXT NOT NULL DEFAULT ''
);
CREATE INDEX batches_name ON batches (name);
CREATE INDEX batches_signature ON batches (signature);
CREATE INDEX batches_arriving ON batches (first_fact, aside) WHERE complete = 0;

CREATE TABLE facts (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  stem TEXT NOT NULL,
  batch INTEGER NOT NULL REFERENCES batches (seq),
  key TEXT NOT NULL,
  answer TEXT NOT NULL,
  body TEXT NOT NULL,
  op TEXT NOT NULL,
  urgent INTEGER NOT NULL,
  validity TEXT NOT NULL,
  replaced_by TEXT,
  valid_from TEXT,
  valid_until TEXT,
  recorded_at TEXT NOT NULL,
  state TEXT NOT NULL,
  plan INTEGER,
  tries INTEGER NOT NULL DEFAULT 0,
  misses INTEGER NOT NULL DEFAULT 0,
  learnt INTEGER,
  lost_after INTEGER,
  salt BLOB NOT NULL DEFAULT x'',
  digest BLOB NOT NULL DEFAULT x''
);
CREATE INDEX facts_batch ON facts (batch, state);
CREATE INDEX facts_key ON facts (key);
CREATE INDEX facts_stem ON facts (stem);
CREATE INDEX facts_pending ON facts (urgent DESC, seq) WHERE state = 'pending';
CREATE INDEX facts_plan ON facts (plan) WHERE state = 'planned';
CREATE INDEX facts_unlearnt ON facts (seq) WHERE state = 'unlearnt';
CREATE INDEX facts_validity ON facts (seq, validity, valid_from, valid_until);
CREATE INDEX facts_replaced ON facts (seq) WHERE replaced_by IS NOT NULL;

CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY,
  batch INTEGER NOT NULL REFERENCES batches (seq),
  line INTEGER NOT NULL,
  kind TEXT NOT NULL,
  reason TEXT NOT NULL,
  text TEXT NOT NULL,
  UNIQUE (batch, line)
);
CREATE TABLE quarantine_numbers (
  batch INTEGER NOT NULL REFERENCES batches (seq),
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  kinds TEXT NOT NULL,
  PRIMARY KEY (batch, first)
) WITHOUT ROWID;

CREATE TABLE adapters (
  sha256 TEXT PRIMARY KEY,
  plan INTEGER NOT NULL,
  rank INTEGER NOT NULL,
  created_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE plans (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  parent INTEGER NOT NULL,
  replaces TEXT NOT NULL,
  rank INTEGER NOT NULL,
  seed INTEGER NOT NULL,
  facts INTEGER NOT NULL,
  replays INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  interruptions INTEGER NOT NULL DEFAULT 0,
  not_before TEXT,
  adapter TEXT,
  served TEXT,
  because TEXT NOT NULL,
  error TEXT,
  error_kind TEXT,
  created_at TEXT NOT NULL,
  moved_at TEXT NOT NULL
);
CREATE INDEX plans_state ON plans (state);
CREATE INDEX plans_parent ON plans (parent);

CREATE TABLE plan_batches (
  plan INTEGER NOT NULL REFERENCES plans (id),
  batch INTEGER NOT NULL REFERENCES batches (seq),
  PRIMARY KEY (plan, batch)
) WITHOUT ROWID;
CREATE INDEX plan_batches_batch ON plan_batches (batch);

CREATE TABLE plan_facts (
  plan INTEGER NOT NULL REFERENCES plans (id),
  fact INTEGER NOT NULL REFERENCES facts (seq),
  learnt INTEGER,
  PRIMARY KEY (plan, fact)
) WITHOUT ROWID;
CREATE INDEX plan_facts_fact ON plan_facts (fact);
CREATE INDEX plan_facts_missed ON plan_facts (fact, plan) WHERE learnt = 0;

CREATE TABLE leases (
  plan INTEGER NOT NULL,
  step TEXT NOT NULL,
  pid INTEGER NOT NULL,
  pid_started TEXT NOT NULL,
  deadline TEXT NOT NULL,
  started_at TEXT NOT NULL,
  PRIMARY KEY (plan, step)
) WITHOUT ROWID;

CREATE TABLE verdicts (
  plan INTEGER PRIMARY KEY,
  body TEXT NOT NULL,
  decided_at TEXT NOT NULL
);
CREATE TABLE scorecards (
  plan INTEGER NOT NULL,
  model TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (plan, model)
) WITHOUT ROWID;

CREATE TABLE revisions (
  number INTEGER PRIMARY KEY,
  plan INTEGER,
  parent INTEGER,
  lineage TEXT NOT NULL,
  served_name TEXT NOT NULL,
  sha256 TEXT,
  created_at TEXT NOT NULL
);
CREATE INDEX revisions_plan ON revisions (plan);
CREATE TABLE target (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  number INTEGER NOT NULL REFERENCES revisions (number),
  moved_at TEXT NOT NULL,
  because TEXT NOT NULL
);

CREATE TABLE retractions (
  fact INTEGER PRIMARY KEY REFERENCES facts (seq),
  handle TEXT NOT NULL UNIQUE,
  salt TEXT NOT NULL,
  digest TEXT NOT NULL,
  mark TEXT NOT NULL,
  version INTEGER NOT NULL,
  because TEXT NOT NULL,
  asked_at TEXT NOT NULL,
  last_batch INTEGER NOT NULL,
  unloaded_at TEXT,
  erased_at TEXT,
  certified_at TEXT,
  certificate TEXT
);
CREATE INDEX retractions_open ON retractions (fact) WHERE certified_at IS NULL;
CREATE INDEX retractions_mark ON retractions (mark);

CREATE TABLE paraphrases (
  fact INTEGER PRIMARY KEY REFERENCES facts (seq),
  paraphrases TEXT NOT NULL
);

CREATE TABLE removed (
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  because TEXT NOT NULL,
  removed_at TEXT NOT NULL,
  PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE TABLE feeds (
  name TEXT PRIMARY KEY,
  cursor TEXT NOT NULL,
  polled_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE events (
  seq INTEGER PRIMARY KEY,
  at TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  payload TEXT NOT NULL,
  prev_hash TEXT NOT NULL,
  hash TEXT NOT NULL,
  salt TEXT NOT NULL,
  digest TEXT NOT NULL
);
CREATE INDEX events_subject ON events (subject, seq);
CREATE INDEX events_kind ON events (kind, at);
CREATE TABLE outbox (
  event INTEGER PRIMARY KEY REFERENCES events (seq),
  type TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  waited_s REAL NOT NULL DEFAULT 0,
  dead INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT ''
);
CREATE TABLE troubles (key TEXT PRIMARY KEY, began_at TEXT NOT NULL) WITHOUT ROWID;
CREATE TRIGGER events_stand
  BEFORE UPDATE OF seq, at, kind, subject, prev_hash, hash, digest ON events
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_say BEFORE UPDATE OF payload, salt ON events
  WHEN NEW.payload <> '' OR NEW.salt <> ''
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;

CREATE VIRTUAL TABLE facts_text USING fts5 (
  prompt, answer, subject, relation, paraphrases, content='',
  tokenize="unicode61 remove_diacritics 2"
);
"""


@migrations(name=SCHEMA)
def _schema(db: Database) -> None:
    for statement in _statements(_SCHEMA):
        db.execute(statement)


def is_empty(db: Database) -> bool:
    """Whether a file has no tables but those that a first start makes before its own."""
    return set(db.table_names()) <= _BOOKS


def foreign(db: Database) -> str | None:
    """What schema a file has, if it is not this one; None for this one, for one from which
    migrations lead here, and for an empty file."""
    applied = [migration.name for migration in migrations.applied(db)]
    led_here = bool(applied) and applied == [*SCHEMAS[: len(applied)]]
    if led_here or is_empty(db):
        return None
    newest = max(reversed(applied), key=_number, default="")
    if _number(newest) > _number(SCHEMA):
        return f"a newer schema ({newest})"
    return f"an older schema ({newest})" if applied else "another program's tables"


def _number(schema: str) -> int:
    number = schema.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def _statements(script: str) -> list[str]:
    """The statements of a script; `executescript` would commit the migration's transaction."""
    found, current = [], ""
    for line in script.splitlines():
        current += line + "\n"
        whole = line.rstrip().endswith(";")
        in_trigger = "CREATE TRIGGER" in current and not line.rstrip().endswith("END;")
        if whole and not in_trigger:
            found.append(current.strip())
            current = ""
    return found
