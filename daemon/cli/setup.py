"""Commands around a start: probe, configuration, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.session import (
    ConfigOption,
    JsonOption,
    SetOption,
    find_config,
    load_settings,
    say,
)

app = typer.Typer()
probe_app = typer.Typer(no_args_is_help=True, help="Fit the probe of a skill, or look at it.")
config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")
app.add_typer(probe_app, name="probe")
app.add_typer(config_app, name="config")


@probe_app.command("fit")
def probe_fit(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Fit the probe of [probe] skill now, instead of at first need."""
    from daemon.cli.probe import fit

    fit(load_settings(config, sets))


@probe_app.command("show")
def probe_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What the probe in force found: sizes, overlap between seeds, the spectrum."""
    from daemon.cli.probe import show

    show(load_settings(config), as_json)


@config_app.command("check")
def config_check(config: ConfigOption = None, sets: SetOption = None) -> None:
    """Read the configuration and look whether what it names is there; starts nothing."""
    from daemon.cli.doctor import check_config

    raise typer.Exit(check_config(find_config(config), load_settings(config, sets)))


@config_app.command("show")
def config_show(
    config: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Every setting in force."""
    from daemon.cli.doctor import show_config

    show_config(load_settings(config, sets), as_json)


@config_app.command("path")
def config_path(config: ConfigOption = None) -> None:
    """Which file is read."""
    say(str(find_config(config).absolute()))


@config_app.command("reference")
def config_reference() -> None:
    """Every key with its default and meaning, as Markdown."""
    from daemon.config.reference import reference

    typer.echo(reference(), nl=False)


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check everything a first start needs and say what is missing."""
    from daemon.cli.doctor import examine

    path = find_config(config)
    settings = load_settings(config)
    raise typer.Exit(examine(path, settings, as_json))


@app.command()
def init(
    model: Annotated[
        Path | None, typer.Option(help="The directory of the model, as transformers saves it.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="A vLLM that you run, with this model.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where to write everything.")] = Path(),
    questions: Annotated[
        list[Path] | None,
        typer.Option(help='Your questions: JSONL with "prompt", "answer" if known; repeatable.'),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option(help='Logged requests: JSONL with "messages" or "prompt"; repeatable.'),
    ] = None,
    skill: Annotated[
        Path | None,
        typer.Option(help="Problems to keep: GSM8K, lm-eval samples, or prompt and answer."),
    ] = None,
    grader: Annotated[
        str | None, typer.Option(help="How solutions are compared; otherwise it is found.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems asked, at most.")] = 1500,
    solution_tokens: Annotated[int, typer.Option(min=1, help="The longest solution.")] = 400,
    key: Annotated[
        Path | None, typer.Option(help="A file with the key that the server asks for.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing on the terminal.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files of a former init.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a model, make the data that palorad needs from it, and write config.toml."""
    from daemon.cli.init import Options, run
    from daemon.onboarding.first_day import Wishes

    wishes = Wishes(
        folder=folder,
        questions=tuple(questions or ()),
        logs=tuple(logs or ()),
        problems=skill,
        grader=grader,
        most_problems=problems,
        solution_tokens=solution_tokens,
        force=force,
    )
    raise typer.Exit(run(Options(model, server, key, wishes, yes, as_json)))
