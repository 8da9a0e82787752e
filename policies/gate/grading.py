"""Whether a free answer says what was expected: graders by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import regex

from policies.errors import Ungradable, UnknownGrader
from policies.gate.mentions import contains, first_sentence
from policies.text import nearest

Grader = Callable[[str, str], bool]
"""`grader(output, expected)`; raises `Ungradable` if `expected` is nothing to compare with."""

AUTO: Final = "auto"
"""No grader: the one that fits how the base answers, see `policies.gate.fitting`."""
JUDGE: Final = "judge"
"""No function either: another model says whether the answer is right."""
PATTERN_LIMIT_S: Final = 0.5
PATTERN_LENGTH: Final = 1000
OUTPUT_LENGTH: Final = 20_000

_MARK: Final = "####"
_NUMBER: Final = regex.compile(
    r"(?<![\w.,/])[-−+]?[$€£]?(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,30})(?P<rest>\.\d{1,30})?"
    r"(?P<power>[eE][-+]?\d{1,2})?(?:/(?P<under>\d{1,30}))?(?![\d/]|[.,]\d)"
)
_SAYS: Final = regex.compile(r"(?i)\banswers?\s*(?:is|are|:|=)\s*:?\s*")
_BOXED: Final = regex.compile(r"\\boxed\s*\{([^{}]*)\}")
_CHOICE: Final = regex.compile(r"(?i)^\W*(?:option\s+|choice\s+)?\(?([A-J])(?:[).:,]|\s*$)")
_BRACKETED: Final = regex.compile(r"\(([A-Ja-j])\)")
_ARTICLES: Final = frozenset({"a", "an", "the"})


def grade(name: str, output: str, expected: str) -> bool:
    """Whether `output` says `expected`, as the grader `name` reads it.

    Raises `UnknownGrader` and `Ungradable`; never says "right" when it could not tell.
    """
    return grader(name)(output, expected)


def grader(name: str) -> Grader:
    """The grader with this name; raises `UnknownGrader`."""
    try:
        return GRADERS[name]
    except KeyError:
        meant = nearest(name, (*GRADERS, AUTO, JUDGE))
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise UnknownGrader(
            f"there is no grader {name!r}{hint} (known: {', '.join(GRADERS)}, {AUTO}, {JUDGE})"
        ) from None


def check_name(name: str) -> None:
    """Raise `UnknownGrader` unless a suite may ask for it."""
    if name not in (AUTO, JUDGE):
        grader(name)


def check_expected(name: str, expected: str) -> None:
    """Raise `Ungradable` now if the grader could not use this expected answer later."""
    if name == AUTO:
        name = "contains"
    if name != JUDGE:
        grader(name)("", expected)


def exact(output: str, expected: str) -> bool:
    """The same characters, but for blanks at the ends."""
    return output.strip() == expected.strip()


def normalised(output: str, expected: str) -> bool:
    """The same words: the whole output or its first line, see `normalise`."""
    wanted = normalise(expected)
    if not wanted:
        raise Ungradable(f"the expected answer {expected!r} has no letter or digit to compare")
    return wanted in (normalise(output), normalise(_first_line(output)))


def number(output: str, expected: str) -> bool:
    """The same number: behind the last `####`, else the last number of the output."""
    wanted = last_number(expected)
    if wanted is None:
        raise Ungradable(f"the expected answer {expected!r} holds no number")
    return last_number(output) == wanted


def choice(output: str, expected: str) -> bool:
    """The same letter of a multiple choice, A to J."""
    wanted = chosen_letter(expected)
    if wanted is None:
        raise Ungradable(f"the expected answer {expected!r} is no letter from A to J")
    return chosen_letter(output) == wanted


def pattern(output: str, expected: str) -> bool:
    """The expected answer is a regular expression that the whole output, stripped, must match.

    A pattern that is no regular expression, or takes longer than half a second, is an error.
    """
    compiled = _compiled(expected)
    try:
        return (
            compiled.fullmatch(output.strip()[:OUTPUT_LENGTH], timeout=PATTERN_LIMIT_S) is not None
        )
    except TimeoutError:
        raise Ungradable(
            f"the pattern {_short(expected)} took more than {PATTERN_LIMIT_S} s on one answer; "
            "rewrite it without nested repetition"
        ) from None


def final(output: str, expected: str) -> bool:
    """The same final answer (see `final_answer`): as a number if one is expected, else as words."""
    wanted, said = final_answer(expected), final_answer(output)
    if _whole_number(wanted) is not None:
        return _whole_number(said) == _whole_number(wanted)
    return normalised(said, wanted)


GRADERS: Final[Mapping[str, Grader]] = MappingProxyType(
    {
        "exact": exact,
        "normalised": normalised,
        "contains": contains,
        "first-sentence": first_sentence,
        "number": number,
        "choice": choice,
        "regex": pattern,
        "final": final,
    }
)


def normalise(text: str) -> str:
    """Words in NFKC and folded case, without punctuation, articles and superfluous blanks.

    Signs within a number (3.10, -7) stay; a text of nothing but articles keeps them.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    kept = (_kept(folded, n) for n in range(len(folded)))
    words = "".join(kept).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _kept(text: str, at: int) -> str:
    """The character at `at` as it is compared: itself, a blank, or nothing."""
    here = text[at]
    kind = unicodedata.category(here)[0]
    if kind in "LNM":
        return here
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if here in ".-+" and after.isdecimal() and (here == ".") == before.isdecimal():
        return here
    if here in ",'’" and (before.isalnum() and after.isalnum()):
        return ""
    return here if kind == "S" else " "


def final_answer(text: str) -> str:
    r"""What a worked solution ends in: behind the last `####`, in the last `\boxed{}`, behind the
    last "the answer is", else its last line.
    """
    _, mark, behind = text.rpartition(_MARK)
    if mark:
        return _first_line(behind)
    if boxed := _BOXED.findall(text):
        return str(boxed[-1]).strip()
    said = list(_SAYS.finditer(text))
    if said:
        return _first_line(text[said[-1].end() :]).removesuffix(".").strip()
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def last_number(text: str) -> Fraction | None:
    """The number behind the last `####`, else the last number of the text."""
    _, mark, behind = text.rpartition(_MARK)
    where = _first_line(behind) if mark else text
    found = list(_NUMBER.finditer(where))
    return _value(found[-1]) if found else None


def _whole_number(text: str) -> Fraction | None:
    """The value of a text that is nothing but a number, perhaps with a unit sign or a full stop."""
    found = _NUMBER.fullmatch(text.strip().removesuffix(".").rstrip("%°").strip())
    return _value(found) if found else None


def _value(found: regex.Match[str]) -> Fraction | None:
    digits = found["whole"].replace(",", "") + (found["rest"] or "") + (found["power"] or "")
    under = Fraction(found["under"] or 1)
    if under == 0:
        return None
    return Fraction(digits) / under * (-1 if found[0][0] in "-−" else 1)


def chosen_letter(text: str) -> str | None:
    """The letter that an answer to a multiple choice picks, in upper case; None if unclear."""
    said = final_answer(text)
    for where in (said, _first_line(text)):
        if found := _CHOICE.match(where):
            return str(found[1]).upper()
    bracketed = {letter.upper() for letter in _BRACKETED.findall(text)}
    return bracketed.pop() if len(bracketed) == 1 else None


@lru_cache(maxsize=4096)
def _compiled(source: str) -> regex.Pattern[str]:
    if len(source) > PATTERN_LENGTH:
        raise Ungradable(f"the pattern {_short(source)} is longer than {PATTERN_LENGTH} characters")
    try:
        return regex.compile(source)
    except regex.error as error:
        raise Ungradable(f"{_short(source)} is no regular expression: {error}") from None


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
