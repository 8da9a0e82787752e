"""`palorad init` as a user meets it: what it asks, says, refuses, and ends with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import init, main
from daemon.onboarding import server_look
from daemon.onboarding.asking import Asking, BaseAnswer
from daemon.onboarding.questions import shipped
from daemon.onboarding.server_look import ServerLook
from tests.support.onboarding import TableBase, checkpoint, everything_shipped

SHIPPED = len(shipped())

Palorad = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> TableBase:
    """What answers, in place of weights or of a server."""
    found = TableBase(everything_shipped())
    monkeypatch.setattr(init, "LocalBase", lambda _model: found)
    monkeypatch.setattr(init, "ServedBase", lambda *_: found)
    monkeypatch.setattr(init, "has_gpu", lambda: False)
    return found


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Palorad:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    checkpoint(tmp_path / "model")

    def run(*command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["palorad", *command])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_it_says_what_it_sees_what_is_made_and_the_next_commands(
    palorad: Palorad, base: TableBase
) -> None:
    code, out, err = palorad("init", "--model", "model", "--dir", "first")
    assert code == 0, out + err
    for told in (
        "LlamaForCausalLM",
        "has a chat template",
        f"surely knows {SHIPPED} of {SHIPPED}",
        "is found with 80 % power",
        "cd first",
        "palorad doctor",
        "palorad run",
        "palorad submit --wait first.jsonl",
    ):
        assert told in out, told
    assert f"known facts: {SHIPPED} of {SHIPPED}" in err
    code, _, _ = palorad("config", "check", "--config", "first/config.toml")
    assert code == 0


def test_a_file_of_the_user_s_is_named_and_nothing_is_asked(
    palorad: Palorad, base: TableBase, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("# mine")
    code, _, err = palorad("init", "--model", "model")
    assert code == 2
    assert "config.toml would be overwritten" in err
    assert "--dir" in err
    assert base.asked == []
    assert (tmp_path / "config.toml").read_text() == "# mine"


def test_without_a_model_and_without_a_terminal_one_line_says_so(
    palorad: Palorad, base: TableBase
) -> None:
    code, _, err = palorad("init")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--model" in err


def test_an_unusable_result_ends_with_one(
    palorad: Palorad, base: TableBase, tmp_path: Path
) -> None:
    problems = ({"prompt": f"What is {n} times {n}?", "answer": n * n} for n in range(90))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    code, out, _ = palorad("init", "--model", "model", "--dir", "first", "--skill", "p.jsonl")
    assert code == 1
    assert "weak: the base solved no problem" in out


def test_json_is_one_document(palorad: Palorad, base: TableBase) -> None:
    code, out, _ = palorad("init", "--model", "model", "--dir", "first", "--json")
    assert code == 0
    assert json.loads(out)["known"] == SHIPPED


def test_a_server_is_asked_and_attached_and_what_to_change_there_is_said(
    palorad: Palorad, base: TableBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = ServerLook(
        url="http://gpu:8000",
        version="0.32.0",
        model="llama",
        root="/srv/llama",
        gateway=False,
        runtime_lora=False,
        rank=64,
    )
    monkeypatch.setattr(server_look, "look", lambda _url, _key: found)
    arguments = ("init", "--model", "model", "--dir", "first", "--server", "http://gpu:8000/v1/")
    code, out, _ = palorad(*arguments)
    assert code == 0
    assert "look: it serves /srv/llama" in out
    assert "at the server: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in out
    code, out, _ = palorad("config", "show", "--json", "--config", "first/config.toml")
    assert code == 0
    server: dict[str, Any] = json.loads(out)["server"]
    assert (server["kind"], server["mode"]) == ("vllm", "attach")
    assert (server["urls"], server["max_lora_rank"]) == (["http://gpu:8000"], 64)
    assert json.loads(out)["model"]["name"] == "llama"
    assert json.loads(out)["train"]["rank_budget"] == 64


def test_an_interrupted_init_goes_on_where_it_stopped(
    palorad: Palorad, base: TableBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = base.answer

    def interrupted(
        prompts: Sequence[str], tokens: int, sample: int = 0
    ) -> Sequence[BaseAnswer | None]:
        if len(base.asked) > 500:
            raise KeyboardInterrupt
        return answer(prompts, tokens, sample)

    monkeypatch.setattr(base, "answer", interrupted)
    code, _, _ = palorad("init", "--model", "model", "--dir", "first")
    assert code == 130
    before = len(base.asked)
    monkeypatch.setattr(base, "answer", answer)
    code, _, _ = palorad("init", "--model", "model", "--dir", "first")
    assert code == 0
    assert len(base.asked) == len(set(base.asked)) > before


def test_on_a_terminal_what_is_missing_is_asked_for(
    base: TableBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    answers: Iterator[str] = iter(["model", "", "", ""])
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(answers))
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    wishes = init.Wishes(folder=tmp_path / "first")
    options = init.Options(None, None, None, wishes, yes=False, as_json=False)
    assert init.run(options, interactive=True) == 0
    assert next(answers, None) is None
    assert (tmp_path / "first" / "config.toml").exists()


def test_the_time_left_is_told_now_and_then_where_there_is_no_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    show = init._lines(lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        show(Asking("facts", second, 25, 25.0 - second))
    show(Asking("facts", 25, 25, 0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "facts: 0 of 25, about 25 s left",
        "facts: 10 of 25, about 15 s left",
        "facts: 20 of 25, about 5 s left",
        "facts: 25 of 25",
    ]
