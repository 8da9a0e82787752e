"""`palorad probe fit` and `probe show`."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from daemon.children.jobs import Jobs, held
from daemon.cli.session import console, print_json, say
from daemon.training.messages import ProbeReport, ProbeRequest
from policies.errors import NotFound, RequestRefused

if TYPE_CHECKING:
    from adapters.spectrum import Spectrum
    from daemon.config.settings import Settings

POLL_S: Final = 0.3
CARD: Final = "probe.json"
BARS: Final = " ▁▂▃▄▅▆▇█"
SHADES: Final = "·░▒▓█"


def fit(settings: Settings) -> None:
    """Fit the probe in a child of its own, as the daemon would; a finished one is kept."""
    layout = settings.layout
    workdir = layout.work / "fit-probe"
    for directory in (layout.probes, workdir):
        directory.mkdir(parents=True, exist_ok=True)
    if held(workdir):
        raise RequestRefused(f"{workdir}: another fit is under way")
    (workdir / "report.json").unlink(missing_ok=True)
    request = ProbeRequest(
        model_dir=settings.model.path,
        probes=layout.probes,
        experts=layout.root / "expert",
        settings=settings.probe,
        protection=settings.protection,
    )
    jobs = Jobs()
    jobs.prepare(workdir, request)
    jobs.start("probe", workdir)
    try:
        report = ProbeReport.model_validate(_followed(jobs, workdir))
    finally:
        jobs.kill(workdir)
    done = f"fitted in {report.seconds:.0f} s" if report.fitted else "was fitted before; kept"
    say(f"{report.probe}: {done}")


def _followed(jobs: Jobs, workdir: Path) -> Any:  # noqa: ANN401 - JSON
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("probe", total=None, left="")
        while True:
            state = jobs.poll(workdir)
            if state.error is not None:
                raise RequestRefused(state.error.error)
            if state.outcome == "finished":
                return state.report
            if state.progress is not None:
                p = state.progress
                left = "" if p.seconds_left is None else f"{p.seconds_left:.0f} s left"
                bar.update(
                    task, description=p.stage, completed=p.done, total=p.total or None, left=left
                )
            time.sleep(POLL_S)


def show(settings: Settings, as_json: bool) -> None:
    """The card and the spectra of the probe in use; raises `NotFound` where there is none."""
    directory = _in_force(settings)
    card = json.loads((directory / CARD).read_text())
    found = _spectra(directory, card) if "overlap" in card else {}
    if as_json:
        drawn = {name: one.model_dump() for name, one in found.items()}
        print_json({"path": str(directory), **card, "spectra": drawn})
        return
    skill = card["skill"]
    say(f"{directory}: probe of {card['base']} ({card['base_hash'][:12]})")
    read = f"skill: {skill['examples']} examples, {skill['tokens']} tokens"
    if not found:
        say(read)
        say("moments alone; z is fitted where protection by svf or the SVF expert reads it")
        console.print(_matrices(card))
        return
    after = ", ".join(f"{loss:.4f}" for loss in skill["loss_after"])
    say(f"{read}; held-out loss {skill['loss_before']:.4f} before, {after} with each seed's z")
    _say_z(card)
    console.print(_matrices(card, "critical", "overlap", "chance"))
    console.print(_drawn(found))


def _say_z(card: dict[str, Any]) -> None:
    """How many factors there are, how far the seeds agree, and what that is worth."""
    overlap = card["overlap"]
    say(
        f"z: {card['values_per_seed']} values a seed, {card['share_of_base']:.4%} of the base "
        f"(at Llama 3.1 8B's shapes {card['at_llama_3_1_8b']['share_of_base']:.4%})"
    )
    say(
        f"critical components of two seeds overlap {overlap['jaccard']:.3f} (Jaccard), by chance "
        f"{overlap['chance']:.3f}"
    )
    say(_worth(card))


def _worth(card: dict[str, Any]) -> str:
    """Whether critical components say something about the skill, and what speaks against it."""
    if card["informative"]:
        return "informative"
    skill, overlap = card["skill"], card["overlap"]
    losses = skill["loss_after"]
    lowered = sum(loss < skill["loss_before"] for loss in losses)
    against = []
    if lowered < len(losses):
        against.append(f"z lowers the held-out loss with {lowered} of {len(losses)} seeds")
    if overlap["agreement"] < overlap["needed"]:
        against.append("seeds agree little more than by chance")
    return f"not informative: {' and '.join(against)}; do not rely on protection by svf"


def _of_matrices(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("matrix", no_wrap=True)
    for column in columns:
        table.add_column(column)
    return table


def _spectra(directory: Path, card: dict[str, Any]) -> dict[str, Spectrum]:
    from adapters.probe import Probe
    from adapters.spectrum import spectra

    return spectra(Probe.load(directory, card["base_hash"]))


def _matrices(card: dict[str, Any], *of_svf: str) -> Table:
    """A row for each matrix: its sizes, its entries `of_svf`, and directions for energy."""
    table = _of_matrices("in", "out", *of_svf)
    table.caption = "last columns: how many input directions hold this share of the skill's energy"
    shares = sorted(
        {s for m in card["matrices"].values() for s in m["input_directions_for_energy"]}
    )
    for share in shares:
        table.add_column(f"{100 * float(share):g}%", justify="right")
    for name, m in card["matrices"].items():
        directions = m["input_directions_for_energy"]
        table.add_row(
            _short(name),
            str(m["inputs"]),
            str(m["outputs"]),
            *(f"{m[key]:.3f}" if isinstance(m[key], float) else str(m[key]) for key in of_svf),
            *(str(directions.get(share, "–")) for share in shares),
        )
    return table


def _drawn(found: dict[str, Spectrum]) -> Table:
    """A matrix's singular values as bars; below, how much of each bar is critical."""
    table = _of_matrices("singular values; below: critical", "σ")
    for name, one in found.items():
        largest = max(one.sigma) or 1.0
        bars = "".join(_level(BARS, value / largest) for value in one.sigma)
        marks = "".join(_level(SHADES, share) for share in one.critical)
        table.add_row(
            _short(name), f"{bars}\n{marks}", f"{one.sigma[0]:.3g} to {one.sigma[-1]:.3g}"
        )
    return table


def _short(name: str) -> str:
    """A matrix's name without what all have in common."""
    return name.removeprefix("model.layers.")


def _level(signs: str, share: float) -> str:
    """The sign for a share between 0 and 1: the first for 0 alone, the last for 1."""
    return signs[math.ceil(share * (len(signs) - 1))]


def _in_force(settings: Settings) -> Path:
    """The named probe where it belongs to the model, else the newest fitted one that does."""
    named = settings.probe.path
    fitted = sorted(settings.layout.probes.glob(f"*/{CARD}"), key=lambda p: p.stat().st_mtime)
    if named is not None and (named / CARD).is_file() and _belongs(named, settings.model.path):
        return named
    for card in reversed(fitted):
        if _belongs(card.parent, settings.model.path):
            return card.parent
    raise NotFound(f"no probe of {settings.model.path} yet; fit one with 'palorad probe fit'")


def _belongs(probe: Path, model: Path) -> bool:
    from adapters.models import base_hash

    card: dict[str, Any] = json.loads((probe / CARD).read_text())
    return bool(card.get("base_hash") == base_hash(model))
