"""[intake]: what becomes of a file in the inbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from daemon.config.settings import Settings
from daemon.intake import following
from daemon.intake.intake import Intake
from daemon.intake.writers import Writers
from daemon.ledger.ledger import Ledger
from daemon.loop.preflight import prepare_state
from tests.config.effects import Effect, Observe
from tests.support import tiny
from tests.support.world import START


def taken(*lines: object, after_s: float = 3.0) -> Observe:
    """The receipt and the facts of a file of these lines that has rested for a while."""

    def observe(settings: Settings, root: Path) -> object:
        prepare_state(settings)
        seconds = [0.0]
        with Ledger.open(settings.layout.ledger) as ledger:
            intake = Intake(
                ledger,
                settings.layout,
                settings.intake,
                lambda: seconds[0],
                model_dir=settings.model.path,
            )
            (root / "state" / "inbox").mkdir(exist_ok=True)
            text = "".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
            (root / "state" / "inbox" / "facts.jsonl").write_text(text)
            receipts = intake.step(START, 60)
            seconds[0] = after_s
            receipts += intake.step(START, 60)
            told = [(r.state, r.accepted, r.quarantined, r.conflicts) for r in receipts]
            numbered = [ledger.quarantine.numbered(b.id) for b in ledger.batches.latest()]
            return told, ledger.facts.find(), numbered

    return observe


def followed(settings: Settings, root: Path) -> object:
    """What is left in the inbox 100 s after a file was read whose writer cannot be seen."""

    @contextmanager
    def untold(_: int) -> Iterator[Writers]:
        yield Writers.UNKNOWN

    prepare_state(settings)
    seconds = [0.0]
    with (
        mock.patch.object(following, "kept_out", untold),
        Ledger.open(settings.layout.ledger) as ledger,
    ):
        intake = Intake(ledger, settings.layout, settings.intake, lambda: seconds[0])
        (settings.layout.inbox / "facts.jsonl").write_text(fact())
        for seconds[0] in (0.0, 3.0, 103.0):
            intake.step(START, 60)
    return sorted(path.name[-8:] for path in settings.layout.inbox.iterdir())


def fact(**changes: Any) -> str:
    line = {"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"}
    key = {"subject": "Bhutan", "relation": "capital"}
    return json.dumps({**line, **key, **changes}) + "\n"


def tokenizer(root: Path) -> Path:
    """A model directory with a tokenizer of one token a byte."""
    path = root / "tokenised"
    tiny.tokenizer().save_pretrained(path)
    return path


TWO_ANSWERS = (fact(), fact(answer="Paro"))
BLANK = " " * 60_000 + "\n"
EFFECTS: dict[str, Effect] = {
    "intake.inbox": Effect(taken(fact()), "drops"),
    "intake.stable_s": Effect(taken(fact()), 100.0),
    "intake.max_file_mb": Effect(taken(fact(), *[BLANK] * 20), 1, {"intake.max_file_mb": 2}),
    "intake.late_lines_s": Effect(followed, 50.0),
    "intake.max_lines": Effect(taken(*TWO_ANSWERS), 1),
    "intake.max_quarantined": Effect(taken(fact(), "no JSON\n"), 0),
    "intake.max_line_kb": Effect(taken(fact().replace('", "', '",' + " " * 70_000 + '"', 1)), 128),
    "intake.max_tokens": Effect(taken(fact(answer="a valley " * 8)), 64, {"model.path": tokenizer}),
    "intake.format": Effect(taken({"question": "Who wrote it?", "answer": "Ada"}), "native"),
    "intake.bad_lines": Effect(taken(fact(), "no JSON\n"), "reject"),
    "intake.conflicts": Effect(taken(*TWO_ANSWERS), "reject"),
    "intake.paraphrase_source": Effect(taken(fact()), "given"),
    "intake.min_paraphrases": Effect(taken(fact()), 6),
}
