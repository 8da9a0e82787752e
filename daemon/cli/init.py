"""`palorad init`: looks, asks, writes, and says what is weak and what comes next."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from daemon.base.display import harmless_value
from daemon.cli.exit_codes import PASS, REGRESSION
from daemon.cli.session import complain, console, print_json, say
from daemon.config.settings import Settings
from daemon.onboarding import first_day, model_look, server_look
from daemon.onboarding.asking import Asking, Base, Interview, LocalBase, ServedBase
from daemon.onboarding.config_file import SERVER_PORT, ServerChoice, free_port
from daemon.onboarding.first_day import ANSWERS, CONFIG, FIRST, FirstDay, Wishes
from daemon.onboarding.model_look import ModelLook
from daemon.onboarding.server_look import ServerLook
from daemon.serving.server_command import has_gpu
from policies.errors import RequestRefused
from policies.gate.figures import percent, pp

SAY_EVERY_S: Final = 10.0
CONCURRENCY: Final = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; None where it says nothing."""

    model: Path | None
    server: str | None
    key: Path | None
    wishes: Wishes
    yes: bool
    as_json: bool


def run(options: Options, *, interactive: bool | None = None) -> int:
    """Do it all; 0, or 1 where no candidate could pass the gate with what was made."""
    if interactive is None:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive and not options.yes:
        options = asked_for(options)
    if options.model is None:
        raise RequestRefused("init needs the directory of a model: --model PATH")
    first_day.require_room(options.wishes)
    model = model_look.look(options.model, Settings().protection.share)
    note = complain if options.as_json else say
    _tell(note, f"model {options.model}", model.lines())
    base, server, served = _who_answers(options, model, note)
    asked = first_day.to_ask(options.wishes)
    note(
        f"{len(asked.questions)} questions about facts, then the problems; Ctrl-C stops, and the "
        "same command goes on from there"
    )
    if interactive and not options.yes and not typer.confirm("Ask the model?", default=True):
        raise RequestRefused("nothing was asked and nothing written")
    options.wishes.folder.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        interview = Interview(base, options.wishes.folder / ANSWERS, progress)
        made = first_day.make(options.wishes, model, server, interview)
    if options.as_json:
        print_json(made)
    else:
        _show(made, options, interview.asked)
    changes = tuple(served.changes(server.rank)) if served else ()
    _tell(note, "next", _next(options.wishes.folder, changes, attach=server.attach))
    return PASS if made.usable else REGRESSION


# --- what is not said is asked for -------------------------------------------------------------


def asked_for(options: Options) -> Options:
    """The options, with what is missing asked for on the terminal."""
    wishes = options.wishes
    model = options.model or Path(typer.prompt("Directory of the model"))
    server = options.server
    if server is None:
        server = _optional("URL of a vLLM that you run (empty: palorad starts a server itself)")
    if wishes.problems is None:
        found = _optional(
            "File of problems that the model must still solve: GSM8K, lm-eval samples or "
            '"prompt" with "answer" (empty: plurals and sums)'
        )
        wishes = replace(wishes, problems=Path(found) if found else None)
    if not wishes.questions and not wishes.logs:
        found = _optional("File of logged requests of your users (empty: shipped questions alone)")
        wishes = replace(wishes, logs=(Path(found),) if found else ())
    return replace(options, model=model, server=server or None, wishes=wishes)


def _optional(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False)).strip()


# --- who answers -------------------------------------------------------------------------------


def _who_answers(
    options: Options, model: ModelLook, note: Callable[[str], None]
) -> tuple[Base, ServerChoice, ServerLook | None]:
    """The base to ask, the server for the settings, and what a running server says of itself."""
    if options.server is None:
        vllm = _vllm() if has_gpu() else ""
        choice = ServerChoice(
            kind="vllm" if vllm else "embedded",
            attach=False,
            url=f"http://127.0.0.1:{free_port(SERVER_PORT)}",
            name="base",
            rank=model.rank,
            executable=vllm,
            slow=not has_gpu(),
        )
        return LocalBase(model.path), choice, None
    url = options.server.rstrip("/").removesuffix("/v1")
    key = _key(options.key)
    served = server_look.look(url, key)
    _tell(note, f"server {url}", served.lines())
    if served.root and Path(served.root).name != model.path.resolve().name:
        note(f"  look: it serves {served.root}; it must be the model in {model.path}")
    known = [r for r in (served.rank, model.rank) if r is not None]
    choice = ServerChoice(
        kind="vllm" if served.version else "embedded",
        attach=True,
        url=url,
        name=served.model,
        rank=min(known),
        key_file=options.key.resolve() if options.key else None,
        slow=not has_gpu() and not served.version,
    )
    return ServedBase(url, served.model, model.path, key, CONCURRENCY), choice, served


def _vllm() -> str:
    return shutil.which("vllm") or ""


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RequestRefused(f"--key {path}: cannot be read: {error.strerror}") from None


# --- what is shown -----------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Callable[[Asking], None]]:
    """A bar with the time left on a terminal; elsewhere a line now and then, on standard error."""
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def show(now: Asking) -> None:
            bar.update(
                task,
                description=now.stage,
                completed=now.done,
                total=now.total,
                left="starting" if now.seconds_left is None else _left(now),
            )

        yield show


def _lines(clock: Callable[[], float] = time.monotonic) -> Callable[[Asking], None]:
    said_at, stage = 0.0, ""

    def show(now: Asking) -> None:
        nonlocal said_at, stage
        done = now.done == now.total
        if done or now.stage != stage or clock() - said_at >= SAY_EVERY_S:
            complain(f"{now.stage}: {now.done} of {now.total}{_left(now, ', ')}")
            said_at, stage = clock(), now.stage

    return show


def _left(now: Asking, before: str = "") -> str:
    if now.seconds_left is None or now.done == now.total:
        return ""
    seconds = now.seconds_left
    told = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{before}about {told} left"


def _tell(note: Callable[[str], None], head: str, lines: tuple[str, ...]) -> None:
    note(f"{head}:")
    for line in lines:
        note(f"  {line}")


def _show(made: FirstDay, options: Options, asked: int) -> None:
    say(f"The base surely knows {made.known} of {made.questions} facts that it was asked.")
    if made.left_out:
        say(f"{made.left_out} logged requests were no questions about facts, or came twice.")
    if not asked:
        say("Every answer was there from an earlier run.")
    files = Table("file", "lines", "what it is for")
    for part in harmless_value(made.parts):
        files.add_row(part.path, str(part.lines), part.purpose)
    console.print(files)
    for suite in made.suites:
        seen = suite.sight
        if not seen.usable:
            continue  # it is named among what is weak
        sees = (
            "no loss is found"
            if seen.sees is None
            else f"a loss of {pp(seen.sees)} is found with 80 % power"
        )
        say(
            f"{suite.name}: the base has {percent(seen.right)} of {seen.items} right, graded by "
            f"{suite.grader!r}; with these {seen.items} questions {sees}."
        )
    for one in made.weak:
        say(f"weak: {one.what}; {one.advice}")
    say(f"{options.wishes.folder / CONFIG} is written.")


def _next(folder: Path, changes: tuple[str, ...], *, attach: bool) -> tuple[str, ...]:
    """The commands from here to the first file that is live."""
    here = folder.resolve() == Path.cwd()
    steps = [] if here else [f"cd {folder}"]
    steps += ["palorad doctor                        # what a start needs, and likely mistakes"]
    steps += ["palorad run                           # the daemon, until Ctrl-C"]
    if changes:
        steps += [f"at the server: {change}" for change in changes]
    steps += [
        "in another terminal, in the same folder:",
        f"palorad submit --wait {FIRST}     # six facts of an invented service",
        'palorad why "In which room does the Lantern team sit?"',
    ]
    return tuple(steps)
