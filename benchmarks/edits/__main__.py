"""Public edits into a real model, in streams: `benchmarks/results/edits.jsonl` and `edits.json`.

    python -m benchmarks.edits --sets FOLDER --base smol-skill --dataset wikibigedit \\
        --protocol one --methods palorad "plain LoRA" --seeds 1 2 3

Runs that are in the results are not performed again, and one that was cut off resumes after its
last batch. Methods with rates need `--sweep` first: one batch, seed 0, each rate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapters import files
from benchmarks.edits import sets
from benchmarks.edits.figures import SELECTION, finished, rates, summary
from benchmarks.edits.material import prepare
from benchmarks.edits.methods import METHODS
from benchmarks.edits.streams import PROTOCOLS, EditRun, asker_of, perform
from benchmarks.learning.rows import add
from smol import checkpoint, finetune

RESULTS: Final = Path(__file__).parents[1] / "results" / "edits.jsonl"
BASES: Final = {"smol": checkpoint.FOLDER, "smol-skill": finetune.FOLDER}


def main() -> None:
    """Perform what is asked for and is missing, then write the figures."""
    chosen = _arguments()
    edits = sets.read(chosen.sets, chosen.dataset)
    base = prepare(
        chosen.base,
        BASES[chosen.base],
        sets.read(chosen.sets, "counterfact"),
        svf=any(METHODS[method].reads_svf for method in chosen.methods),
    )
    asker = asker_of(base)
    for run in _runs(chosen):
        if run.key not in finished(RESULTS):
            row = perform(run, base, edits, asker)
            add(RESULTS, row)
            last = row["batches"][-1]
            sys.stdout.write(f"{run}: {last['seconds']} s\n")
            sys.stdout.flush()
    files.write_text(
        RESULTS.with_suffix(".json"), json.dumps(summary(finished(RESULTS).values()), indent=1)
    )


def _runs(chosen: argparse.Namespace) -> Iterator[EditRun]:
    best = rates(finished(RESULTS).values())
    for method in chosen.methods:
        swept = METHODS[method].rates
        place = (chosen.base, chosen.dataset, method)
        if chosen.sweep:
            for rate in swept:
                yield EditRun(chosen.base, chosen.dataset, "one", method, SELECTION, rate)
            continue
        if swept and place not in best:
            sys.exit(f"{method}: no rate was swept on {chosen.base} and {chosen.dataset}: --sweep")
        for seed in chosen.seeds:
            own = best[place] if swept else None
            yield EditRun(chosen.base, chosen.dataset, chosen.protocol, method, seed, own)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edits", description=__doc__)
    parser.add_argument("--sets", type=Path, required=True, help="folder with the sets of edits")
    parser.add_argument("--base", choices=BASES, default="smol-skill")
    parser.add_argument("--dataset", choices=sets.DATASETS, default="wikibigedit")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="one")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["palorad"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--sweep", action="store_true", help="one batch, seed 0, each rate")
    return parser.parse_args()


if __name__ == "__main__":
    main()
