"""The documents are true and readable: commands, keys, files, links, output, words, length."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import benchmarks.page
from benchmarks import intake, pages, paraphrases, swap_page
from benchmarks.scale import cost_page
from daemon.cli.main import app
from daemon.client import Client
from daemon.client.client import Answer
from daemon.config.errors import key_paths
from daemon.config.settings import Settings
from policies.facts.admission import parse_facts
from policies.gate.limits import PRESETS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
DOCUMENTS = sorted({*READ, *ROOT.glob("*.md"), *RESULTS.glob("*.md")})
CONFIGURATION = (DOCS / "configuration.md").read_text()
CONCEPTS = (DOCS / "concepts.md").read_text()
ARCHITECTURE = (DOCS / "architecture.md").read_text()
STATUS = (DOCS / "status.md").read_text()
README = (ROOT / "README.md").read_text()
QUICKSTART = DOCS / "gpu-quickstart.md"
# A command of ours in a block of shell commands, up to a pipe or a comment.
RUN = re.compile(r"^(?:\$ |runuser -u palorad -- \.venv/bin/)?palorad ([^|\n]+)", re.MULTILINE)
FILE = re.compile(
    r"`((?:daemon|adapters|policies|benchmarks|demo|mini|tests|deploy)/[\w./]+\.\w+)`"
)


def blocks(text: str, language: str) -> str:
    """All code blocks of a language in a page, one after the other."""
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


SHELL = blocks(README, "sh")
WALKS = ("A fact from file to live answer", "A rollback", "A verdict")

LONGEST = 2500
LIMITS = {"README.md": 900, "training.md": 1200}
GENERATED = ("configuration.md",)

# Words of the settings that mean what they mean anywhere; every other one is a concept.
PLAIN = frozenset(
    re.findall(
        r"\w+",
        """
        address after allow answer answers args at attempts bad budget concurrency cpu cpus
        dated days deadline dir enabled eval events every executable extra fail field file
        filter floor form format full header host hosts hours kb key kind late learning level
        line lines load log loss match max mb min minutes mode model name num once op open out
        path per port private processes prompt prompts quarantined questions rate recover
        rejected remind request rescan rules s sample serve server share sharing slower source
        stable start state stop task timeout tokens train trouble url urls user verify wait
        watch web work
        """,
    )
)

# What the project said before it had the field's words. In prose only: JSON has keys of its own.
DIALECT = (
    *(r"wordings?", r"anew", r"afresh", r"held to", r"crowd(ed)?", r"shelved", r"spar(ed|ing)"),
    *(r"begun again", r"rehears\w*", r"barred", r"the way's", r"gone on", r"going on"),
    *(r"the door", r"in doubt", r"framed", r"\d+ points?", r"(is|are) wanted", r"(is|are) desired"),
    *(r"the reference's", r"frozen reference", r"effort", r"passes over"),
)


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name


COMMANDS = sorted(commands(typer.main.get_command(app)))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- commands and settings -------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    text = (DOCS / "commands.md").read_text()
    assert re.search(rf"`palorad {re.escape(command)}\b", text)


@pytest.mark.parametrize("path", READ, ids=named)
def test_no_page_names_a_command_that_does_not_exist(path: Path) -> None:
    known = {word for command in COMMANDS for word in (command, command.split()[0])}
    for name in re.findall(r"`palorad ([a-z]+(?: [a-z]+)?)[^`]*`", path.read_text()):
        assert name in known or name.split()[0] in known, name


def test_every_key_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([\w.\[\]]+)` \|", CONFIGURATION, re.MULTILINE))
    assert documented == set(key_paths(Settings))


@pytest.mark.parametrize("path", READ, ids=named)
def test_no_page_names_a_setting_that_does_not_exist(path: Path) -> None:
    keys = {re.sub(r"\[\]", "", key) for key in key_paths(Settings)}
    sections = {key.rsplit(".", 1)[0] for key in keys if "." in key}
    for name in re.findall(r"`((?:\w+\.)+\w+)(?: = [^`]*)?`", path.read_text()):
        if name.rsplit(".", 1)[0] in sections:
            assert name in keys | sections, name


def test_the_committed_configuration_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: plain(v) if isinstance(v, Mapping) else v
            for k, v in tree.items()
            if not isinstance(v, list)
        }

    shown = Settings.load(ROOT / "config.toml", {}).model_dump(mode="json")
    written = tomllib.loads((ROOT / "config.toml").read_text())
    monkeypatch.chdir(ROOT)

    def compare(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        for key, value in plain(mine).items():
            if isinstance(value, dict):
                compare(value, theirs[key])
            elif isinstance(value, str) and "/" in str(theirs[key]):
                assert str(theirs[key]).endswith(value)
            else:
                assert theirs[key] == value or str(theirs[key]).endswith(str(value)), key

    compare(written, shown)


def test_the_gate_s_page_shows_the_presets() -> None:
    def percent(share: float) -> str:
        return f"{100 * share:g} %"

    for name, limits in PRESETS.items():
        margins = (limits.reasoning_margin, limits.retention_margin, limits.locality_margin)
        shares = (limits.alpha, limits.beta, limits.learnt_share)
        cells = [*(f"{100 * margin:g} pp" for margin in margins), *map(percent, shares)]
        assert f"| `{name}` | {' | '.join(cells)} |" in (DOCS / "gate.md").read_text()


# --- words -----------------------------------------------------------------------------------


def stem(word: str) -> str:
    return word.lower().removesuffix("s")


def terms() -> set[str]:
    """Every word of the first column of docs/concepts.md's tables."""
    heads = re.findall(r"^\| ((?:\*\*|`)[^|]+) \|", CONCEPTS, re.MULTILINE)
    return {stem(word) for head in heads for word in re.findall(r"[A-Za-z]+", head)}


def words_of_settings() -> set[str]:
    return {word for key in key_paths(Settings) for word in re.split(r"[._\[\]]+", key) if word}


def test_every_word_of_a_setting_is_plain_english_or_a_concept() -> None:
    explained = terms()
    assert {w for w in words_of_settings() - PLAIN if stem(w) not in explained} == set()


def test_plain_words_are_used_and_are_no_concepts() -> None:
    assert PLAIN - words_of_settings() == set()
    headwords = {stem(term) for term in re.findall(r"\*\*(\w+)\*\*", CONCEPTS)}
    assert {word for word in PLAIN if stem(word) in headwords} == set()


def test_no_concept_is_explained_twice() -> None:
    explained = re.findall(r"^\| (\*\*[^|]+) \|", CONCEPTS, re.MULTILINE)
    found = [term for head in explained for term in re.findall(r"\*\*([^*]+)\*\*", head)]
    assert len(found) == len(set(found)) > 80


@pytest.mark.parametrize("path", READ, ids=named)
def test_no_page_speaks_a_dialect(path: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", path.read_text())
    for word in DIALECT:
        found = re.search(rf"(?<![\w-]){word}(?![\w-])", text, re.IGNORECASE)
        assert found is None, f"{word}: …{text[max(0, found.start() - 60) : found.end() + 30]}…"


@pytest.mark.parametrize("path", READ, ids=named)
def test_no_page_is_longer_than_one_reads(path: Path) -> None:
    if path.name not in GENERATED:
        assert len(path.read_text().split()) <= LIMITS.get(path.name, LONGEST)


# --- files, links, messages ------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for target, _, place in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", path.read_text()):
        if "://" in target:
            continue
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name}: {target}"
        if place:
            assert place in anchors(page), f"{path.name}: {target}#{place}"


def anchors(page: Path) -> set[str]:
    """The places that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", READ, ids=named)
def test_files_that_are_named_are_there(path: Path) -> None:
    missing = [name for name in FILE.findall(path.read_text()) if not (ROOT / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_through_the_code_never_goes_back(walk: str) -> None:
    (told,) = re.findall(rf"^### {walk}\n(.*?)(?=^##)", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    numbers = [int(number) for number in re.findall(r"^(\d+)\. `", told, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    named_files = FILE.findall(told)
    assert len(named_files) == len(set(named_files)) == len(numbers) >= 8


def test_the_state_directory_s_table_names_every_path() -> None:
    layout = (ROOT / "daemon" / "config" / "layout.py").read_text()
    for name in re.findall(r'self\.root / "([\w.-]+)"', layout):
        assert f"`{name}" in ARCHITECTURE, name


def test_the_page_on_status_explains_lines_that_are_printed() -> None:
    """Each fragment in a table's first column stands in the code, values (in capitals) aside."""
    code = "\n".join(
        path.read_text()
        for folder in ("daemon", "policies")
        for path in (ROOT / folder).rglob("*.py")
    )
    tables = STATUS
    lines = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", tables, re.MULTILINE)
    assert len(lines) > 25
    for fragment in re.findall(r"`(.+?)`", "".join(lines)):
        assert fragment in code or fragment == "NAME: Permission denied", fragment


# Where a line of the status is put together: the properties and fields that hold it.
SAID = frozenset({"trouble", "troubles", "problem", "problems", "waits_for", "reason", "under_way"})
TOLD_IN = ("loop", "intake/notes.py", "intake/feeds.py", "monitoring", "notification", "retraction")
# Parts of lines that say nothing by themselves.
PARTS = ("notify.webhook \0://\0", "a retraction waits: \0 \0")


def lines_of_the_status() -> Iterator[str]:
    """Every text in the source that becomes such a line, with \\0 where a value stands."""
    for told in (*TOLD_IN, "serving", "verification", "web/page.py"):
        place = ROOT / "daemon" / told
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for root in filter(holds_a_line, ast.walk(ast.parse(path.read_text()))):
                texts = root.body if isinstance(root, ast.FunctionDef) else [root]
                for found in texts:
                    yield from filter(
                        lambda text: " " in text and re.search("[a-z]{4}", text), texts_in(found)
                    )


def holds_a_line(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in SAID
    if isinstance(node, ast.keyword):
        return node.arg in SAID
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(getattr(t, "attr", getattr(t, "id", "")) in SAID for t in targets)


def texts_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.JoinedStr):
        yield "".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def test_every_line_of_the_status_is_explained() -> None:
    rows = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", STATUS, re.MULTILINE)
    explained = re.findall(r"`(.+?)`", "".join(rows))
    found = {*lines_of_the_status()} - {*PARTS}
    assert len(found) > 25
    assert [line for line in found if not any(part in line for part in explained)] == []


# --- what is quoted and generated ------------------------------------------------------------


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    import generate

    return generate


def test_generated_parts_are_as_generated(generate: Any) -> None:
    assert generate.configuration() == CONFIGURATION, "run make docs"
    assert generate.commands() == (DOCS / "commands.md").read_text(), "run make docs"
    assert generate.readme() == README, "run make docs"
    for name in generate.QUOTING:
        assert generate.quoting(name) == (DOCS / f"{name}.md").read_text(), "run make docs"


def test_lines_are_chosen_with_a_mark_where_some_are_missing(generate: Any) -> None:
    lines = ["one", "┏━━┓", "two", "three", "four"]
    assert generate.shortened(lines, ["one", "two", "four"]) == ["one", "two", "…", "four"]
    with pytest.raises(generate.NothingMatches, match="five"):
        generate.shortened(lines, ["one", "five"])


def of_intake(page: Path) -> None:
    figures = json.loads((RESULTS / "intake.json").read_text())
    pages.fill(page, {"intake": intake.table(figures)})


def of_paraphrases(page: Path) -> None:
    figures = json.loads((RESULTS / "paraphrases.json").read_text())
    pages.fill(page, {"paraphrases": paraphrases.table(figures["runs"])})


def of_page(page: Path) -> None:
    figures = json.loads((RESULTS / "page.json").read_text())
    pages.fill(page, {"page": benchmarks.page.table(figures)})


def of_swap(page: Path) -> None:
    swap_page.fill(json.loads((RESULTS / "swap.json").read_text()), page)


def of_scale(page: Path) -> None:
    cost_page.main(page)


@pytest.mark.parametrize(
    ("page", "fill"),
    [
        (RESULTS / "intake.md", of_intake),
        (RESULTS / "paraphrases.md", of_paraphrases),
        (RESULTS / "swap.md", of_swap),
        (DOCS / "page.md", of_page),
        (DOCS / "scale.md", of_scale),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_pages_show_the_committed_figures(
    page: Path, fill: Callable[[Path], None], tmp_path: Path
) -> None:
    copy = Path(shutil.copy(page, tmp_path))
    fill(copy)
    assert copy.read_text() == page.read_text()


def test_the_operator_s_page_is_quick_beside_a_large_ledger() -> None:
    figures = json.loads((RESULTS / "page.json").read_text())
    assert figures["setup"] == {"batches": 10_000, "facts": 1_000_000, "repeats": 40}
    assert {path: ms for path, ms in figures["page_p95_ms"].items() if ms > 100} == {}
    assert figures["metrics_p95_ms"] <= 50
    assert figures["tick_max_s"] < 1


# --- README ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READ, ids=named)
def test_commands_in_shell_blocks_exist_with_their_options(path: Path) -> None:
    known = typer.main.get_command(app)
    for line in RUN.findall(blocks(path.read_text(), "sh")):
        words = shlex.split(line, comments=True)
        command: Any = known
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        options = {option for given in command.params for option in given.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("path", [ROOT / "README.md", QUICKSTART], ids=named)
def test_configurations_are_read(path: Path, tmp_path: Path) -> None:
    written = re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL)
    assert written
    for number, block in enumerate(written):
        copy = tmp_path / f"{number}.toml"
        copy.write_text(block)
        assert Settings.load(copy, {}).model.path.is_absolute()


@pytest.mark.parametrize("path", [ROOT / "README.md", QUICKSTART], ids=named)
def test_facts_that_are_written_are_facts(path: Path) -> None:
    lines = re.findall(r"^(\{.*\})$", blocks(path.read_text(), "sh"), re.MULTILINE)
    assert len(parse_facts("\n".join(lines))) == len(lines) > 0


# --- the quick start on a GPU host -------------------------------------------------------------


def test_the_quick_start_installs_as_readme_does() -> None:
    """README's commands are run in a booted machine by `make test-systemd`."""
    lines = blocks(QUICKSTART.read_text(), "sh").splitlines()
    places = (
        r"(git|make|deploy/|install|systemd-|systemctl daemon-reload|runuser .*/palorad (c|d|p))"
    )
    installs = [line.split("  #")[0].rstrip() for line in lines if re.match(places, line)]
    assert len(installs) >= 10
    ran = {line.split("  #")[0].rstrip() for line in SHELL.splitlines()}
    assert [line for line in installs if line not in ran] == []


def test_the_quick_start_keeps_what_the_model_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.DOTALL)
    questions = [{"prompt": f"What is {n}?", "answer": f"N{n}"} for n in range(8)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    said = [
        Answer(text=f"It is n{n}." if n != 3 else "I do not know.", model="base") for n in range(8)
    ]
    monkeypatch.setattr(Client, "load", lambda _: SimpleNamespace(ask=lambda *_, **__: said.pop(0)))
    exec(script.replace('Path("/etc/palorad")', f"Path({str(tmp_path)!r})"), {})
    replayed, asked = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("known.jsonl", "known-gate.jsonl")
    )
    assert [row["answer"] for row in replayed] == [f"It is n{n}." for n in (0, 2, 4, 6)]
    assert [row["answer"] for row in asked] == ["N1", "N5", "N7"]
    assert {row["prompt"] for row in replayed}.isdisjoint(row["prompt"] for row in asked)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(), re.M))
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    named_targets = set(re.findall(r"\bmake ([a-z-]+)\b", (ROOT / name).read_text()))
    assert named_targets <= targets | set(phony[1].split())


def test_contributing_explains_every_make_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [t for t in phony[1].split() if t != "all" and f"`make {t}`" not in text] == []


def test_readme_links_every_page() -> None:
    for path in DOCS.glob("*.md"):
        assert f"docs/{path.name}" in README, path.name


def test_every_tracked_script_is_sound() -> None:
    for script in (ROOT / "deploy").glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
