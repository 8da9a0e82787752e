"""The documents say what is: commands, configuration keys and links."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from daemon.cli.main import app
from daemon.config.errors import key_paths
from daemon.config.settings import Settings
from policies.facts.admission import parse_facts

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "benchmarks/notebook"
WRITTEN = [(ROOT / "docs"), NOTEBOOK, ROOT / "benchmarks/results"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(page for top in WRITTEN for page in top.rglob("*.md"))])
# Pages that are read from beginning to end, and the most words of one.
LONGEST = {
    **dict.fromkeys([*NOTEBOOK.glob("*.md"), *(ROOT / "benchmarks/results").rglob("*.md")], 2500),
    **dict.fromkeys((ROOT / "docs/decisions").glob("*.md"), 300),
    ROOT / "docs/results.md": 2500,
    ROOT / "docs/training.md": 1200,
}
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
README = (ROOT / "README.md").read_text()
SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name


COMMANDS = sorted(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert re.search(rf"`palorad {re.escape(command)}\b", text)


def test_every_key_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([\w.\[\]]+)` \|", CONFIGURATION, re.MULTILINE))
    assert documented == set(key_paths(Settings))


def test_generated_parts_are_as_generated() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    import generate

    assert generate.configuration() == CONFIGURATION, "run make docs"
    assert generate.readme() == README, "run make docs"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", LONGEST, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_read_in_a_sitting(path: Path) -> None:
    assert len(path.read_text().split()) <= LONGEST[path]


def test_every_page_of_the_notebook_is_dated_and_in_its_index() -> None:
    index = (NOTEBOOK / "README.md").read_text()
    linked = re.findall(r"^- (\S+) \[.+?\]\((.+?)\): \S.*$", index, re.MULTILINE)
    assert sorted(name for _, name in linked) == sorted(
        path.name for path in NOTEBOOK.glob("*.md") if path.name != "README.md"
    )
    assert all(name.startswith(f"{date}-") for date, name in linked)
    assert [date for date, _ in linked] == sorted((date for date, _ in linked), reverse=True)


def test_a_decision_is_a_choice_a_reason_and_a_consequence() -> None:
    for path in (ROOT / "docs/decisions").glob("*.md"):
        text = path.read_text()
        found = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert found == ["Choice", "Reason", "Consequence"], path.name
        assert "|---" not in text, path.name


def test_readme_commands_exist() -> None:
    for command in re.findall(
        r"^(?:\$ |runuser -u palorad -- \.venv/bin/)?palorad ([a-z]+)", SHELL, re.MULTILINE
    ):
        assert any(known.split()[0] == command for known in COMMANDS), command


def test_readme_configuration_is_one(tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", README, re.DOTALL)):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        assert Settings.load(path, {}).model.path.is_absolute()


def test_readme_facts_are_facts() -> None:
    lines = re.findall(r"^(\{.*\})$", SHELL, re.MULTILINE)
    assert len(parse_facts("\n".join(lines))) == len(lines) > 0


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_readme_contents_name_every_document() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in README, path.name


def test_every_tracked_script_is_sound() -> None:
    for script in (ROOT / "deploy").glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
