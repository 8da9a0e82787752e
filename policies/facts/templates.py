"""Everyday relations in many paraphrases: questions, beginnings to complete, statements."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain, islice, product, zip_longest
from types import MappingProxyType
from typing import Final

_SUBJECT: Final = "\0"

# {n} the noun, {N} the noun with a capital, {s} the subject, {w} the word after "which"
QUESTION_FRAMES: Final[tuple[str, ...]] = (
    "What is the {n} of {s}?",
    "Tell me the {n} of {s}.",
    "What is {s}'s {n}?",
    "Which {w} is the {n} of {s}?",
    "Can you tell me the {n} of {s}?",
    "Name the {n} of {s}.",
    "Do you know {s}'s {n}?",
    "I would like to know the {n} of {s}.",
    "What's the {n} of {s}?",
    "Please tell me the {n} of {s}.",
    "Give the {n} of {s}.",
    "Could you tell me {s}'s {n}?",
    "What is the {n} for {s}?",
    "State the {n} of {s}.",
    "Do you know what the {n} of {s} is?",
    "I want to know {s}'s {n}.",
    "Please name {s}'s {n}.",
    "{s} has which {n}?",
    "As for {s}, what is the {n}?",
    "Say what the {n} of {s} is.",
    "{N} of {s}?",
    "Tell me {s}'s {n}, please.",
    "About {s}: what is its {n}?",
)
PERSON_FRAMES: Final[tuple[str, ...]] = (
    "Who is the {n} of {s}?",
    "Who is {s}'s {n}?",
    "What is the name of the {n} of {s}?",
    "Do you know who the {n} of {s} is?",
    "Tell me who the {n} of {s} is.",
    "Who's the {n} of {s}?",
)
COMPLETION_FRAMES: Final[tuple[str, ...]] = (
    "The {n} of {s} is",
    "{s}'s {n} is",
    "{N} of {s}:",
    "The {n} for {s} is",
    "{s}, {n}:",
    "Complete the sentence: The {n} of {s} is",
)
OOD_FRAMES: Final[tuple[str, ...]] = (
    "May I ask what the {n} of {s} is?",
    "Could you please remind me of the {n} of {s}?",
    "I forgot the {n} of {s}. What is it?",
    "If someone asks for the {n} of {s}, what should I say?",
    "Look up the {n} of {s}.",
    "Regarding {s}: which {w} is its {n}?",
    "It is well known that the {n} of {s} is",
    "Among the facts about {s}, the {n} is",
)
STATEMENT_FRAMES: Final[tuple[str, ...]] = (
    "The {n} of {s} is {a}.",
    "{s}'s {n} is {a}.",
    "{a} is the {n} of {s}.",
    "The {n} for {s} is {a}.",
)


@dataclass(frozen=True)
class Paraphrases:
    """Ways to ask for one value.

    `questions` are whole requests; `statements` are beginnings of sentences that the answer
    completes. Both go from the plainest to the less usual and hold no paraphrase twice.
    """

    questions: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One relation and its words; `held_out` where palorad-mini never met it while it was made,
    `one_to_one` where a value belongs to one subject.
    """

    name: str
    subject: str
    answer: str
    which: str
    nouns: tuple[str, ...]
    ask: tuple[str, ...]
    say: tuple[str, ...]
    held_out: bool = False
    one_to_one: bool = False

    def questions(self, subject: str) -> tuple[str, ...]:
        """Every whole request for the value, plainest first; no out-of-distribution paraphrase
        among them."""
        frames = QUESTION_FRAMES
        if self.which == "person":
            frames = (*PERSON_FRAMES[:2], *QUESTION_FRAMES, *PERSON_FRAMES[2:])
        framed = [[self._fill(f, noun, subject) for f in frames] for noun in self.nouns]
        return _distinct(_interleave(framed[0], self.own_questions(subject), *framed[1:]))

    def completions(self, subject: str) -> tuple[str, ...]:
        """Beginnings of sentences that the answer completes."""
        framed = [[self._fill(f, noun, subject) for f in COMPLETION_FRAMES] for noun in self.nouns]
        return _distinct(_interleave(framed[0], self.own_completions(subject), *framed[1:]))

    def own_questions(self, subject: str) -> tuple[str, ...]:
        """The requests that no frame gives: they ask for this relation and no other."""
        return tuple(ask.replace("{s}", subject) for ask in self.ask)

    def own_completions(self, subject: str) -> tuple[str, ...]:
        """The beginnings of sentences that no frame gives."""
        said = [say.removesuffix(" {a}.") for say in self.say if say.endswith(" {a}.")]
        return tuple(s.replace("{s}", subject) for s in said)

    def ood(self, subject: str) -> tuple[str, ...]:
        """Out-of-distribution paraphrases: palorad-mini was trained on none of these frames."""
        return tuple(self._fill(f, noun, subject) for noun in self.nouns for f in OOD_FRAMES)

    def states(self, subject: str, answer: str) -> tuple[str, ...]:
        """Whole sentences that say the fact."""
        framed = [self._fill(f, noun, subject) for noun in self.nouns for f in STATEMENT_FRAMES]
        said = [say.replace("{s}", subject) for say in self.say]
        return _distinct(text.replace("{a}", answer) for text in (*framed, *said))

    def _fill(self, frame: str, noun: str, subject: str) -> str:
        values = {"n": noun, "N": noun[0].upper() + noun[1:], "w": self.which, "s": subject}
        filled = re.sub(r"\{([nNws])\}", lambda found: values[found[1]], frame)
        return filled[0].upper() + filled[1:] if filled.startswith(noun) else filled


@cache
def relations() -> Mapping[str, Relation]:
    """Every relation of the table by its name, in the table's order."""
    table = tomllib.loads((files("policies.facts") / "relations.toml").read_text("utf-8"))
    return MappingProxyType({name: _relation(name, row) for name, row in table.items()})


def find(label: str) -> Relation | None:
    """The relation that a label means, whether it is its name, one of its nouns or a key of it.

    Case, underscores, hyphens and camel case do not matter: `capitalCity` finds `capital`.
    """
    return _labels().get(_normal(label))


def render(relation: str, subject: str) -> Paraphrases:
    """Ways to ask for `relation` of `subject`; none where the relation is not in the table."""
    found = find(relation)
    if found is None or not subject:
        return Paraphrases((), ())
    return Paraphrases(found.questions(subject), found.completions(subject))


def questions(relation: str, subject: str) -> tuple[str, ...]:
    """The whole requests of `render`, in the shape that `policies.facts.heldout` takes."""
    return render(relation, subject).questions


def varied(relation: str, subject: str) -> tuple[str, ...]:
    """Questions, after every third of them a sentence to complete."""
    found = render(relation, subject)
    completions = iter(found.statements)
    mixed: list[str] = []
    for number, question in enumerate(found.questions, start=1):
        mixed.append(question)
        if number % 3 == 0:
            mixed.extend(islice(completions, 1))
    return tuple(mixed)


@lru_cache(maxsize=256)
def recognise(prompt: str) -> tuple[str, str] | None:
    """The relation and the subject that a prompt asks about, if one paraphrase alone fits it best.

    The paraphrase with the most letters beside the subject wins; None where two relations share it.
    """
    lowered = prompt.lower()
    if len(lowered) != len(prompt):
        return None
    frames = _frames()
    # Before and after are looked for apart: a prompt has few of either, the table has thousands.
    begins = [n for n in range(len(prompt)) if lowered[:n] in frames.before]
    ends = [n for n in range(len(prompt) + 1) if lowered[n:] in frames.after]
    best: dict[str, str] = {}
    shortest = len(prompt) + 1
    for begin, end in product(begins, ends):
        names = frames.names.get((lowered[:begin], lowered[end:]), ())
        subject = prompt[begin:end]
        if not names or not 0 < len(subject) <= shortest or subject.strip() != subject:
            continue
        best = {**(best if len(subject) == shortest else {}), **dict.fromkeys(names, subject)}
        shortest = len(subject)
    return next(iter(best.items())) if len(best) == 1 else None


@dataclass(frozen=True)
class _Frames:
    """Relations by what stands before and after the subject of their paraphrases, in lower case."""

    names: Mapping[tuple[str, str], frozenset[str]]
    before: frozenset[str]
    after: frozenset[str]


@cache
def _frames() -> _Frames:
    found: dict[tuple[str, str], frozenset[str]] = {}
    for relation in relations().values():
        for paraphrase in (*relation.questions(_SUBJECT), *relation.completions(_SUBJECT)):
            before, mark, after = paraphrase.lower().partition(_SUBJECT)
            if mark and _SUBJECT not in after:
                named = found.get((before, after), frozenset())
                found[before, after] = named | {relation.name}
    return _Frames(
        MappingProxyType(found), frozenset(b for b, _ in found), frozenset(a for _, a in found)
    )


@cache
def _labels() -> Mapping[str, Relation]:
    found: dict[str, Relation] = {}
    for relation in relations().values():
        found[_normal(relation.name)] = relation
    for relation in relations().values():
        for noun in relation.nouns:
            found.setdefault(_normal(noun), relation)
    return MappingProxyType(found)


def _relation(name: str, row: Mapping[str, object]) -> Relation:
    def words(key: str) -> tuple[str, ...]:
        value = row[key]
        assert isinstance(value, list)  # noqa: S101 - the table ships with the code
        return tuple(str(word) for word in value)

    return Relation(
        name=name,
        subject=str(row["subject"]),
        answer=str(row["answer"]),
        which=str(row["which"]),
        nouns=words("nouns"),
        ask=words("ask"),
        say=words("say"),
        held_out=bool(row.get("held_out", False)),
        one_to_one=bool(row.get("one_to_one", False)),
    )


def _normal(label: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    return " ".join(re.split(r"[\s_\-]+", spaced.strip().casefold()))


def _interleave(*groups: Iterable[str]) -> Iterable[str]:
    rounds = zip_longest(*groups)
    return (text for text in chain.from_iterable(rounds) if text is not None)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
