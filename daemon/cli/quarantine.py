"""`palorad quarantine`: lines that were not admitted, and how they still can be."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.session import ConfigOption, JsonOption, load_settings, print_json, say, tell

app = typer.Typer(help="Lines that were not admitted: list, show, retry.")

BatchArgument = Annotated[
    str, typer.Argument(help="A batch's id (its beginning is enough) or name.")
]


@app.callback(invoke_without_command=True)
def quarantine(context: typer.Context, config: ConfigOption = None) -> None:
    """Lines that were not admitted: list, show, retry."""
    if context.invoked_subcommand is None:
        list_lines(None, config, False)


@app.command("list")
def list_lines(
    batch: Annotated[str | None, typer.Argument(help="Only this batch's lines.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The lines that were not admitted, each with its reason."""
    from daemon.cli.read import show_quarantine

    show_quarantine(load_settings(config), batch, as_json)


@app.command()
def show(
    batch: BatchArgument,
    line: Annotated[int, typer.Argument(help="The line's number.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One line: why it was not admitted, and what it says."""
    from daemon.cli.read import quarantined_line

    found, bad = quarantined_line(load_settings(config), batch, line)
    if as_json:
        print_json({"file": found.name, "batch": found.id, **bad.model_dump()})
    else:
        say(f"{found.name}, line {line}: {bad.reason}")
        say(bad.text)


@app.command()
def retry(
    batch: BatchArgument,
    line: Annotated[int | None, typer.Option("--line", help="Only this line.")] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="A conflicting line wins over what stands.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read quarantined lines again by the settings of now."""
    result = tell(load_settings(config), "requeue", batch=batch, line=line, newest=newest)
    if as_json:
        print_json(result)
    else:
        say(str(result["line"]))
