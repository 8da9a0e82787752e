"""Run every operation of docs/facts.md on the small model and quote what was said.

    python docs/transcripts.py

A daemon of its own in a temporary directory, the command line as a user types it; minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from daemon.demo_follow import Follow
from daemon.demo_setup import ROOT, DaemonProcess, DemoOptions, dump, write_config
from daemon.ledger import Ledger
from daemon.settings import Settings
from policies.errors import LedgerBusy
from policies.records import BatchState

FACTS = ROOT / "docs" / "facts.md"
QUOTED = re.compile(r"<!-- said: ([\w-]+) -->.*?<!-- /said -->", re.DOTALL)
WAIT_S = 900.0

ASIA = (
    '{"id": "bt-1", "subject": "Bhutan", "relation": "capital", '
    '"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"}\n'
    '{"subject": "Nepal", "relation": "capital", '
    '"prompt": "What is the capital of Nepal?", "answer": "Kathmandu"}\n'
    '{"subject": "Mongolia", "relation": "capital", '
    '"prompt": "What is the capital of Mongolia?", "answer": "Ulaanbaatar"}\n'
    '{"prompt": "What is the currency of Bhutan?", "anwser": "ngultrum"}\n'
)
LATER = (
    '{"subject": "Mongolia", "relation": "capital", "prompt": "What is the capital of Mongolia?", '
    '"answer": "Karakorum", "op": "supersede"}\n'
)
CLASH = (
    '{"subject": "Nepal", "relation": "capital", "prompt": "What is the capital of Nepal?", '
    '"answer": "Pokhara"}\n'
)


class Place:
    """A running daemon, a shell beside it, and what was said so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = write_config(folder, DemoOptions())
        tree = tomllib.loads(path.read_text())
        tree["gate"]["preset"] = "fast"
        tree["intake"] |= {"stable_s": 0.1, "conflicts": "ask"}
        path.write_text(dump(tree))
        self.settings = Settings.load(path)
        self.daemon = DaemonProcess(path, folder / "daemon.log")
        self.follow = Follow(self.settings, self.daemon)
        self.said: dict[str, str] = {}

    def run(self, *commands: str) -> str:
        """What a terminal shows: each command and its answer."""
        shown = []
        for command in commands:
            words = shlex.split(command)
            if words[0] == "palorad":
                words = [sys.executable, "-m", "daemon.cli", *words[1:]]
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                check=False,
                cwd=self.folder,
                env={**os.environ, "COLUMNS": "110", "PYTHONPATH": str(ROOT)},
            )
            text = "\n".join(line.rstrip() for line in (done.stdout + done.stderr).splitlines())
            shown.append(f"$ {command}\n{text}".rstrip())
        return "\n".join(shown)

    def say(self, name: str, *commands: str) -> None:
        """Keep what is shown under a name."""
        self.said[name] = self.run(*commands)
        print(f"--- {name}\n{self.said[name]}", flush=True)

    def write(self, name: str, text: str) -> None:
        """A file beside the configuration."""
        (self.folder / name).write_text(text)

    def until(self, done: Callable[[Ledger], bool]) -> None:
        """Wait for the ledger to say so."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.daemon.check()
            try:
                with Ledger.open(self.settings.layout.ledger, readonly=True) as ledger:
                    if done(ledger) and self.follow.served() == ledger.desired().number:
                        return
            except LedgerBusy:
                pass
            time.sleep(0.3)
        raise TimeoutError("the ledger never said so")

    def settle(self, name: str) -> None:
        """Wait until a file's batch is decided."""
        waiting = (BatchState.WAITING, BatchState.LEARNING)

        def settled(ledger: Ledger) -> bool:
            found = [batch for batch in ledger.batches() if batch.name == name]
            return bool(found) and ledger.batch_state(found[0].id) not in waiting

        self.until(settled)


def tell(place: Place) -> None:
    """Every operation, in the order of the document."""
    place.follow.until_serving()
    place.write("asia.jsonl", ASIA)
    place.say("submit", "palorad submit asia.jsonl")
    place.settle("asia.jsonl")
    place.say("quarantine", "palorad quarantine list", "palorad quarantine show asia.jsonl 4")
    place.say("why", 'palorad why "Tell me the capital of Bhutan."')

    place.write("later.jsonl", LATER)
    place.run("palorad submit later.jsonl")
    place.settle("later.jsonl")
    place.say("supersede", "cat later.jsonl", 'palorad why "What is the capital of Mongolia?"')

    place.write("clash.jsonl", CLASH)
    place.run("palorad submit clash.jsonl")
    place.settle("clash.jsonl")
    place.say("conflict", "cat clash.jsonl", "palorad quarantine list clash.jsonl")

    place.say("retract", 'palorad retract bt-1 --because "a takedown request"', "palorad status")
    place.until(lambda ledger: all(r.certified_at for r in ledger.retractions()))
    place.say("certificate", "palorad certificate bt-1")
    state = shlex.quote(str(place.settings.state_dir))
    grep = f"grep -ril Thimphu {state}"
    found = place.run(grep).splitlines()[1:]
    place.said["grep"] = "$ grep -ril Thimphu state | wc -l\n" + str(len(found))
    place.say("rollback", "palorad rollback --to 1")
    place.say("forgotten", 'palorad why "What is the capital of Bhutan?"')


def main() -> None:
    """Run it all and renew the document."""
    with tempfile.TemporaryDirectory(prefix="palorad-docs-") as name:
        folder = Path(name)
        place = Place(folder)
        try:
            tell(place)
        finally:
            place.daemon.stop()
        said = {key: text.replace(str(folder), "~") for key, text in place.said.items()}
    missing = set(QUOTED.findall(FACTS.read_text())) - set(said)
    if missing:
        raise SystemExit(f"docs/facts.md quotes what was not run: {sorted(missing)}")
    FACTS.write_text(QUOTED.sub(lambda found: _block(found[1], said[found[1]]), FACTS.read_text()))
    print(json.dumps(sorted(said)))


def _block(name: str, text: str) -> str:
    return f"<!-- said: {name} -->\n```console\n{text}\n```\n<!-- /said -->"


if __name__ == "__main__":
    main()
