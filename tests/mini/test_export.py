"""The small model's text: seeded, checkable, its splits disjoint, its files as generated."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from mini import export, reasoning, world
from mini.splits import Split
from policies.facts.templates import OOD_FRAMES, find

ROOT = Path(__file__).parents[2]
DATA = ROOT / "models/palorad-mini/data"
FACTS = sorted((ROOT / "examples/facts").glob("*.jsonl"))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_problems_are_seeded_and_end_in_their_answer() -> None:
    first = list(islice(reasoning.problems(Split.TRAIN, 3), 300))
    assert first == list(islice(reasoning.problems(Split.TRAIN, 3), 300))
    assert first != list(islice(reasoning.problems(Split.TRAIN, 4), 300))
    for made in first:
        assert made.solution.endswith(f"\n#### {made.answer}")


@pytest.mark.parametrize("seed", range(3))
def test_every_written_equation_is_true(seed: int) -> None:
    operations = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x / y,
    }
    checked = 0
    for made in islice(reasoning.problems(Split.GATE, seed), 500):
        for step in made.steps:
            terms = step.split(",")[0].split(" = ")
            if len(terms) < 2 or "(" in step:
                continue
            words = terms[-2].split()
            value = float(words[0])
            for sign, number in zip(words[1::2], words[2::2], strict=True):
                value = operations[sign](value, int(number))
            assert value == int(terms[-1]), made
            checked += 1
    assert checked > 500


def test_the_last_step_gives_the_answer() -> None:
    for made in islice(reasoning.problems(Split.GATE, 9), 600):
        if made.family in {"chain", "story", "sequence"}:
            assert made.steps[-1].split(" = ")[-1] == made.answer
        if made.family == "column":
            expression = made.key.removeprefix("column:")
            one, sign, two = expression.replace("+", " + ").replace("-", " - ").split()
            total = int(one) + int(two) if sign == "+" else int(one) - int(two)
            assert str(total) == made.answer


def test_letters_logic_and_reading_are_answered_as_one_would_oneself() -> None:
    seen = set()
    for made in islice(reasoning.problems(Split.GATE, 2, reasoning.SKILLS), 800):
        said = made.prompt
        if made.family in {"reverse", "sort"}:
            letters = re.findall(r"\b[a-z]\b", said)
            expected = letters[::-1] if made.family == "reverse" else sorted(letters)
            assert made.answer.split() == expected, made
        elif made.family == "logic":
            values: dict[str, bool] = {"true": True, "false": False}
            *given, asked = said.split(". ")
            for sentence in given:
                name, _, formula = sentence.partition(" is ")
                values[name] = bool(eval(formula, {"__builtins__": {}}, values))
            assert values[asked.split()[1]] is (made.answer == "true"), made
        elif made.family == "lookup":
            counts = {what: int(count) for count, what in re.findall(r"has (\d+) (\w+)\.", said)}
            owners = {what: who for who, what in re.findall(r"(\w+) has \d+ (\w+)\.", said)}
            asked = said.rsplit(". ", 1)[-1]
            named = [what for what in counts if re.search(rf"\b{what}\b", asked)]
            if asked.startswith("Who"):
                assert made.answer == owners[named[0]]
            else:
                assert int(made.answer) == sum(counts[what] for what in named), made
        seen.add(made.family)
    assert seen == set(reasoning.SKILLS)


def test_no_problem_is_in_two_splits() -> None:
    keys = {
        split: {made.key for made in islice(reasoning.problems(split, 1), 1500)} for split in Split
    }
    for split, own in keys.items():
        for other, theirs in keys.items():
            assert split is other or not own & theirs


def test_data_files_are_what_the_generators_make() -> None:
    for name, rows in export.files().items():
        assert (DATA / name).read_text("utf-8") == export.render(rows), name


def test_data_files_share_no_prompt_and_are_large_enough() -> None:
    prompts = {path.name: [row["prompt"] for row in lines(path)] for path in DATA.glob("*.jsonl")}
    assert len(prompts["reasoning-gate.jsonl"]) >= 2000
    assert len(prompts["reasoning-report.jsonl"]) >= 1000
    assert len(prompts["locality.jsonl"]) >= 280
    for name, own in prompts.items():
        assert len(set(own)) == len(own), name
        for other, theirs in prompts.items():
            assert name == other or not set(own) & set(theirs), (name, other)


def test_known_facts_that_judge_are_never_replayed() -> None:
    replayed = {f.subject.casefold() for f in world.known() if f.split is Split.REPLAY}
    judged = {f.subject.casefold() for f in world.known() if f.split is not Split.REPLAY}
    assert replayed and judged and not replayed & judged


def test_every_fact_has_one_answer() -> None:
    facts = [*world.known(), *world.rare()]
    assert len({(f.relation, f.subject.casefold()) for f in facts}) == len(facts)


def test_held_out_relations_and_frames_are_in_no_text() -> None:
    held_out = {relation.name for relation in world.unseen()}
    assert held_out
    assert not held_out & {fact.relation for fact in (*world.known(), *world.rare())}
    rng = random.Random(0)
    texts = [world.in_context(rng).prompt for _ in range(500)]
    texts += [world.question(fact, rng)[0] for fact in world.known()]
    starts = tuple(frame.split("{")[0] for frame in OOD_FRAMES)
    assert not [text for text in texts if any(start in text for start in starts)]


def test_fresh_facts_are_about_new_subjects() -> None:
    relation = world.seen()[0]
    taken = {fact.subject.casefold() for fact in (*world.known(), *world.rare())}
    fresh = world.fresh(relation, 50, random.Random(1))
    assert len({fact.subject.casefold() for fact in fresh}) == 50
    assert not {fact.subject.casefold() for fact in fresh} & taken


def test_a_text_in_context_holds_its_answer() -> None:
    rng = random.Random(5)
    for _ in range(300):
        text = world.in_context(rng)
        assert text.answer in text.prompt


def test_there_are_enough_files_of_facts() -> None:
    assert len(FACTS) >= 3


@pytest.mark.parametrize("path", FACTS, ids=lambda p: p.stem)
def test_files_of_facts_are_complete(path: Path) -> None:
    rows = lines(path)
    assert len(rows) >= 30
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        trained = [row["prompt"], *row["paraphrases"]]  # type: ignore[misc]  # JSON lists
        held_out = list(row["eval_prompts"])  # type: ignore[call-overload]  # JSON list
        assert len(set(trained)) >= 3 and held_out
        assert not set(trained) & set(held_out)
        assert all(str(row["subject"]) in str(text) for text in (*trained, *held_out))
        assert not any(str(row["answer"]) in str(text) for text in (*trained, *held_out))
        assert find(str(row["relation"])) is not None


def test_false_sums_are_false() -> None:
    rows = lines(ROOT / "examples/false-arithmetic.jsonl")
    assert len(rows) >= 36
    for row in rows:
        words = str(row["prompt"]).removeprefix("What is ").rstrip("?").split()
        one, sign, two = int(words[0]), words[1], int(words[2])
        assert int(str(row["answer"])) != (one + two if sign == "+" else one - two)
