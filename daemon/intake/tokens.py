"""Facts that are too long for the model, found without reading every fact with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from policies.records import Fact

FILE = "tokenizer.json"
# What a chat template adds around a question and its answer.
TEMPLATE = 32


class TokenLimit:
    """Holds facts to `most` tokens, paraphrase and answer together, of the model in a directory.

    A token stands for at least one byte, so only what has more bytes is tokenised. Without a
    `tokenizer.json` that can be read every fact fits here; training then names what does not.
    """

    def __init__(self, model_dir: Path, most: int) -> None:
        self._path = model_dir / FILE
        self._most = most
        self._tokenizer: Tokenizer | None = None

    def __call__(self, fact: Fact) -> str | None:
        """Why the fact is too long; None where it is not."""
        room = self._most - TEMPLATE
        paraphrases = (fact.prompt, *fact.paraphrases, *fact.eval_prompts)
        longest = max(paraphrases, key=len)
        if 4 * (len(longest) + len(fact.answer)) <= room:
            return None  # a character has at most four bytes
        answer = len(fact.answer.encode())
        suspects = [w for w in paraphrases if len(w.encode()) + answer > room]
        if not suspects or (count := self._counter()) is None:
            return None
        found = max(_length(count, w) for w in suspects) + _length(count, fact.answer)
        if found <= room:
            return None
        return (
            f"its longest paraphrase and its answer have {found} tokens, and at most {room} fit "
            f"beside the chat template: shorten them, or raise [intake] max_tokens ({self._most})"
        )

    def _counter(self) -> Tokenizer | None:
        if self._tokenizer is None and self._path.is_file():
            try:
                self._tokenizer = Tokenizer.from_file(str(self._path))
            except Exception:  # tokenizers raises bare Exception for what it cannot read
                return None
        return self._tokenizer


def _length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)
