"""Run on the small model what the documents quote, and record what was said.

    python docs/transcripts.py [facts] [serving] [first-day]

A daemon of its own in a temporary directory, the command line as a user types it; minutes. For
docs/serving.md two real vLLM servers (`make setup-vllm`).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import generate

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.serving import server_command, tether
from demo.follow import Follow
from demo.newcomer import newcomer
from demo.setup import ROOT, DaemonProcess, DemoOptions, dump, free_port, write_config
from policies.errors import LedgerBusy
from policies.records import BatchState

RECORDS = ROOT / "docs" / "transcripts"
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


class Shell:
    """A shell in a folder, and what was said so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}

    def run(self, *commands: str) -> str:
        """What a terminal shows: each command and its answer."""
        shown = []
        for command in commands:
            words = shlex.split(command)
            if words[0] == "palorad":
                words = [sys.executable, "-m", "daemon.cli.main", *words[1:]]
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
        """A file in the folder."""
        (self.folder / name).write_text(text)


class Place(Shell):
    """A running daemon, and a shell beside it."""

    def __init__(self, folder: Path, urls: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        path = write_config(folder, DemoOptions(server="vllm" if urls else "embedded"))
        tree = tomllib.loads(path.read_text())
        tree["gate"]["preset"] = "fast"
        if urls:
            tree["server"] |= {"mode": "attach", "urls": list(urls)}
        tree["intake"] |= {"stable_s": 0.1, "conflicts": "ask"}
        path.write_text(dump(tree))
        self.settings = Settings.load(path)
        self.daemon = DaemonProcess(path, folder / "daemon.log")
        self.follow = Follow(self.settings, self.daemon)

    def until(self, done: Callable[[Ledger], bool]) -> None:
        """Wait for the ledger to say so."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.daemon.check()
            try:
                with Ledger.open(self.settings.layout.ledger, readonly=True) as ledger:
                    if done(ledger) and self.follow.served() == ledger.revisions.target().number:
                        return
            except LedgerBusy:
                pass
            time.sleep(0.3)
        raise TimeoutError("the ledger never said so")

    def until_ready(self, count: int) -> None:
        """Wait until so many replicas, and no more, route clients to what is wanted."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.daemon.check()
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(self.run("palorad status --json").split("\n", 1)[1])
                if sum(replica["ready"] for replica in said["daemon"]["replicas"]) == count:
                    return
            time.sleep(0.5)
        raise TimeoutError(f"never {count} replicas ready")

    def settle(self, name: str) -> None:
        """Wait until a file's batch is decided."""
        waiting = (BatchState.WAITING, BatchState.LEARNING)

        def settled(ledger: Ledger) -> bool:
            found = [batch for batch in ledger.batches.latest() if batch.name == name]
            return bool(found) and ledger.batches.state(found[0].id) not in waiting

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
    place.until(lambda ledger: all(r.certified_at for r in ledger.retractions.all()))
    place.say("certificate", "palorad certificate bt-1")
    state = shlex.quote(str(place.settings.state_dir))
    grep = f"grep -ril Thimphu {state}"
    found = place.run(grep).splitlines()[1:]
    place.said["grep"] = "$ grep -ril Thimphu state | wc -l\n" + str(len(found))
    place.say("rollback", "palorad rollback --to 1")
    place.say("forgotten", 'palorad why "What is the capital of Bhutan?"')


class Replica:
    """One `vllm serve` as its operator starts it, over the state directory of a place."""

    def __init__(self, place: Place, url: str) -> None:
        server = place.settings.server.model_copy(update={"urls": (url,)})
        settings = place.settings.model_copy(update={"server": server})
        self.url = url
        self.command = server_command.command(settings, settings.model.path, os.environ)
        self.log = place.folder / f"vllm-{self.command.port}.log"
        server_command.install_middleware(settings.state_dir)
        self.start()

    def start(self) -> None:
        """Start it; the daemon finds out when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", tether.__file__, str(os.getpid()), *self.command.arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.command.environment},
                start_new_session=True,
            )

    def kill(self) -> None:
        """With SIGKILL, and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve(place: Place, replicas: list[Replica]) -> None:
    """Two replicas: a promotion, one of them lost, and back."""
    place.follow.until_serving()
    place.until_ready(2)
    place.write("asia.jsonl", ASIA)
    place.run("palorad submit asia.jsonl")
    place.settle("asia.jsonl")
    place.until_ready(2)
    place.say("replicas", "palorad status")
    replicas[1].kill()
    place.until_ready(1)
    place.say("replica-lost", "palorad status")
    replicas[1].start()
    place.until_ready(2)
    place.say("replica-back", "palorad status")
    asked = json.dumps({"model": "palora-live", "prompt": "The capital of Nepal is"})
    back = place.run("palorad rollback --to 0")
    place.until(lambda ledger: ledger.revisions.target().number == 0)
    place.until_ready(2)
    answer = place.run(
        f"curl -si {replicas[0].url}/v1/completions"
        f" -H 'content-type: application/json' -d '{asked}'"
    )
    place.said["rollback-serving"] = "\n".join([back, answer, place.run("palorad forward")])
    print(place.said["rollback-serving"])


def first_day(shell: Shell) -> None:
    """From a model with another name, a log and problems to the first live file."""
    newcomer(shell.folder)
    first = Shell(shell.folder / "first")
    shell.say(
        "init",
        "palorad init --model models/gazelle --dir first --logs requests.jsonl"
        " --skill problems.jsonl --yes",
    )
    first.say("init-doctor", "palorad doctor")
    config = first.folder / "config.toml"
    daemon = DaemonProcess(config, shell.folder / "daemon.log")
    try:
        Follow(Settings.load(config), daemon).until_serving()
        first.say("first-submit", "palorad submit --wait first.jsonl")
        first.say("first-why", 'palorad why "In which room does the Lantern team sit?"')
    finally:
        daemon.stop()
    shell.said |= first.said


def told(story: str, folder: Path) -> dict[str, str]:
    """Play a story in a folder; what was said in it."""
    if story == "first-day":
        shell = Shell(folder)
        first_day(shell)
        return shell.said
    urls = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(2))
    place = Place(folder, urls if story == "serving" else ())
    replicas: list[Replica] = []
    try:
        if story == "serving":
            replicas += [Replica(place, url) for url in urls]
            serve(place, replicas)
        else:
            tell(place)
    finally:
        place.daemon.stop()
        for replica in replicas:
            replica.kill()
    return place.said


def main(stories: list[str]) -> None:
    """Run the stories named, or all, record what was said, and renew the pages that quote it."""
    for story in stories or generate.QUOTING:
        with tempfile.TemporaryDirectory(prefix="palorad-docs-") as name:
            folder = Path(name)
            said = {k: text.replace(str(folder), "~") for k, text in told(story, folder).items()}
        record = "\n".join(f"### {name}\n{text}\n" for name, text in said.items())
        (RECORDS / f"{story}.txt").write_text(record)
        print(json.dumps(sorted(said)))
    generate.main()


if __name__ == "__main__":
    main(sys.argv[1:])
