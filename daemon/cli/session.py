"""What every command starts from: the configuration, the ledger to read, the daemon to ask."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType

from daemon.base.display import HarmlessConsole, harmless_value
from policies.errors import PaloradError
from policies.text import harmless, harmless_json

if TYPE_CHECKING:
    from daemon.config.settings import Settings

V = TypeVar("V")

SYSTEM_CONFIG = Path("/etc/palorad/config.toml")

PIPED_WIDTH = 120
console: Console = HarmlessConsole(
    highlight=False,
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH,
)
stderr: Console = HarmlessConsole(stderr=True, highlight=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The configuration; otherwise $PALORAD_CONFIG, ./config.toml, "
        "/etc/palorad/config.toml, the first that is there.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting over file and environment, e.g. --set train.epochs=80; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs, not a table.")]
BecauseOption = Annotated[str, typer.Option("--because", help="Why; recorded in the events.")]


class ConfigMissing(PaloradError):
    """There is no configuration, or nothing has run with it yet."""


class BadOverride(PaloradError):
    """A `--set` that is not KEY=VALUE."""


def find_config(given: Path | None) -> Path:
    """The configuration file in force; raises `ConfigMissing` with where it was looked for."""
    from_environment = os.environ.get("PALORAD_CONFIG")
    if given is None and from_environment:
        given = Path(from_environment)
    if given is not None:
        if given.is_dir():
            given = given / "config.toml"
        if not given.exists():
            raise ConfigMissing(f"there is no configuration at {given}; name one with --config")
        return given
    for path in (Path("config.toml"), SYSTEM_CONFIG):
        if path.exists():
            return path
    raise ConfigMissing(
        f"no configuration: neither {Path('config.toml').absolute()} nor {SYSTEM_CONFIG} is there; "
        "name one with --config or $PALORAD_CONFIG"
    )


def overrides(pairs: list[str] | None) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; a value that is not TOML is taken as text."""
    tree: dict[str, Any] = {}
    for pair in pairs or ():
        key, mark, text = pair.partition("=")
        parts = key.strip().split(".")
        if not mark or not all(parts):
            raise BadOverride(f"--set {pair}: write it as KEY=VALUE, e.g. train.epochs=80")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return tree


def load_settings(config: Path | None, pairs: list[str] | None = None) -> Settings:
    """The settings in force for this command."""
    from daemon.config.settings import Settings

    return Settings.load(find_config(config), overrides(pairs))


def tell(settings: Settings, command: str, /, **args: object) -> Any:  # noqa: ANN401 - JSON
    """Ask the running daemon to do something; what it answers."""
    from daemon.client import Client

    return Client(settings).tell(command, **args)


def say(line: str) -> None:
    """One line for people, never wrapped."""
    console.print(harmless(line), markup=False, soft_wrap=True)


def complain(line: str, style: str = "") -> None:
    """One line for people on standard error."""
    stderr.print(harmless(line), style=style, markup=False, soft_wrap=True)


def show(view: V, render: Callable[[V], RenderableType], as_json: bool) -> None:
    """A view as JSON, or as `render` shows it with every text in it harmless."""
    if as_json:
        print_json(view)
    else:
        console.print(render(harmless_value(view)))


def print_json(value: object) -> None:
    """One JSON document on standard output, unstyled."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json(indent=2)
    else:
        text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    typer.echo(harmless_json(text))
