"""Commands about what is kept: backup, restore, prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.exit_codes import PASS, REGRESSION
from daemon.cli.session import (
    ConfigOption,
    JsonOption,
    load_settings,
    print_json,
    say,
    tell,
)

if TYPE_CHECKING:
    from daemon.config.settings import Settings
    from daemon.keeping.backup_store import BackupManifest
    from policies.retention import Removal

app = typer.Typer()

BackupDirectory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Where the backups lie, outside the state directory.")
]


@app.command()
def backup(
    directory: BackupDirectory,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Delete all backups there but the newest KEEP, this one among."),
    ] = None,
    secrets: Annotated[
        bool,
        typer.Option("--secrets", help="Back up the keys for server and notifications as well."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back the state directory up, while the daemon runs or not; only what is new is copied."""
    from datetime import UTC, datetime

    from daemon.keeping.backup import back_up
    from daemon.keeping.backup_store import BackupStore

    settings, root = load_settings(config), directory.absolute()
    stable_s = settings.intake.stable_s
    done = back_up(settings.layout, root, datetime.now(UTC), secrets=secrets, stable_s=stable_s)
    kept, forgotten = BackupStore(root), 0
    if keep is not None:
        with kept.writing():
            forgotten = kept.forget(keep)
    found = done.manifest
    if as_json:
        print_json(
            {
                **_said(done.number, found),
                "new_bytes": done.new_bytes,
                "forgotten": forgotten,
            }
        )
    else:
        say(f"{_line(done.number, found)}; {done.new_bytes / 1e6:.1f} MB of it are new")
        for name in found.damaged:
            say(f"{name} is not what was published and was left out; see 'palorad status'")
        if forgotten:
            say(f"{forgotten} earlier backups deleted")
    raise typer.Exit(REGRESSION if found.damaged else PASS)


@app.command()
def restore(
    directory: BackupDirectory,
    number: Annotated[int | None, typer.Option(help="Which backup; otherwise the newest.")] = None,
    aside: Annotated[
        Path | None,
        typer.Option(help="Where to move what is in the state directory; it is not overwritten."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the backup is whole; restore nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a backup the state directory; the daemon must not run."""
    from daemon.keeping import restore as restoring
    from daemon.loop.instance import single_instance

    settings, root = load_settings(config), directory.absolute()
    if check:
        chosen, found = restoring.check(root, number)
    else:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        with single_instance(settings.layout.lock):
            away = None if aside is None else aside.absolute()
            chosen, found = restoring.restore(settings.layout, root, number, away)
    if as_json:
        print_json(_said(chosen, found))
        return
    say(f"{_line(chosen, found)}; {'it is whole' if check else f'now in {settings.state_dir}'}")
    if not check:
        say("facts that were retracted after it was made are known again: retract them again")


@app.command()
def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed, and why.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what need not be kept any more ([keep]), as the daemon does every night."""
    settings = load_settings(config)
    if dry_run:
        _list(_removable(settings), as_json)
        return
    result = tell(settings, "prune")
    if as_json:
        print_json(result)
    else:
        say(str(result["line"]))


def _removable(settings: Settings) -> tuple[Removal, ...]:
    from datetime import UTC, datetime

    from daemon.client import Client
    from daemon.keeping.inventory import to_remove

    client = Client(settings)
    daemon = client.daemon()
    serving = {view.active for view in daemon.replicas if view.active} if daemon else set()
    with client.reading() as ledger:
        return to_remove(ledger, settings.layout, settings.keep, serving, datetime.now(UTC))


def _list(found: tuple[Removal, ...], as_json: bool) -> None:
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    for one in found:
        say(f"{one.kind.value} {one.name} ({one.bytes / 1e6:.1f} MB): {one.because}")
    total = sum(one.bytes for one in found) / 1e6
    say(f"{len(found)} items, {total:.1f} MB, would be removed")


def _said(number: int, manifest: BackupManifest) -> dict[str, object]:
    body = manifest.model_dump(mode="json", exclude={"files"})
    return {"number": number, **body, "files": len(manifest.files), "bytes": manifest.bytes}


def _line(number: int, manifest: BackupManifest) -> str:
    return (
        f"backup {number}, made at {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC with revision "
        f"{manifest.revision} as target: {len(manifest.files)} files, {manifest.bytes / 1e6:.1f} MB"
    )
