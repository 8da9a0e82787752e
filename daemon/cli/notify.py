"""`palorad notify`: the webhook is tried, and what it did not take is shown and sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from daemon.cli.change import change
from daemon.cli.session import ConfigOption, JsonOption, load_settings, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from daemon.ledger.records import Outgoing

app = typer.Typer(no_args_is_help=True, help="Notifications: test, list, retry, discard.")
LISTED: Final = 1000


@app.command()
def test(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Post a test notification now and say whether the receiver took it."""
    change(config, as_json, "notify_test")


@app.command("list")
def list_outbox(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The notifications that the receiver has not taken: those that wait and the dead letters."""
    from daemon.client import Client

    with Client(load_settings(config)).reading() as ledger:
        outbox = {"dead": ledger.outbox.dead(LISTED), "waiting": ledger.outbox.waiting(LISTED)}
    if as_json:
        show(
            {name: [o.model_dump(mode="json") for o in found] for name, found in outbox.items()},
            lambda _: "",
            as_json=True,
        )
    else:
        show(outbox, lambda both: _table(both["dead"], both["waiting"]), as_json=False)


def _table(dead: Sequence[Outgoing], waiting: Sequence[Outgoing]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from daemon.cli.tables import clock

    if not dead and not waiting:
        return Text("the outbox is empty")
    table = Table("event", "when", "type", "of", "tries", "state")
    for found, state in ((dead, "dead letter"), (waiting, "waits")):
        for one in found:
            said = f"{state}: {one.error}" if one.error else state
            event = one.event
            row = (str(event.seq), clock(event.at), one.type.value, Text(event.subject))
            table.add_row(*row, str(one.attempts), Text(said))
    return table


@app.command()
def retry(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send the dead letters again, in the order of what they tell."""
    change(config, as_json, "notify_retry")


@app.command()
def discard(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Forget the dead letters; the history keeps what happened."""
    change(config, as_json, "notify_discard")
