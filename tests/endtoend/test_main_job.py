"""The main job in short: the real daemon process, its server, one file, the live answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.ask import Endpoint, rate
from demo.follow import Follow
from demo.questions import held_out_questions
from demo.scenario import MINI
from demo.setup import ROOT
from policies.gate.grading import normalised
from tests.support.real import NEEDS_MODEL, configure, running

FACTS = 12

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(180),
    NEEDS_MODEL,
]


def palorad(config: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", *args, "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )


def test_a_dropped_file_reaches_the_live_answer(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with running(config) as follow:
        _story(config, follow)


def _story(config: Path, follow: Follow) -> None:
    settings = follow.settings
    file = config.parent / "facts.jsonl"
    source = sorted((ROOT / "examples" / "facts").glob("*.jsonl"))[0]
    file.write_text("".join(source.read_text().splitlines(keepends=True)[:FACTS]) + "{\n")
    endpoint = Endpoint(settings.server.urls[0], settings.model.alias)

    assert follow.served() == 0
    batch = follow.drop(file)
    settled = follow.until_settled(batch, file.name)

    assert settled.verdict == "pass", settled.reasons
    assert follow.served() == follow.target() == 1
    (config.parent / "good.jsonl").write_text("".join(file.read_text().splitlines(True)[:-1]))
    questions = held_out_questions(config.parent / "good.jsonl")
    assert rate(endpoint.ask(questions, normalised, MINI.fact_tokens)) >= 0.8

    status = json.loads(palorad(config, "status", "--json").stdout)
    assert status["running"] and status["target"]["number"] == 1
    assert [b["state"] for b in status["batches"]] == ["live"]
    explained = palorad(config, "explain", batch[:8])
    assert explained.returncode == 0 and "pass" in explained.stdout
    quarantine = palorad(config, "quarantine", "list", "--json")
    assert [line["line"] for line in json.loads(quarantine.stdout)] == [FACTS + 1]
    known = json.loads(palorad(config, "why", questions[0].prompt, "--json").stdout)
    assert {s["who"] for s in known["answers"]} == {"base", "live"}

    second = palorad(config, "run")
    assert second.returncode == 2
    assert len(second.stderr.strip().splitlines()) == 1 and "another palorad" in second.stderr

    assert palorad(config, "rollback", "--because", "a test").returncode == 0
    follow.daemon.check()
    follow.until_revision(0)
    assert palorad(config, "forward").returncode == 0
    follow.until_revision(1)
