"""An invented world: facts that palorad-mini knows, and texts that say and ask for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final

from mini import names
from mini.splits import Split, split_of_subject
from policies.facts.templates import Relation, relations

KNOWN: Final = 800
_RARE: Final = 1600


@dataclass(frozen=True)
class Invented:
    """A fact about an invented subject."""

    relation: str
    subject: str
    answer: str

    @property
    def split(self) -> Split:
        """What the fact may serve for: all facts of one subject share it."""
        return split_of_subject(self.subject)


class Form(StrEnum):
    """How a text is put before the model."""

    PLAIN = "plain"
    CHAT = "chat"
    TEXT = "text"


@dataclass(frozen=True)
class Text:
    """A text to learn: what is given and what is to follow it, without the blank between."""

    form: Form
    prompt: str
    answer: str


_BEFORE: Final = (
    "Please answer: {}",
    "Tell me: {}",
    "Question: {}",
    "I would like to know: {}",
    "Quick question: {}",
    "Hello! {}",
    "{} Answer briefly.",
    "{} Thank you.",
    "Hi, {}",
    "Please answer this question: {}",
    "{} Answer with the name only.",
    "{} Be brief.",
    "Q: {}",
    "Q: {} A:",
    "Question: {} Answer:",
)
_BEFORE_COMPLETION: Final = (
    "Complete the sentence: {}",
    "Continue: {}",
    "Finish this sentence: {}",
    "Fill in what follows: {}",
    "What comes next? {}",
)


def seen() -> tuple[Relation, ...]:
    """The relations that the pretraining uses."""
    return tuple(r for r in relations().values() if not r.held_out)


def unseen() -> tuple[Relation, ...]:
    """The relations held out of the pretraining."""
    return tuple(r for r in relations().values() if r.held_out)


@cache
def known(count: int = KNOWN) -> tuple[Invented, ...]:
    """The facts that a model is to know well: fewer are the first of more."""
    return _facts(random.Random("known"), count)


@cache
def rare(count: int = KNOWN) -> tuple[Invented, ...]:
    """Facts that are met less often, for breadth of names; no subject of `known(count)` in them."""
    taken = {fact.subject.casefold() for fact in known(count)}
    made = _facts(random.Random("rare"), _RARE + 400)
    return tuple(f for f in made if f.subject.casefold() not in taken)[:_RARE]


def fresh(relation: Relation, count: int, rng: random.Random, of: int = KNOWN) -> list[Invented]:
    """New facts of one relation about subjects that are not in the world of `of` known facts."""
    taken = {fact.subject.casefold() for fact in (*known(of), *rare(of))}
    found: list[Invented] = []
    while len(found) < count:
        subject = names.subject(relation.subject, rng)
        if subject.casefold() not in taken:
            taken.add(subject.casefold())
            found.append(Invented(relation.name, subject, names.answer(relation.answer, rng)))
    return found


def _facts(rng: random.Random, count: int) -> tuple[Invented, ...]:
    kinds: dict[str, list[Relation]] = {}
    for relation in seen():
        kinds.setdefault(relation.subject, []).append(relation)
    found: dict[tuple[str, str], Invented] = {}
    while len(found) < count:
        kind = rng.choices(list(kinds), [len(r) for r in kinds.values()])[0]
        subject = names.subject(kind, rng)
        if any((r.name, subject) in found for r in kinds[kind]):
            continue
        for relation in rng.sample(kinds[kind], min(len(kinds[kind]), rng.randint(1, 5))):
            value = names.answer(relation.answer, rng)
            found[relation.name, subject] = Invented(relation.name, subject, value)
    return tuple(found.values())[:count]


def question(fact: Invented, rng: random.Random, own: float = 0.0) -> tuple[str, bool]:
    """A paraphrase that asks for the fact's answer, and whether it is a sentence to complete.

    `own` is the share of paraphrases that no frame gives, beside their even part among all: each
    belongs to one relation alone, so that it is met far less often than those from frames.
    """
    relation = relations()[fact.relation]
    special = own > 0 and rng.random() < own
    if rng.random() < 0.22:
        completions = relation.own_completions(fact.subject) if special else ()
        text = rng.choice(completions or relation.completions(fact.subject))
        framed = rng.choice(_BEFORE_COMPLETION).format(text) if rng.random() < 0.15 else text
        return framed, True
    asked = relation.own_questions(fact.subject) if special else ()
    if not asked:
        every = relation.questions(fact.subject)
        asked = every[: len(relation.nouns) + 2] if rng.random() < 0.3 else every
    text = rng.choice(asked)
    if rng.random() < 0.15:
        text = rng.choice(_BEFORE).format(text)
    return text, False


def asked(fact: Invented, rng: random.Random, own: float = 0.0) -> Text:
    """The fact as a question with its answer, plain or as a chat."""
    text, completion = question(fact, rng, own)
    chat = rng.random() < (0.3 if completion else 0.55)
    return Text(Form.CHAT if chat else Form.PLAIN, text, fact.answer)


def stated(fact: Invented, rng: random.Random) -> str:
    """The fact as a whole sentence, the answer written as it is."""
    sentences = relations()[fact.relation].states(fact.subject, fact.answer)
    if fact.answer[0].islower():
        sentences = tuple(s for s in sentences if not s.startswith(fact.answer))
    sentence = rng.choice(sentences)
    return sentence[0].upper() + sentence[1:]


def in_context(rng: random.Random) -> Text:
    """Statements about fresh subjects, then a question that one of them answers."""
    facts = list(_facts(rng, rng.choice((1, 2, 2, 3, 4))))
    if rng.random() < 0.6 and len(facts) > 1:
        relation = relations()[facts[0].relation]
        facts[1] = Invented(
            relation.name,
            names.subject(relation.subject, rng),
            names.answer(relation.answer, rng),
        )
    distinct = list({(f.relation, f.subject): f for f in facts}.values())
    given = " ".join(stated(fact, rng) for fact in rng.sample(distinct, len(distinct)))
    chosen = asked(rng.choice(distinct), rng)
    return Text(chosen.form, f"{given} {chosen.prompt}", chosen.answer)
