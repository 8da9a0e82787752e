"""Texts and answers as the tokens of the served model; imports torch, so only the child does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from adapters.examples import encode, forms
from adapters.models import load_tokenizer
from daemon.gate.unlearning import AnswerTokens
from policies.records import Fact


class Tokeniser:
    """The tokeniser of one checkpoint."""

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(model_dir)

    def text(self, text: str) -> tuple[int, ...]:
        """A text's token ids as the model takes it."""
        return tuple(int(token) for token in self._tokenizer(text)["input_ids"])

    def answers(self, facts: Sequence[Fact]) -> tuple[AnswerTokens, ...]:
        """Every paraphrase of every fact, trained and held out, in every form that is trained."""
        return tuple(self._answers(facts))

    def _answers(self, facts: Sequence[Fact]) -> Iterator[AnswerTokens]:
        """Without the end-of-text: what follows an answer says nothing about it."""
        for fact in facts:
            for held_out, prompts in ((False, fact.training_prompts), (True, fact.eval_prompts)):
                for prompt in prompts:
                    for form in forms(self._tokenizer):
                        whole = encode(self._tokenizer, prompt, fact.answer, form, key=fact.id)
                        end = self._end(whole.ids, whole.start)
                        yield AnswerTokens(fact.id, held_out, tuple(whole.ids[:end]), whole.start)

    def _end(self, ids: Sequence[int], start: int) -> int:
        special = set(getattr(self._tokenizer, "all_special_ids", ()))
        end = len(ids)
        while end > start + 1 and ids[end - 1] in special:
            end -= 1
        return end
