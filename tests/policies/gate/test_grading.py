"""Graders: what counts as right, and what is an error rather than a guess."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PaloradError, Ungradable, UnknownGrader
from policies.gate.grading import (
    GRADERS,
    check_expected,
    chosen_letter,
    final_answer,
    grade,
    normalise,
)

RIGHT = [
    ("exact", " Thimphu\n", "Thimphu"),
    ("normalised", "The  THIMPHU.", "Thimphu"),
    ("normalised", "Thimphu\nQuestion: what next?", "Thimphu"),
    ("normalised", "Ｆｕｌｌ width", "full width"),
    ("normalised", "Straße", "STRASSE"),
    ("normalised", "O’Hara", "O'Hara"),
    ("normalised", "1,234", "1234"),
    ("normalised", "The A", "the a"),
    ("normalised", "−7", "-7"),
    ("normalised", "C++", "c++"),
    ("number", "so 3 + 4 = 7.", "7"),
    ("number", "#### 1,234", "1234"),
    ("number", "First 5, then\n#### 18\nNext question: 3", "18"),
    ("number", "It costs $5.00", "5"),
    ("number", "−12 degrees", "-12"),
    ("number", "7-5 is 2", "2"),
    ("number", "a half, 1/2", "0.5"),
    ("number", "1.5e3", "1500"),
    ("choice", "B", "b"),
    ("choice", "(C) because", "C"),
    ("choice", "The answer is (D).", "D"),
    ("choice", "I think A is a good letter, but\n#### B", "B"),
    ("regex", "about 42 km", r"about \d+ km"),
    ("final", "3 + 4 = 7\n#### 7", "7"),
    ("final", "x = 2; the answer is 7.", "#### 7.0"),
    ("final", r"so \boxed{12}", "12"),
    ("final", "who else?\n#### Ada Lovelace", "ada lovelace"),
]

WRONG = [
    ("exact", "thimphu", "Thimphu"),
    ("normalised", "Thimphu and Paro", "Thimphu"),
    ("normalised", "", "Thimphu"),
    ("normalised", "310", "3.10"),
    ("normalised", "C", "c++"),
    ("normalised", "7", "-7"),
    ("number", "no idea", "7"),
    ("number", "", "7"),
    ("number", "7 then\n#### ", "7"),
    ("number", "1.2.7", "7"),
    ("number", "1/0", "0"),
    ("choice", "A or B", "A"),
    ("choice", "A cat sat", "A"),
    ("choice", "(A) or (B)", "B"),
    ("choice", "", "A"),
    ("regex", "about 42 km or so", r"about \d+ km"),
    ("regex", "", r".+"),
    ("final", "7\n#### 8", "7"),
    ("final", "#### 17", "7"),
    ("final", "", "7"),
]

UNUSABLE = [
    ("number", "seven"),
    ("choice", "Z"),
    ("regex", "(unclosed"),
    ("regex", "x" * 1001),
    ("normalised", "?!"),
    ("final", "####"),
]


@pytest.mark.parametrize(("name", "output", "expected"), RIGHT)
def test_right(name: str, output: str, expected: str) -> None:
    assert grade(name, output, expected)


@pytest.mark.parametrize(("name", "output", "expected"), WRONG)
def test_wrong(name: str, output: str, expected: str) -> None:
    assert not grade(name, output, expected)


@pytest.mark.parametrize(("name", "expected"), UNUSABLE)
def test_an_expected_answer_that_cannot_be_compared_is_an_error(name: str, expected: str) -> None:
    with pytest.raises(Ungradable) as caught:
        check_expected(name, expected)
    assert "\n" not in str(caught.value)


def test_an_unknown_grader_names_the_nearest() -> None:
    with pytest.raises(UnknownGrader, match="did you mean 'number'"):
        grade("numbr", "7", "7")
    with pytest.raises(PaloradError, match="known: exact"):
        grade("zzz", "7", "7")


def test_a_catastrophic_pattern_ends_with_an_error() -> None:
    began = time.monotonic()
    with pytest.raises(Ungradable, match="nested repetition"):
        grade("regex", "a" * 200 + "!", r"(?:(?:a|aa)+(?:a|aa)+)+$")
    assert time.monotonic() - began < 5


@given(st.text(max_size=80))
def test_graders_never_crash_and_nothing_is_never_right(output: str) -> None:
    for name, expected in (
        ("exact", "7"),
        ("normalised", "seven"),
        ("number", "7"),
        ("choice", "C"),
        ("regex", "7"),
        ("final", "7"),
    ):
        assert grade(name, output, expected) in (True, False)
        assert not grade(name, " ", expected)


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_found(value: int) -> None:
    assert grade("number", f"so it is {value}.", str(value))
    assert grade("final", f"working\n#### {value:,}", str(value))
    assert not grade("number", f"so it is {value + 1}.", str(value))


@given(
    st.sampled_from("ABCDEFGHIJ"), st.sampled_from(["{}", "({})", "{}.", "answer: {}", "#### {}"])
)
def test_every_letter_is_found(letter: str, form: str) -> None:
    assert chosen_letter(form.format(letter)) == letter


def test_final_answer_of_a_solution_without_a_mark_is_its_last_line() -> None:
    assert final_answer("first\nsecond\n") == "second"
    assert final_answer("") == ""


def test_every_grader_takes_its_own_answer() -> None:
    for name in GRADERS:
        answer = "B" if name == "choice" else "12"
        assert grade(name, answer, answer)
