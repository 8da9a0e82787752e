"""Known questions to which facts give another answer: the world has changed there, not the model.

Such a question must be neither replayed with its former answer nor asked as if that were right.
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.facts.heldout import about
from policies.facts.templates import find, recognise
from policies.records import Example, Fact, Operation
from policies.text import folded, same_text


class Updates:
    """What facts that hold together say, by their paraphrases and by what they are about."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._by_paraphrase: dict[str, str] = {}
        self._by_subject: dict[tuple[str, str], str] = {}
        for fact in facts:
            if fact.op is Operation.RETRACT:
                continue
            for paraphrase in (fact.prompt, *fact.paraphrases, *fact.eval_prompts):
                self._by_paraphrase[folded(paraphrase)] = fact.answer
            if (named := about(fact)) is not None:
                self._by_subject[_key(*named)] = fact.answer

    def unchanged(self, known: Iterable[Example]) -> tuple[Example, ...]:
        """Known text that they do not answer otherwise."""
        return tuple(one for one in known if not self.change(one.prompt, one.completion))

    def change(self, prompt: str, answer: str) -> bool:
        """Whether they answer the question otherwise.

        It is theirs where it is asked in the same words, or where the templates say that it
        asks for the same of the same subject.
        """
        said = self._by_paraphrase.get(folded(prompt))
        if said is None and self._by_subject:
            named = recognise(prompt)
            said = None if named is None else self._by_subject.get(_key(*named))
        return said is not None and not same_text(said, answer)


def _key(label: str, subject: str) -> tuple[str, str]:
    relation = find(label)
    return folded(label) if relation is None else relation.name, folded(subject)
