"""The pages and pictures that show what was measured, all written from `learning.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import pages
from benchmarks.learning import headline, plots, tables

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/results.md"
PICTURE: Final = ROOT / "docs/img/results.png"
WRITTEN: Final = "<!-- written by `make bench-tables` -->"
LEARNT: Final = {
    "one": "One injection of 48 facts",
    "ten": "Ten batches of 36 facts",
    "forty": "Forty batches of 12 facts",
    "hundreds": "500 facts in one run",
    "singles": "Ten batches of one fact",
    "contradicting": "48 facts that contradict known ones",
}
READING: Final = """\
Percent with 95 % intervals over seeds and items, after the last batch. The columns are explained in
[results.md](../../docs/results.md); "retention of batch 1" is the accuracy on the first batch's
facts at the end, ‖ΔW‖ the norm of the whole update. Rates are those that a sweep of one injection
on a selection seed chose; where there was none, the middle one. A base's rows are all of one
training of it. Methods that stack adapters have rank 16 (OSF 128), 24 paraphrases a fact and 150
steps, as they were tuned; when their ranks exceed 64, one adapter is retrained on all facts. The
first adapter of O-LoRA is that of plain LoRA. Known facts are the same questions for every seed.
The settings and the machine of each row are in [learning.jsonl](learning.jsonl)."""


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """What stands in docs/results.md, by the name of its place."""
    return {
        "headline": headline.table(found["results"]),
        "comparison": headline.comparison(found["headline"]),
        "models": headline.models(found["results"]),
    }


def texts(found: Mapping[str, Any], name: str = "learning") -> dict[str, str]:
    """The pages beside the rows, by path: an index, and one for each base."""
    written = {f"{name}.md": _index(found, name)}
    for base, protocols in found["results"].items():
        written[f"{name}/{base}.md"] = _page(base, protocols, base in found["sweeps"])
    return written


def write(found: Mapping[str, Any], out: Path, name: str = "learning") -> None:
    """The pages and pictures below the folder `out`."""
    (out / name).mkdir(parents=True, exist_ok=True)
    for path, text in texts(found, name).items():
        (out / path).write_text(text, "utf-8")
    for base, protocols in found["results"].items():
        plots.draw({base: protocols}, out / name / f"{base}.png")
    for base, swept in found["sweeps"].items():
        plots.draw_sweeps({base: swept}, out / name / f"{base}-rates.png")


def document(found: Mapping[str, Any]) -> None:
    """docs/results.md and its picture."""
    pages.fill(PAGE, blocks(found))
    headline.draw(found["results"], PICTURE)


def _index(found: Mapping[str, Any], name: str) -> str:
    methods: dict[str, str] = {}
    for protocols in found["results"].values():
        for measured in protocols.values():
            for method, one in measured.items():
                methods.setdefault(method, one["description"])
    links = [
        f"- [{base}]({name}/{base}.md): {', '.join(LEARNT.get(p, p).lower() for p in protocols)}"
        for base, protocols in found["results"].items()
    ]
    described = [f"| {method} | {said} |" for method, said in sorted(methods.items())]
    parts = [
        f"# All figures\n\n{WRITTEN}",
        READING,
        "## By base",
        "\n".join(links),
        "## The product beside its goals",
        "In percent; **bold** is what misses its goal.",
        tables.streams(found["results"]),
        "## Methods",
        "\n".join(["| method | what it is |", "| --- | --- |", *described]),
    ]
    return "\n\n".join(parts) + "\n"


def _page(base: str, protocols: Mapping[str, Any], swept: bool) -> str:
    parts = [
        f"# {base}\n\n{WRITTEN}",
        "Columns, methods and how they were measured: [all figures](../learning.md).",
        f"![Accuracy on new facts against reasoning and locality, by method]({base}.png)",
    ]
    if swept:
        parts.append(f"![The same for each learning rate of one injection]({base}-rates.png)")
    for protocol, methods in protocols.items():
        parts += [f"## {LEARNT.get(protocol, protocol)}", tables.table(methods)]
    return "\n\n".join(parts) + "\n"
