"""The command line through its real entry point: exit codes, one clear line, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.cli import main

GOOD = '{"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"}\n'
ROOT = Path(__file__).resolve().parents[2]


class Ran:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("palorad: ")
        return lines[0]


Palorad = Callable[..., Ran]


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Palorad:
    monkeypatch.delenv("PALORAD_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["palorad", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def test_validate_counts_and_names_bad_lines(palorad: Palorad, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(GOOD + '{"prompt": "no answer"}\n\n' + GOOD)
    ran = palorad("validate", file)
    assert ran.code == 1
    assert "2 facts (1 of them more than once), 1 lines would not be admitted" in ran.out
    assert "line 2: has no answer" in ran.out
    file.write_text(GOOD)
    assert palorad("validate", file).code == 0


def test_validate_json_adds_up(palorad: Palorad, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(GOOD + "{\n" + GOOD.replace("Bhutan", "Nauru"))
    report = json.loads(palorad("validate", "--json", file).out)[0]
    assert report["accepted"] + report["quarantined"] == 3
    assert report["problems"][0]["line"] == 2


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_bad_files_get_one_line(palorad: Palorad, tmp_path: Path, command: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for path, says in (
        (tmp_path, "is a directory"),
        (empty, "is empty"),
        (tmp_path / "gone.jsonl", "does not exist"),
    ):
        ran = palorad(command, path)
        assert ran.code == 2
        assert says in ran.line


def test_file_that_may_not_be_read(palorad: Palorad, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    file = tmp_path / "facts.jsonl"
    file.write_text(GOOD)
    file.chmod(0)
    assert "may not be read" in palorad("validate", file).line


def test_no_config_says_where_it_looked(palorad: Palorad, tmp_path: Path) -> None:
    ran = palorad("status")
    assert ran.code == 2
    assert str(tmp_path / "config.toml") in ran.line


def test_named_config_that_is_missing(palorad: Palorad, tmp_path: Path) -> None:
    assert "there is no configuration at" in palorad("status", "-c", tmp_path / "x.toml").line


def test_environment_names_the_config(
    palorad: Palorad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("")
    (tmp_path / "config.toml").write_text("")
    monkeypatch.setenv("PALORAD_CONFIG", str(other))
    assert palorad("config", "path").out.strip() == str(other)
    assert palorad("config", "path", "-c", "config.toml").out.strip().endswith("/config.toml")


def test_wrong_key_names_the_nearest(palorad: Palorad, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[train]\nrnak = 8\n")
    ran = palorad("config", "check")
    assert ran.code == 2
    assert "rank" in ran.line and "rnak" in ran.line


def test_broken_toml(palorad: Palorad, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[train\n")
    ran = palorad("config", "check")
    assert ran.code == 2
    assert "config.toml" in ran.line


def test_set_has_the_last_word(
    palorad: Palorad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[train]\nrank = 8\n")
    monkeypatch.setenv("PALORAD_TRAIN__RANK", "4")
    shown = json.loads(palorad("config", "show", "--json").out)
    assert shown["train"]["rank"] == 4
    shown = json.loads(palorad("config", "show", "--json", "--set", "train.rank=2").out)
    assert shown["train"]["rank"] == 2
    assert "KEY=VALUE" in palorad("config", "show", "--set", "rank").line


def test_missing_model_is_named(palorad: Palorad, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\npath = "nowhere"\n')
    ran = palorad("config", "check")
    assert ran.code == 2
    assert str(tmp_path / "nowhere") in ran.out + ran.err


@pytest.mark.parametrize(
    "command",
    [
        ("rollback",),
        ("forward",),
        ("pause",),
        ("resume",),
        ("retry", "1"),
        ("promote", "1"),
        ("reject", "1"),
    ],
)
def test_changes_need_the_running_daemon(
    palorad: Palorad, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text("")
    ran = palorad(*command)
    assert ran.code == 4
    assert "palorad run" in ran.line


@pytest.mark.parametrize("command", [("history",), ("explain", "x"), ("quarantine",)])
def test_reading_before_the_first_run(
    palorad: Palorad, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text("")
    ran = palorad(*command)
    assert ran.code == 2
    assert "palorad run" in ran.line


def test_schema_accepts_the_documented_line(palorad: Palorad) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(palorad("schema").out)
    jsonschema.validate(json.loads(GOOD), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": "x"}, schema)


def test_start_up_does_not_import_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['palorad', 'validate', '--help']\n"
        "try: runpy.run_module('daemon.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_shell_can_complete_commands_and_options() -> None:
    def completed(words: str, at: int) -> list[str]:
        asked = {"_PALORAD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code = "from daemon.cli.main import app; app(prog_name='palorad')"
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **asked},
            check=False,
        )
        return ran.stdout.split()

    assert completed("palorad sta", 1) == ["status"]
    assert "--wait" in completed("palorad submit --", 2)


def test_usage_errors_end_with_two(palorad: Palorad) -> None:
    assert palorad("no-such-command").code == 2
    assert palorad("explain").code == 2
