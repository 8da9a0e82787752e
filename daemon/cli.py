"""The command line, `palorad`: thin commands over settings, views and the control socket."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli_session import (
    INCONCLUSIVE,
    PASS,
    REGRESSION,
    USAGE,
    BecauseOption,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    find_config,
    load_settings,
    print_json,
    stderr,
    tell,
)
from policies.errors import PaloradError

app = typer.Typer(
    name="palorad",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Continual knowledge updates for a live language model: facts in, reasoning intact, "
    "nothing lost. Exit codes: 0 pass, 1 regression or bad lines, 2 usage, 3 inconclusive.",
)
probe_app = typer.Typer(no_args_is_help=True, help="Fit the probe of a skill, or look at it.")
config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")
app.add_typer(probe_app, name="probe")
app.add_typer(config_app, name="config")

EXIT_OF = {"pass": PASS, "fail": REGRESSION, "rejected": REGRESSION, "inconclusive": INCONCLUSIVE}


def main() -> None:
    """Run one command; what a user can do something about is one line and an exit code."""
    try:
        app()
    except PaloradError as error:
        _end(str(error), USAGE)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(USAGE) from None
    except OSError as error:
        if error.errno not in _OS_ADVICE:
            raise
        where = f" at {error.filename}" if error.filename else ""
        _end(f"{_OS_ADVICE[error.errno]}{where}", USAGE)


_OS_ADVICE = {
    errno.ENOSPC: "the disk is full: make room and start again; nothing that was finished is lost",
    errno.EDQUOT: "the disk quota is spent: make room and start again",
    errno.EACCES: "no permission: run as a user who may read and write",
    errno.EPERM: "no permission: run as a user who may read and write",
    errno.EROFS: "the file system is read-only",
    errno.EADDRINUSE: "the address is already in use: stop what listens there or set another port",
}


def _end(line: str, code: int) -> None:
    stderr.print(f"palorad: {line}", style="red", markup=False, soft_wrap=True)
    raise SystemExit(code) from None


# --- the daemon ------------------------------------------------------------------------------


@app.command()
def run(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C."""
    from daemon.service import run as serve

    raise typer.Exit(serve(load_settings(config, sets)))


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What is served, what is wanted, what is under way and what waits."""
    from daemon.cli_read import show_status

    show_status(load_settings(config), as_json)


@app.command()
def history(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(help="How many events at most.")] = 50,
) -> None:
    """The revisions and what happened, newest last."""
    from daemon.cli_read import show_history

    show_history(load_settings(config), limit, as_json)


@app.command()
def explain(
    batch: Annotated[str, typer.Argument(help="A batch's id (its beginning is enough) or name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Why a batch is live, rejected or waiting: the verdict, suite by suite."""
    from daemon.cli_read import show_explain

    show_explain(load_settings(config), batch, as_json)


@app.command()
def why(
    prompt: Annotated[str, typer.Argument(help="A question as a client would ask it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which fact, batch, adapter and revision answer a question, and what the server says now."""
    from daemon.cli_read import show_why

    show_why(load_settings(config), prompt, as_json)


@app.command()
def quarantine(
    batch: Annotated[str | None, typer.Argument(help="Only this batch's lines.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The lines that were not admitted, each with its reason."""
    from daemon.cli_read import show_quarantine

    show_quarantine(load_settings(config), batch, as_json)


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
    from daemon.cli_submit import submit_files

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
    from daemon.cli_submit import validate_files

    raise typer.Exit(validate_files(files, fmt, as_json))


@app.command()
def schema() -> None:
    """The JSON Schema of one line of facts."""
    from daemon.cli_submit import line_schema

    print_json(line_schema())


# --- changes, all through the running daemon --------------------------------------------------


def _change(config: Path | None, as_json: bool, command: str, **args: object) -> None:
    result = tell(load_settings(config), command, **args)
    if as_json:
        print_json(result)
    else:
        console.print(result.get("line", "done") if isinstance(result, dict) else result)


@app.command()
def retry(
    subject: Annotated[str, typer.Argument(help="A plan's number or a batch's id or name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a failed or rejected batch once more."""
    _change(config, as_json, "retry", subject=subject)


@app.command()
def rollback(
    to: Annotated[
        int | None, typer.Option("--to", help="The revision; otherwise the one before.")
    ] = None,
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier revision again; nothing is deleted."""
    _change(config, as_json, "rollback", to=to, because=because)


@app.command()
def forward(
    to: Annotated[
        int | None, typer.Option("--to", help="The revision; otherwise the one after.")
    ] = None,
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Undo a rollback."""
    _change(config, as_json, "forward", to=to, because=because)


@app.command()
def promote(
    plan: Annotated[int, typer.Argument(help="The number of an inconclusive plan.")],
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide by hand that an inconclusive candidate goes live."""
    _change(config, as_json, "promote", plan=plan, because=because)


@app.command()
def reject(
    plan: Annotated[int, typer.Argument(help="The number of an inconclusive plan.")],
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide by hand that an inconclusive candidate does not go live."""
    _change(config, as_json, "reject", plan=plan, because=because)


@app.command()
def pause(
    because: BecauseOption = "", config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Start no new training; what is served stays served."""
    _change(config, as_json, "pause", because=because)


@app.command()
def resume(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Undo a pause."""
    _change(config, as_json, "resume")


# --- probe and configuration ------------------------------------------------------------------


@probe_app.command("fit")
def probe_fit(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Fit the probe of [probe] skill now, instead of at first need."""
    from daemon.cli_probe import fit

    fit(load_settings(config, sets))


@probe_app.command("show")
def probe_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What the probe in force found: sizes, overlap between seeds, what is protected."""
    from daemon.cli_probe import show

    show(load_settings(config), as_json)


@config_app.command("check")
def config_check(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Read the configuration and look whether what it names is there; starts nothing."""
    from daemon.cli_doctor import check_config

    raise typer.Exit(check_config(find_config(config), load_settings(config, sets)))


@config_app.command("show")
def config_show(
    config: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Every setting in force."""
    from daemon.cli_doctor import show_config

    show_config(load_settings(config, sets), as_json)


@config_app.command("path")
def config_path(config: ConfigOption = None) -> None:
    """Which file is read."""
    typer.echo(str(find_config(config).absolute()))


@config_app.command("reference")
def config_reference() -> None:
    """Every key with its default and meaning, as Markdown."""
    from daemon.cli_reference import reference

    typer.echo(reference(), nl=False)


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check everything a first start needs and say what is missing."""
    from daemon.cli_doctor import examine

    path = find_config(config)
    settings = load_settings(config)
    raise typer.Exit(examine(path, settings, as_json))


@app.command()
def demo(
    facts: Annotated[
        list[Path] | None,
        typer.Option("--facts", metavar="FILE…", help="Other files of facts; repeatable."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE…]", hidden=True)] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep everything in DIR.")
    ] = None,
    fit_probe: Annotated[
        bool, typer.Option("--fit-probe", help="Fit the probe instead of using the committed one.")
    ] = False,
    server: Annotated[str, typer.Option(help="embedded or vllm.")] = "embedded",
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Where the PNG goes.")
    ] = None,
) -> None:
    """The main job from end to end with the small model: learn, gate, serve, reject, roll back."""
    from daemon.demo import DemoOptions, run_demo

    options = DemoOptions(
        facts=tuple(facts or ()) + tuple(more or ()),
        keep=keep,
        fit_probe=fit_probe,
        server=server,
        report=report,
        picture=picture,
    )
    raise typer.Exit(run_demo(options))


if __name__ == "__main__":
    main()
