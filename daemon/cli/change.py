"""Commands that change something, all through the running daemon's control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.session import (
    BecauseOption,
    ConfigOption,
    JsonOption,
    load_settings,
    print_json,
    say,
    tell,
)

app = typer.Typer()


def change(config: Path | None, as_json: bool, command: str, **args: object) -> None:
    """Have the daemon carry a command out, and show its line."""
    result = tell(load_settings(config), command, **args)
    if as_json:
        print_json(result)
    else:
        say(str(result["line"]))


@app.command()
def retry(
    subject: Annotated[str, typer.Argument(help="A plan's number or a batch's id or name.")],
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a failed, rejected, inconclusive or rolled-back batch once more."""
    change(config, as_json, "retry", subject=subject, because=because)


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
    change(config, as_json, "rollback", to=to, because=because)


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
    change(config, as_json, "forward", to=to, because=because)


@app.command()
def promote(
    plan: Annotated[int, typer.Argument(help="The number of an inconclusive plan.")],
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide by hand that an inconclusive candidate goes live."""
    change(config, as_json, "promote", plan=plan, because=because)


@app.command()
def reject(
    plan: Annotated[int, typer.Argument(help="The number of an inconclusive plan.")],
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide by hand that an inconclusive candidate does not go live."""
    change(config, as_json, "reject", plan=plan, because=because)


@app.command()
def pause(
    because: BecauseOption = "", config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Train and promote nothing until `resume`; what is served stays served."""
    change(config, as_json, "pause", because=because)


@app.command()
def resume(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Undo a pause."""
    change(config, as_json, "resume")


@app.command()
def retract(
    fact: Annotated[str, typer.Argument(help="A fact's id or its prompt.")] = "",
    subject: Annotated[str, typer.Option(help="With --relation: every fact of this key.")] = "",
    relation: Annotated[str, typer.Option(help="See --subject.")] = "",
    search: Annotated[str, typer.Option(help="The one fact that these words find.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All facts that --search finds.")] = False,
    because: BecauseOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a fact forgotten: what learnt or replayed it is retrained without it."""
    key = {"subject": subject, "relation": relation}
    found = {"search": search, "every": every}
    change(config, as_json, "retract", fact=fact, **key, **found, because=because)


@app.command()
def consolidate(
    because: BecauseOption = "", config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Retrain one adapter from all valid facts, in place of those that are served."""
    change(config, as_json, "consolidate", because=because)
