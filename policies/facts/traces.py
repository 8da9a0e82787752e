"""Where a text gives a fact away: what has to be erased when the fact is retracted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.facts.heldout import about
from policies.facts.supersession import stem_of
from policies.records import Fact, Operation
from policies.text import folded

ERASED: Final = "erased with a retracted fact"
_LONG_ENOUGH: Final = 4  # a shorter id or answer could be anything
_SAID_BY_MODELS: Final = frozenset({"output", "was", "now"})
_ESCAPED: Final = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_SHORT: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Trace:
    """What a retracted fact is known by; every text is folded."""

    handle: str
    ids: frozenset[str]
    keys: frozenset[tuple[str, ...]]
    answer: str
    paraphrases: frozenset[str]
    subject: str = ""
    core: str = ""
    apart: frozenset[str] = frozenset()
    """The paraphrases in which `core` does not occur, which most of them share."""

    def worded(self, plain: str) -> bool:
        """Whether a folded text holds one of the paraphrases, in whatever frame."""
        near = not self.core or self.core in plain
        return any(paraphrase in plain for paraphrase in (self.paraphrases if near else self.apart))


def trace_of(handle: str, fact: Fact, paraphrases: Iterable[str] = ()) -> Trace:
    """The trace of one fact; `paraphrases` are further ones in which it was learnt or asked, and
    `handle` is what it is called once it is erased."""
    known = (fact.prompt, *fact.paraphrases, *fact.eval_prompts, *paraphrases, fact.statement)
    told = frozenset(_plain(text) for text in known if text and text.strip())
    named = about(fact)
    core = _plain(named[1]) if named else ""
    return Trace(
        handle=handle,
        ids=frozenset({fact.id, stem_of(fact.id)}),
        keys=frozenset({tuple(folded(part) for part in fact.key)}),
        answer=_plain(fact.answer),
        paraphrases=told,
        subject=_plain(fact.subject or ""),
        core=core,
        apart=frozenset(text for text in told if core not in text),
    )


def says(trace: Trace, fact: Fact) -> bool:
    """Whether a fact, as a line gave it, says what is to be erased, or asks for its retraction."""
    same = tuple(folded(part) for part in fact.key) in trace.keys or bool(
        {fact.id, stem_of(fact.id)} & trace.ids
    )
    if fact.op is Operation.RETRACT:
        return same and (not fact.answer or _plain(fact.answer) == trace.answer)
    if _plain(fact.answer) != trace.answer:
        return False
    return same or any(trace.worded(_plain(text)) for text in (fact.prompt, *fact.paraphrases))


def mentions(trace: Trace, text: str) -> bool:
    """Whether a text that need be no fact holds the answer beside a paraphrase or the subject, or
    the fact's id in quotes, as JSON has it."""
    plain = readings(text)
    names = filter(_telling, trace.ids)
    if any(f'"{name}{end}' in text for name in names for end in ('"', "#", "~", "/")):
        return True
    if not trace.answer or not _stands_in(trace.answer, plain):
        return False
    if trace.subject and trace.subject in plain:
        return True
    return trace.worded(plain)


def mentioned(traces: Sequence[Trace], text: str) -> bool:
    """Whether any of them is mentioned."""
    return any(mentions(trace, text) for trace in traces)


def tells(traces: Sequence[Trace], text: str) -> bool:
    """Whether palorad's own words about facts (a reason, a report) tell one of them: mentioned, or
    quoted in one of its paraphrases, or named by its id."""
    if mentioned(traces, text):
        return True
    plain = readings(text)
    return any(
        trace.worded(plain) or any(_stands_in(name, text) for name in trace.ids if _telling(name))
        for trace in traces
    )


def answered(traces: Sequence[Trace], output: str) -> bool:
    """Whether a model's output holds one of the answers, whatever it was asked: a model that has
    learnt a fact gives its answer to the questions of other facts, too. An answer that is a number
    or very short tells nothing where it stands alone."""
    plain = _plain(output)
    return any(_telling(trace.answer) and _stands_in(trace.answer, plain) for trace in traces)


def could_tell(traces: Sequence[Trace], plain: str) -> list[Trace]:
    """Those of which at least one text occurs in a folded text: the others need no closer look."""
    return [
        trace
        for trace in traces
        if trace.answer in plain
        or (trace.subject and trace.subject in plain)
        or trace.worded(plain)
        or any(name.casefold() in plain for name in trace.ids)
    ]


def scrubbed(value: Any, traces: Sequence[Trace]) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """A JSON value without what tells of the facts.

    Ids and whole entries about a fact leave their lists, `fact` becomes its handle, and a text
    that tells is replaced, as is what a model said that holds an answer.
    """
    handles = {name: trace.handle for trace in traces for name in trace.ids}
    if isinstance(value, dict):
        changed = {
            key: ERASED
            if key in _SAID_BY_MODELS and isinstance(inner, str) and answered(traces, inner)
            else scrubbed(inner, traces)
            for key, inner in value.items()
        }
        if value.get("fact") in handles:
            changed["fact"] = handles[value["fact"]]
        return changed
    if isinstance(value, list):
        return [scrubbed(inner, traces) for inner in value if not _about(inner, handles)]
    if isinstance(value, str) and tells(traces, value):
        return ERASED
    return value


def _about(entry: Any, names: Collection[str]) -> bool:  # noqa: ANN401 - JSON
    if isinstance(entry, str):
        return entry in names
    if not isinstance(entry, dict):
        return False
    item = entry.get("id", entry.get("item", ""))
    return isinstance(item, str) and (item in names or item.rpartition("#")[0] in names)


def _telling(name: str) -> bool:
    return len(name) >= _LONG_ENOUGH and not name.isdigit()


def unescaped(text: str) -> str:
    """A text without the escapes of JSON, in normal form."""
    if "\\" not in text:
        return text if text.isascii() else unicodedata.normalize("NFC", text)
    units = _ESCAPED.sub(_character, text)
    plain = units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", plain)


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _SHORT.get(escape[2], escape[2])


def readings(text: str) -> str:
    """A text folded, as it stands and, where that is another text, without the escapes of JSON."""
    plain = folded(unescaped(text))
    return plain if "\\" not in text else f"{plain}\n{_plain(text)}"


def _plain(text: str) -> str:
    return folded(text if text.isascii() else unicodedata.normalize("NFC", text))


def _stands_in(words: str, text: str) -> bool:
    """Whether `words` occur as whole words."""
    start = text.find(words)
    while start >= 0:
        end = start + len(words)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not (before.isalnum() and words[0].isalnum()) and not (
            after.isalnum() and words[-1].isalnum()
        ):
            return True
        start = text.find(words, start + 1)
    return False
