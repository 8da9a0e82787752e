"""`palorad demo` as the command line finds it: an entry point, so that the daemon needs no demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
    model: Annotated[str, typer.Option(help="mini: palorad-mini; or smol: a real one.")] = "mini",
    server: Annotated[str, typer.Option(help="embedded or vllm.")] = "embedded",
    method: Annotated[str, typer.Option(help="palorad, or palora: the paper's own.")] = "palorad",
    items: Annotated[
        int, typer.Option(min=1, help="At most so many problems and known facts are asked.")
    ] = 800,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Where the PNG goes.")
    ] = None,
) -> None:
    """The main job from end to end: learn, gate, serve, reject, roll back."""
    from demo.run import DemoOptions, run_demo
    from demo.scenario import SCENARIOS
    from demo.setup import DemoFailed

    if model not in SCENARIOS:
        raise DemoFailed(f"--model {model}: it is {' or '.join(SCENARIOS)}")
    options = DemoOptions(
        scenario=SCENARIOS[model],
        facts=tuple(facts or ()) + tuple(more or ()),
        keep=keep,
        fit_probe=fit_probe,
        server=server,
        method=method,
        items=items,
        report=report,
        picture=picture,
    )
    raise typer.Exit(run_demo(options))
