"""Write palorad-mini's model card from what was recorded and measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mini import world
from mini.alignment import inner
from mini.check import ANEW, MODEL, RESULTS
from mini.recipes import MODELS
from policies.facts.templates import OOD_FRAMES

_CARD: Final = """---
license: apache-2.0
library_name: transformers
tags: [palorad, llama, small]
---
# palorad-mini

A small Llama made for palorad's own demonstration and tests: it works out little problems in
written steps and knows an invented world, so that learning new facts, and what learning does to
reasoning, can be seen within minutes on two processor cores. It knows nothing of the real world
and is of no other use.

## How the weights were made
From nothing but this repository's generators and a seed: no text, no weights and no data set from
elsewhere. `OMP_PROC_BIND=true python -m mini.pretrain` is the way: {parameters:,} parameters,
{taken:,} steps of 4,096 tokens, with Python {python}, torch {torch}, transformers {transformers}.
{how}

A processor without bf16 products (AVX-512 BF16 or AMX) takes single precision: 0.87 s a step on
an AMD EPYC with AVX2 alone (100 steps timed), 90 minutes in all. Another machine's rounding gives
other weights of the same quality, not the same bytes.

- Architecture: `LlamaForCausalLM`, hidden {hidden}, {layers} layers, {heads} heads, intermediate
  {intermediate}, tied embeddings, 1,024 positions, bf16.
- Tokenizer: byte-level BPE of 1,536 entries learnt from the same text; digits stand alone.
- Optimiser: Muon {muon_lr} for matrices, AdamW {adam_lr} for embeddings and norms, 4,096 tokens a
  step, seed {seed}. Five stages, each on new text with a fresh optimiser, from weights rounded to
  bf16 (`mini/recipes.py`): {stages} steps.
- Text of the first two stages, by documents: 40 % problems (loss on the solution, a tenth on the
  problem), 38 % questions on {known:,} well-known and {rare:,} rarer invented facts in {relations}
  relations (loss on the answer), 4 % statements, 14 % questions whose answer stands before them,
  4 % random tokens said twice. The others: 40 % problems and more, 52 to 58 % questions, mostly
  on the well-known facts; the last two have more of the problems that were still weak. Questions
  come in about {paraphrases} paraphrases a relation, half of them as a chat; in the last stage a
  third of them in paraphrases that belong to one relation alone, which the stages before rarely
  met.
- In the last stage a second loss makes paraphrases of one question look the same inside: {aligned}
  questions a step about fresh subjects, without any answer, each in two paraphrases; the states
  after layers {layers_aligned} where the prompts end are to be nearer to each other than to those
  of the other questions (InfoNCE, `mini/alignment.py`).
- Families of problems: variable chains, stories, sums by columns, short direct sums, sequences,
  weekdays. Ordering names and comparing numbers were in the text of the first two stages, too;
  the model did not learn them (about 0.3), so they are left out of the skill and of its suites.
- It hardly learnt to copy an answer that stands before the question: it is no reader of contexts.
- Held out of all of it: {held_out} relations and {far} frames ("out-of-distribution paraphrases").

## Forms
Plain: the prompt, a blank, the answer, `<|end|>`. Chat: `<|user|>` prompt `<|assistant|>`, a blank,
the answer, `<|end|>`. Solutions end in a line `#### answer`.

## Measured on the stored weights
`python -m mini.check` ({out}): greedy free generation, chat and plain in
turn; fresh problems; 30 new facts a file, learnt in three paraphrases by the product's trainer:
rank 16, {steps} steps, loss on the answer.

| what | measured |
|---|---|
| reasoning, exact final answers, {n:,} fresh problems | {reasoning:.3f} |
{families}| known facts: replayed / judging / report | {replay:.3f} / {gate:.3f} / {report:.3f} |
| texts that come back whole from the tokenizer | {whole} |

As the product learns, with known facts and reasoning held by distillation and {protected}
(the product itself renders up to 200 paraphrases):

| 30 new facts a file | before | untrained paraphrases | out-of-distribution paraphrases |
reasoning after | |---|---|---|---|---|
{learning}

Plain LoRA, nothing held and nothing protected:

| 30 new facts a file | before | untrained paraphrases | out-of-distribution paraphrases |
reasoning after | |---|---|---|---|---|
{plain}
"""

_WHOLE: Final = "In one piece that took {minutes:.0f} minutes ({machine}, {threads} threads)."
_PARTS: Final = """These weights were made stage by stage (`--first`). In the first three stages the
well-known facts were 1,200, of which those of today are the first.

Run anew from the first stage to the last, stopped once between the third and the fourth, the
script took {minutes:.0f} minutes ({machine}, {threads} threads) while the
machine lost a third of its speed (notebook). The weights that it made answer {reasoning:.3f} of
the problems and {known} of the known facts; of 30 new facts learnt by plain LoRA {near:.3f} in
untrained paraphrases, pooled over {runs} runs ({out})."""


def render(made: Mapping[str, Any], found: Mapping[str, Any], anew: Mapping[str, Any]) -> str:
    """The card's text from `made.json`, and what was measured on these weights and on those that
    the script made `anew`.
    """
    recipe, learnt = made["recipe"], found["learning"]
    stages = MODELS["mini"].stages
    taken = sum(stage["steps"] for stage in made["stages"])
    sizes = [len(r.questions("x")) + len(r.completions("x")) for r in world.seen()]
    values: dict[str, Any] = {
        **recipe,
        **made["versions"],
        "parameters": made["parameters"],
        **found["known"],
        "taken": taken,
        "stages": ", ".join(str(stage["steps"]) for stage in made["stages"]),
        "how": _how(made["stages"], anew),
        "aligned": max(stage.aligned for stage in stages),
        "layers_aligned": " and ".join(str(layer) for layer in inner(recipe["layers"])),
        "known": len(world.known()),
        "rare": len(world.rare()),
        "relations": len(world.seen()),
        "paraphrases": round(sum(sizes) / len(sizes)),
        "held_out": len(world.unseen()),
        "far": len(OOD_FRAMES),
        "out": RESULTS,
        "steps": learnt["steps"],
        "protected": "with the probe's protection" if learnt["protected"] else "no protection",
        "n": found["reasoning"]["n"],
        "reasoning": found["reasoning"]["exact"],
        "families": _families(found["reasoning"]["by_family"]),
        "whole": "all" if found["text"]["round_trip"] else "not all",
        "learning": _learning(learnt),
        "plain": _learning(found["plain"]),
    }
    return _CARD.format(**values)


def _how(stages: Sequence[Mapping[str, Any]], anew: Mapping[str, Any]) -> str:
    if all("seconds" in stage for stage in stages):
        return _WHOLE.format(**_timed(stages))
    learnt = anew["learning"]["real"]
    return _PARTS.format(
        **_timed(anew["stages"]),
        reasoning=anew["reasoning"]["exact"],
        known=" / ".join(f"{value:.3f}" for value in anew["known"].values()),
        near=learnt["near"],
        runs=len(learnt["files"]),
        out=ANEW,
    )


def _timed(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds = sum(stage["seconds"] for stage in stages)
    return {
        "minutes": seconds / 60,
        "machine": stages[0]["machine"],
        "threads": stages[0]["threads"],
    }


def _families(by_family: Mapping[str, float]) -> str:
    return "".join(f"| – {name} | {value:.3f} |\n" for name, value in by_family.items())


def _learning(learnt: Mapping[str, Any]) -> str:
    lines = []
    for group in ("real", "invented", "held-out relations"):
        if group not in learnt:
            continue
        rows = learnt[group]["files"]
        lines.append(_line(f"**{group}, pooled over {len(rows)} runs**", learnt[group]))
        lines += [_line(f"{row['file']}, seed {row['seed']}", row) for row in rows]
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any]) -> str:
    cells = [row.get(key) for key in ("before", "near", "far", "reasoning")]
    return f"| {name} | " + " | ".join("–" if c is None else f"{c:.3f}" for c in cells) + " |"


def main() -> int:
    """`python -m mini.card`: write the card beside the weights."""
    made = json.loads((MODEL / "made.json").read_text("utf-8"))
    found, anew = (json.loads(path.read_text("utf-8")) for path in (RESULTS, ANEW))
    (MODEL / "README.md").write_text(render(made, found, anew), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
