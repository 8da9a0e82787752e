"""The client that programs use: submit, wait, ask, explain; and what it raises."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from daemon.cli.exit_codes import INCONCLUSIVE, PASS, REGRESSION
from daemon.cli.submit import submit_files
from daemon.client import Answer, Client, WaitedTooLong
from daemon.config.settings import Settings
from policies.errors import DaemonUnreachable, NotFound, RequestRefused, ServerUnreachable
from policies.records import BatchState, PlanState
from tests.support.crashing import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    yield made
    made.close()


def file(root: Path, *prompts: str) -> Path:
    path = root / "facts.jsonl"
    lines = [json.dumps({"prompt": prompt, "answer": f"{prompt}!"}) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_is_submitted_waited_for_and_explained(site: Site, tmp_path: Path) -> None:
    site.start()
    client = Client(site.settings)
    site.until(lambda: client.daemon() is not None, "starting")
    (submitted,) = client.submit(file(tmp_path, "one", "two"))
    assert (submitted.file, submitted.known) == (str(tmp_path / "facts.jsonl"), False)
    assert client.wait(submitted, timeout_s=30) is BatchState.LIVE
    assert client.wait("facts.jsonl") is BatchState.LIVE
    explained = client.explain(submitted.batch)
    assert [plan.state for plan in explained.plans] == [PlanState.LIVE]
    (again,) = client.submit(tmp_path / "facts.jsonl")
    assert (again.batch, again.known, again.state) == (submitted.batch, True, BatchState.LIVE)
    status = client.status()
    assert status.running and status.target.number == 1
    assert client.history().revisions[-1].number == 1
    with pytest.raises(RequestRefused, match="/nowhere"):
        client.submit(Path("/nowhere"))
    with pytest.raises(NotFound):
        client.explain("nothing")


def test_a_rejected_batch_and_one_that_a_person_decides_are_states_not_errors(
    site: Site, tmp_path: Path
) -> None:
    site.start()
    client = Client(site.settings)
    site.until(lambda: client.daemon() is not None, "starting")
    for word, state in (("false", BatchState.REJECTED), ("unsure", BatchState.INCONCLUSIVE)):
        (submitted,) = client.submit(file(tmp_path, word))
        assert client.wait(submitted, timeout_s=30) is state


@pytest.mark.parametrize(
    ("word", "code", "named"),
    [
        ("one", PASS, ""),
        ("false", REGRESSION, "'palorad retry {batch}' tries once more"),
        ("unsure", INCONCLUSIVE, "'palorad promote 1 --because …'"),
    ],
)
def test_what_did_not_go_live_is_told_with_the_next_step(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, code: int, named: str
) -> None:
    site.start()
    client = Client(site.settings)
    site.until(lambda: client.daemon() is not None, "starting")
    path = file(tmp_path, word)
    assert submit_files(site.settings, [path], again=False, wait=True, as_json=False) == code
    said = capsys.readouterr().out
    batch = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert ("'palorad explain" in said) == bool(named)
    assert named.format(batch=batch) in said


def test_a_file_that_is_refused_as_a_whole_is_not_waited_for(site: Site, tmp_path: Path) -> None:
    intake = site.settings.intake.model_copy(update={"bad_lines": "reject"})
    site.settings = site.settings.model_copy(update={"intake": intake})
    site.start()
    client = Client(site.settings)
    site.until(lambda: client.daemon() is not None, "starting")
    path = file(tmp_path, "one")
    path.write_text(path.read_text() + "no JSON\n")
    (submitted,) = client.submit(path)
    with pytest.raises(RequestRefused, match="has bad lines, 1 of 2"):
        client.wait(submitted, timeout_s=30)
    (again,) = client.submit(file(tmp_path, "one"))
    assert client.wait(again, timeout_s=30) is BatchState.LIVE, "an older receipt is no refusal"


def test_waiting_ends_with_the_time_or_with_the_daemon(site: Site, tmp_path: Path) -> None:
    site.start()
    client = Client(site.settings)
    site.until(lambda: client.daemon() is not None, "starting")
    client.tell("pause")
    (submitted,) = client.submit(file(tmp_path, "one"))
    with pytest.raises(WaitedTooLong, match="is waiting after 0 s"):
        client.wait(submitted, timeout_s=0)
    assert site.stop() == 0
    with pytest.raises(DaemonUnreachable):
        client.wait(submitted)
    assert client.daemon() is None
    assert not client.status().running, "the ledger is read without a daemon"


def test_before_the_first_run_one_line_says_so(tmp_path: Path) -> None:
    client = Client(Settings(state_dir=tmp_path / "none"))
    with pytest.raises(DaemonUnreachable, match="palorad run"):
        client.status()
    with pytest.raises(NotFound, match="there is no ledger"):
        client.explain("x")


class _Server(BaseHTTPRequestHandler):
    """Answers the alias in chat, another model in plain text alone."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said: dict[str, Any] = {"model": body["model"], "choices": []}
        if "messages" not in body:
            choice = {"index": 0, "text": " plain ", "finish_reason": "stop"}
            self._answer(200, said | {"choices": [choice]})
        elif body["model"] == "palora-live":
            message = {"content": f" {body['messages'][0]['content']}! "}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, said | {"choices": [choice]})
        else:
            self._answer(400, {"error": {"message": "no chat template"}})

    def _answer(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.send_header("x-palorad-model", "palora-000003-cc")
        self.send_header("x-palorad-revision", "3")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def test_a_question_is_answered_by_the_alias_with_its_revision(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = Client(Settings.model_validate({"state_dir": tmp_path, "server": {"urls": [url]}}))
    try:
        answer = client.ask("Who")
        assert answer == Answer(text="Who!", model="palora-000003-cc", revision=3)
        assert client.ask("Who", model="base").text == "plain"
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ServerUnreachable):
        client.ask("Who")


def test_it_is_made_of_a_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('state_dir = "there"\n')
    assert Client.load(config).settings.state_dir == tmp_path / "there"


def test_the_documents_example_uses_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(example, "docs/commands.md", "exec")
    used = set(re.findall(r"palorad\.(\w+)\(", text))
    assert used > {"submit", "wait", "explain", "ask"}
    assert [name for name in used if not callable(getattr(Client, name, None))] == []
