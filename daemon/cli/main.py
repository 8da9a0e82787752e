"""The command line, `palorad`: thin commands over settings, views and the control socket."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli import change, keep, notify, quarantine, setup
from daemon.cli.exit_codes import FOR_NOW, INTERRUPTED, NO_DAEMON, USAGE
from daemon.cli.session import (
    BecauseOption,
    ConfigOption,
    JsonOption,
    SetOption,
    complain,
    find_config,
    load_settings,
    print_json,
)
from policies.errors import DaemonUnreachable, DiskFull, LedgerBusy, PaloradError

app = typer.Typer(
    name="palorad",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Continual knowledge updates for a live language model: facts in, reasoning intact, "
    "nothing lost. Exit codes: 0 done, 1 trouble, regression, bad lines or findings, 2 usage, "
    "3 inconclusive, 4 no daemon, 75 try again later.",
)


def main() -> None:
    """Run one command; what a user can do something about is one line and an exit code."""
    try:
        app()
    except (DiskFull, LedgerBusy) as error:
        _end(str(error), FOR_NOW)
    except DaemonUnreachable as error:
        _end(str(error), NO_DAEMON)
    except PaloradError as error:
        _end(str(error), USAGE)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(USAGE) from None
    except OSError as error:
        if error.errno not in _OS_ADVICE:
            raise
        where = f" at {error.filename}" if error.filename else ""
        code = FOR_NOW if error.errno in (errno.ENOSPC, errno.EDQUOT) else USAGE
        _end(f"{_OS_ADVICE[error.errno]}{where}", code)


_OS_ADVICE = {
    errno.ENOSPC: "the disk is full: make room and start again; nothing that was finished is lost",
    errno.EDQUOT: "the disk quota is spent: make room and start again",
    errno.EACCES: "no permission: run as a user who may read and write",
    errno.EPERM: "no permission: run as a user who may read and write",
    errno.EROFS: "the file system is read-only",
    errno.EADDRINUSE: "the address is already in use: stop what listens there or set another port",
}


def _end(line: str, code: int) -> None:
    complain(f"palorad: {line}", style="red")
    raise SystemExit(code) from None


# --- the daemon ------------------------------------------------------------------------------


@app.command()
def run(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C."""
    from daemon.loop.start import run as serve

    path = find_config(config).absolute()
    raise typer.Exit(serve(load_settings(path, sets), lambda: load_settings(path, sets)))


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What is served, under way and in the way; exit code 1 for trouble, 4 without a daemon."""
    from daemon.cli.read import show_status

    raise typer.Exit(show_status(load_settings(config), as_json))


@app.command()
def watch(
    config: ConfigOption = None,
    every_s: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between two looks.")
    ] = 1.0,
) -> None:
    """The status live in a terminal, with the time left, until Ctrl-C."""
    from daemon.cli.session import console
    from daemon.cli.watch import watch as show

    show(load_settings(config), every_s, console)


@app.command()
def history(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(help="How many events at most.")] = 50,
) -> None:
    """The revisions and what happened, newest last."""
    from daemon.cli.read import show_history

    show_history(load_settings(config), limit, as_json)


@app.command()
def explain(
    batch: Annotated[str, typer.Argument(help="A batch's id (its beginning is enough) or name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Why a batch is live, rejected or waiting: the verdict, suite by suite."""
    from daemon.cli.read import show_explain

    show_explain(load_settings(config), batch, as_json)


@app.command()
def certificate(
    name: Annotated[str, typer.Argument(help="A retraction's handle, or the id of its fact.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was done to forget a retracted fact, and what cannot be promised."""
    from daemon.cli.read import show_certificate

    show_certificate(load_settings(config), name, as_json)


@app.command()
def why(
    prompt: Annotated[str, typer.Argument(help="A question as a client would ask it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which fact, batch, adapter and revision answer a question, and what the server says now."""
    from daemon.cli.read import show_why

    show_why(load_settings(config), prompt, as_json)


@app.command()
def verify(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only what every start looks at.")] = False,
    kept: Annotated[
        Path | None,
        typer.Option("--anchor", help="Signed heads kept elsewhere, one JSON object a line."),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Sign the history as it is now (with --because).")
    ] = False,
    because: BecauseOption = "",
) -> None:
    """Compare ledger, files and servers with what was written; 0 clean, 1 findings, 2 not all of
    it could be looked at."""
    from daemon.cli.verify import accept_history, show_verification

    settings = load_settings(config)
    if accept:
        accept_history(settings, because)
        return
    raise typer.Exit(show_verification(settings, quick=quick, kept=kept, as_json=as_json))


# --- facts -----------------------------------------------------------------------------------


@app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSONL files of facts.")],
    config: ConfigOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Learn bytes anew that were rejected or rolled back.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the verdict; the exit code tells it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hand files of facts to the daemon (the same as dropping them into the inbox)."""
    from daemon.cli.submit import submit_files

    code = submit_files(load_settings(config), files, again=again, wait=wait, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSONL files of facts.")],
    fmt: Annotated[
        str, typer.Option("--format", help="Force a format instead of looking at each line.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check files of facts without a daemon; exit code 1 if a line would not be admitted."""
    from daemon.cli.submit import validate_files

    raise typer.Exit(validate_files(files, fmt, as_json))


@app.command()
def schema() -> None:
    """The JSON Schema of one line of facts."""
    from policies.facts.schema import line_schema

    print_json(line_schema())


@app.command()
def convert(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files in any known shape.")],
    fmt: Annotated[
        str, typer.Option("--format", help="Force a format instead of looking at each line.")
    ] = "auto",
) -> None:
    """Print files of facts in the native form; needs no daemon."""
    from daemon.cli.submit import convert_files

    raise typer.Exit(convert_files(files, fmt))


app.add_typer(change.app)
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(notify.app, name="notify")
app.add_typer(setup.app)
app.add_typer(keep.app)
for _command in entry_points(group="palorad.commands"):
    app.add_typer(_command.load())

if __name__ == "__main__":
    main()
