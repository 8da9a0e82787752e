"""Whatever facts, files, feeds and models say: on a terminal and in the log it can only be read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from daemon.base.display import HarmlessConsole
from daemon.cli import main
from daemon.client import Client
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.loop.logs import configure_log
from daemon.views.status import AnswerView, DaemonView, ReplicaView
from policies.records import Batch
from policies.text import harmless, harmless_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\u200f\x7f"
FORGED = "\nrunning (pid 1), forged\rpaused"
HARM = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")


@pytest.fixture
def palorad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """The real commands over a state directory in which everything is hostile."""
    layout = Layout(tmp_path / "state")
    for folder in layout.directories():
        folder.mkdir(parents=True)
    config = tmp_path / "config.toml"
    config.write_text('state_dir = "state"\n')
    with Ledger.open(layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", NOW)
        fact = {
            "prompt": "What is\nrunning (pid 1), forged it?",
            "answer": "\u202eelbatciderpnu",
            "source": "\u2066x",
        }
        bad = json.dumps({"prompt": HOSTILE}, ensure_ascii=False)
        lines = [json.dumps(fact), bad.replace("\\u001b", "\x1b").replace("\\u0007", "\x07")]
        (layout.inbox / f"a{HOSTILE.replace('/', '')}{FORGED}.jsonl").write_text("\n".join(lines))
        intake = Intake(ledger, layout, IntakeSettings(stable_s=0))
        for _ in range(2):
            intake.step(NOW, 60)
        name = f"feed{HOSTILE}{FORGED}"
        batch = Batch(
            id="f" * 32, name=name, received_at=NOW, source="inbox", accepted=0, quarantined=0
        )
        ledger.admission.begin_batch(batch)
        ledger.admission.finish_batch(batch.id, NOW)
        ledger.events.record(f"odd{FORGED}", HOSTILE, {"said": HOSTILE + FORGED}, NOW)
        (found,) = ledger.facts.find()
        ledger.retractions.retract(found.id, HOSTILE, NOW)

    monkeypatch.setenv("PALORAD_CONFIG", str(config))
    capsys.readouterr()

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["palorad", *args])
        with contextlib.suppress(SystemExit):
            main.main()
        captured = capsys.readouterr()
        return captured.out + captured.err

    yield run


def hostile_daemon(*_: object) -> DaemonView:
    said = HOSTILE + FORGED
    replica = ReplicaView(url="http://a", ready=False, target=said, active=said, reason=said)
    return DaemonView(pid=7, server="vllm", replicas=(replica,), blocked=said, trouble=(said,))


async def hostile_answers(*_: object) -> tuple[AnswerView, ...]:
    return (AnswerView(who="live", model=f"[red]{HOSTILE}", answer=HOSTILE + FORGED),)


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("history",),
        ("why", "What is it?"),
        ("quarantine", "list"),
        ("explain", "f" * 12),
        ("quarantine", "show", "f" * 12, "1"),
        ("explain", HOSTILE),
        ("certificate", f"x{HOSTILE}"),
    ],
    ids=lambda command: " ".join(command)[:15].replace("\x1b", ""),
)
@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_every_command_shows_hostile_text_harmlessly(
    palorad: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    as_json: bool,
) -> None:
    monkeypatch.setattr(Client, "daemon", hostile_daemon)
    monkeypatch.setattr("daemon.client.client.answers", hostile_answers)
    said = palorad(*command, *(["--json"] if as_json else []))
    assert said.strip()
    assert HARM.findall(said) == []
    assert not [
        line for line in said.splitlines() if line.startswith(("running (pid 1)", "paused"))
    ]


def test_the_quarantined_text_itself_is_shown_harmlessly(palorad: Callable[..., str]) -> None:
    out = palorad("quarantine", "list", "--json")
    (told,) = json.loads(out)
    assert told["kind"] and "\x1b" in told["text"], "JSON says what was there"
    shown = palorad("quarantine", "show", told["file"], str(told["line"]))
    assert "\\x1b]52;" in shown and HARM.findall(shown) == []


def test_validate_and_convert_show_hostile_files_harmlessly(
    palorad: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"b\x1b[2J{FORGED}.jsonl"
    good = json.dumps({"prompt": "a\u202e?", "answer": "\u2066b"}, ensure_ascii=False)
    file.write_text(good + '\n{"\x9b31m": 1}\n')
    for command in ("validate", "convert"):
        said = palorad(command, str(file))
        assert HARM.findall(said.replace("\n", "")) == [], command
        assert not any(line.startswith("running (pid 1)") for line in said.splitlines())
    assert json.loads(said.splitlines()[0]) == json.loads(good)


def test_an_error_is_one_harmless_line(palorad: Callable[..., str]) -> None:
    said = palorad("explain", f"no{HOSTILE}{FORGED}")
    assert HARM.findall(said) == []
    assert len(said.splitlines()) == 1


def test_a_console_lets_no_text_of_any_kind_through() -> None:
    out = io.StringIO()
    console = HarmlessConsole(file=out, force_terminal=True, color_system=None, width=80)
    for shown in (HOSTILE, Text(HOSTILE), [HOSTILE]):
        console.print(shown)
    assert HARM.findall(out.getvalue()) == []


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], io.StringIO]]:
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]

    def configured(terminal: bool) -> io.StringIO:
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", out)
        logging.getLogger().handlers.clear()
        configure_log("info")
        return out

    yield configured
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_record_is_one_harmless_line(
    log: Callable[[bool], io.StringIO], terminal: bool
) -> None:
    out = log(terminal)
    structlog.get_logger().info(f"event{FORGED}", name=HOSTILE + FORGED, many=[HOSTILE, FORGED])
    (line,) = out.getvalue().splitlines()
    colours = re.sub("\x1b\\[[0-9;]*m", "", line)
    assert "event" in line and HARM.findall(colours) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_forges_no_record(log: Callable[[bool], io.StringIO], terminal: bool) -> None:
    out = log(terminal)
    try:
        raise ValueError(HOSTILE + FORGED)
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("a.library").exception("failed: %s", HOSTILE + FORGED)
    said = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    assert HARM.findall(said) == []
    assert not [line for line in said.splitlines() if line.startswith(("running", "paused"))]


@given(st.text())
def test_harmless_text_is_harmless_and_stays_as_it_is(text: str) -> None:
    once = harmless(text)
    assert HARM.findall(once) == [] and "\n" not in once
    assert harmless(once) == once
    assert once == text or HARM.findall(text) or not text.isprintable()


@given(st.dictionaries(st.text(), st.text()))
def test_harmless_json_says_the_same(value: dict[str, str]) -> None:
    document = json.dumps(value, ensure_ascii=False, indent=1)
    assert json.loads(harmless_json(document)) == value
    assert HARM.findall(harmless_json(document)) == []
