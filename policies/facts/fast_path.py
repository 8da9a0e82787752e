"""The plainest lines of facts, read in a fraction of the time; all others are left to admission.

What this reads must be exactly what `policies.facts.admission` reads: a test compares the two.
It takes a line only if nothing about it needs a second look: ASCII without escapes or double
blanks, native keys, an assertion, no key twice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from pydantic_core import SchemaValidator, ValidationError, core_schema

_TEXTS: Final = ("subject", "relation", "statement", "source", "valid_from")
_ID: Final = r"^[!-.0-}]{1,128}$"


class QuickReader:
    """Reads plain lines within given lengths; none for every other line, good or bad."""

    def __init__(self, line: int, prompt: int, answer: int, other: int, paraphrases: int) -> None:
        """All lengths in characters but `line`, in bytes; `paraphrases` is a number."""
        self._line = line

        def text(most: int) -> core_schema.CoreSchema:
            return core_schema.str_schema(
                strict=True, strip_whitespace=True, min_length=1, max_length=most
            )

        listed = core_schema.list_schema(text(prompt), strict=True, max_length=paraphrases)
        fields: dict[str, core_schema.CoreSchema] = {
            "prompt": text(prompt),
            "answer": text(answer),
            "id": core_schema.str_schema(strict=True, pattern=_ID),
            "paraphrases": listed,
            "eval_prompts": listed,
            "op": core_schema.literal_schema(["assert"]),
            "priority": core_schema.literal_schema(["normal"]),
            **{name: text(other) for name in _TEXTS},
        }
        self._read = SchemaValidator(
            core_schema.typed_dict_schema(
                {
                    name: core_schema.typed_dict_field(
                        schema, required=name in ("prompt", "answer")
                    )
                    for name, schema in fields.items()
                },
                extra_behavior="forbid",
            )
        ).validate_json

    def fields(self, raw: bytes) -> dict[str, Any] | None:
        """The fields of a plain line, checked but for how its texts stand to each other."""
        if (
            len(raw) > self._line
            or not raw.isascii()
            or b"\\" in raw
            or b"  " in raw
            or b"\x7f" in raw
        ):
            return None
        try:
            fields: dict[str, Any] = self._read(raw)
        except ValidationError:
            return None
        # without escapes a quote before a colon always ends a key
        return fields if raw.count(b'":') == len(fields) else None


quick_reader = lru_cache(maxsize=8)(QuickReader)
