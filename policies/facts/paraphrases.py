"""The one policy on paraphrases: where they come from, how many a fact has, which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from policies.facts.heldout import no_templates, rendered, with_held_out
from policies.facts.model_paraphrases import with_model_paraphrases
from policies.facts.reversal import reversed_facts
from policies.facts.templates import questions, varied
from policies.records import Fact, Record

ParaphraseSource = Literal["templates", "frames", "given"]


class ParaphrasePolicy(Record):
    """Where further paraphrases of a fact come from, and how many it has at each step.

    `source` is the relation's templates, frames around the prompt alone, or nothing beside what
    was given. A fact is admitted with `at_admission` paraphrases to learn or more and trained in
    up to `at_training`, half of those by templates `prefixed`. The live model is asked for
    `by_model` further ones of each fact, in at most `model_requests` requests a plan.

    Which paraphrase is held out is decided at admission and follows from the fact alone, see
    `policies.facts.heldout`; no later step trains it.
    """

    source: ParaphraseSource
    at_admission: int = Field(ge=1)
    at_training: int = Field(ge=1)
    prefixed: bool = False
    by_model: int = Field(default=0, ge=0)
    model_requests: int = Field(default=0, ge=0)

    def for_admission(self, fact: Fact) -> Fact:
        """A fact as it is stored: at least one paraphrase held out, the first ones to learn."""
        render = questions if self.source == "templates" else no_templates
        return with_held_out(fact, render, self._most(self.at_admission))

    def for_training(self, fact: Fact) -> Fact:
        """An admitted fact in all the paraphrases that it is trained in."""
        render = varied if self.source == "templates" else no_templates
        return with_held_out(fact, render, self._most(self.at_training), prefixed=self.prefixed)

    def for_unlearning(self, fact: Fact, by_model: Sequence[str]) -> Fact:
        """A retracted fact as it was trained: the gate asks whether any paraphrase still tells it.

        `by_model` are the paraphrases that the live model gave.
        """
        return self.for_training(with_model_paraphrases(fact, by_model))

    @property
    def facts_by_model(self) -> int:
        """For how many facts of a plan the live model is asked: one request for each fact, and one
        to check each paraphrase."""
        return self.model_requests // (1 + self.by_model) if self.by_model else 0

    def _most(self, count: int) -> int:
        return 1 if self.source == "given" else count


def every_paraphrase(fact: Fact, by_model: Sequence[str] = ()) -> tuple[str, ...]:
    """Every paraphrase in which a fact can be learnt or asked, whatever the policy is or was:
    erasure looks for all of them.

    The given ones, those of the live model, all that templates make, and the reversed questions.
    A frame leaves the paraphrase that it is put around as it is, so prefixed ones are not listed.
    """
    turned = [
        prompt
        for one in reversed_facts([fact])
        for prompt in (*one.training_prompts, *one.eval_prompts)
    ]
    given = (fact.prompt, *fact.paraphrases, *fact.eval_prompts)
    return tuple(dict.fromkeys((*given, *by_model, *rendered(fact, varied), *turned)))
