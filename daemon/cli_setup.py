"""Commands around a start: probe, configuration, doctor, demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli_session import (
    ConfigOption,
    JsonOption,
    SetOption,
    find_config,
    load_settings,
)

app = typer.Typer()
probe_app = typer.Typer(no_args_is_help=True, help="Fit the probe of a skill, or look at it.")
config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")
app.add_typer(probe_app, name="probe")
app.add_typer(config_app, name="config")


@probe_app.command("fit")
def probe_fit(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Fit the probe of [probe] skill now, instead of at first need."""
    from daemon.cli_probe import fit

    fit(load_settings(config, sets))


@probe_app.command("show")
def probe_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What the probe in force found: sizes, overlap between seeds, the spectrum."""
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
    """The main job from end to end with the small model: learn, gate, serve, reject, roll back."""
    from daemon.demo import DemoOptions, run_demo

    options = DemoOptions(
        facts=tuple(facts or ()) + tuple(more or ()),
        keep=keep,
        fit_probe=fit_probe,
        server=server,
        items=items,
        report=report,
        picture=picture,
    )
    raise typer.Exit(run_demo(options))
