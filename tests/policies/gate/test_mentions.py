"""A sentence mentions an answer or it does not: whole words, no negation, every script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import Ungradable
from policies.gate.grading import grade
from policies.gate.mentions import contains, first_sentence, opening

MENTIONED = [
    # wording, case, punctuation, accents
    ("The capital of Bhutan is Thimphu.", "Thimphu"),
    ("THIMPHU!", "thimphu"),
    ("It's **Thimphu**.", "Thimphu"),
    ("Bhutan\u2019s capital: thimphu", "Thimphu"),
    ("Bhutan's capital", "Bhutan"),
    ("Levi's", "Levi's"),
    ("O\u2019Hara did", "O'Hara"),
    ("Bogota is the capital.", "Bogotá"),
    ("Bogotá", "Bogota"),
    ("Straße", "STRASSE"),
    ("Ｆｕｌｌ width", "full width"),
    ("I live in the Hague", "The Hague"),
    ("near Hague", "The Hague"),
    ("Vitamin A", "Vitamin A"),
    ("Guinea-Bissau", "Guinea Bissau"),
    ("written in C++.", "C++"),
    ("C# is it", "C#"),
    ("The US won.", "US"),
    ("No.", "No"),
    # numbers
    ("12.", "12"),
    ("It costs $12, I think", "12"),
    ("12%", "12"),
    ("about 12-inch", "12"),
    ("The answer is 12.0", "12"),
    ("It has 1,234 members.", "1234"),
    ("−7 degrees", "-7"),
    ("12:30 sharp", "12:30"),
    ("on 2012-05-12", "2012-05-12"),
    # scripts without blanks
    ("首都是北京。", "北京"),
    ("2008年です", "2008"),
    ("서울은 수도입니다", "서울"),
    ("กรุงเทพมหานคร", "กรุงเทพ"),
    # a negation of something else
    ("It is not Paro but Thimphu.", "Thimphu"),
    ("It is not Paro, it is Thimphu.", "Thimphu"),
    ("No, it is Thimphu.", "Thimphu"),
    ("Thimphu, not Paro", "Thimphu"),
    ("Thimphu rather than Paro", "Thimphu"),
    ("There is no doubt that it is Thimphu", "Thimphu"),
    ("It is none other than Thimphu", "Thimphu"),
    ("It is not only Thimphu that grows", "Thimphu"),
]
NOT_MENTIONED = [
    ("", "Thimphu"),
    ("Thimphus", "Thimphu"),
    ("Guinea-Bissau", "Guinea"),
    ("Vitamin C", "Vitamin A"),
    ("tell us", "US"),
    ("C++", "C"),
    ("C#", "C"),
    # numbers within others
    ("128", "12"),
    ("12.5", "12"),
    ("12,5", "12"),
    ("0.12", "12"),
    ("-12", "12"),
    ("1,128", "128"),
    ("12,345", "12"),
    ("12,345", "345"),
    ("12:30", "12"),
    ("2012-05-12", "12"),
    ("1/12", "12"),
    ("1.2.12", "12"),
    ("12th", "12"),
    ("x12", "12"),
    ("1990s", "1990"),
    ("128年", "12"),
    ("2008年", "08"),
    # negated
    ("It is not Thimphu.", "Thimphu"),
    ("It isn't Thimphu", "Thimphu"),
    ("It isn\u2019t Thimphu", "Thimphu"),
    ("I don't think it is Thimphu", "Thimphu"),
    ("It cannot be Thimphu", "Thimphu"),
    ("Paro rather than Thimphu", "Thimphu"),
    ("instead of Thimphu", "Thimphu"),
    ("anything but Thimphu", "Thimphu"),
    ("unlike Thimphu", "Thimphu"),
    ("neither Paro nor Thimphu", "Thimphu"),
    ("neither Thimphu nor Paro", "Thimphu"),
    ("It is not, as many think, Thimphu.", "Thimphu"),
    ("Thimphu is not the capital", "Thimphu"),
    ("Thimphu isn't the capital", "Thimphu"),
    ("Thimphu was never it", "Thimphu"),
    ("Thimphu is wrong", "Thimphu"),
    # said and taken back
    ("It is Thimphu. No, it is not Thimphu.", "Thimphu"),
]


@pytest.mark.parametrize(("output", "expected"), MENTIONED)
def test_a_mention_is_right(output: str, expected: str) -> None:
    assert contains(output, expected)


@pytest.mark.parametrize(("output", "expected"), NOT_MENTIONED)
def test_part_of_a_word_and_a_negated_mention_are_wrong(output: str, expected: str) -> None:
    assert not contains(output, expected)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("J. K. Rowling wrote it. Really.", "J. K. Rowling wrote it."),
        ("St. Petersburg is. Moscow", "St. Petersburg is."),
        ("It is about 3.14 long. Two", "It is about 3.14 long."),
        ('He said "no." Then', 'He said "no."'),
        ("首都は東京。大阪ではない", "首都は東京。"),
        ("\n\nno end\nmore", "no end"),
        ("", ""),
    ],
)
def test_the_first_sentence_ends_where_it_ends(text: str, first: str) -> None:
    assert opening(text) == first


def test_a_mention_after_the_first_sentence_does_not_count_there() -> None:
    text = "Bhutan lies in the Himalayas. Its capital is Thimphu."
    assert contains(text, "Thimphu")
    assert not first_sentence(text, "Thimphu")
    assert grade("first-sentence", text, "the Himalayas")


def test_an_answer_without_a_letter_or_digit_cannot_be_looked_for() -> None:
    with pytest.raises(Ungradable, match="no letter or digit"):
        contains("?!", "?!")


@given(st.text(max_size=80), st.text(alphabet="abcß9漢ก-.' ", min_size=1, max_size=8))
def test_any_two_texts_can_be_compared(output: str, expected: str) -> None:
    try:
        assert contains(output, expected) in (True, False)
        assert not contains("", expected)
    except Ungradable:
        assert not any(c.isalnum() for c in expected)


@given(st.integers(-(10**9), 10**9), st.integers(0, 9))
def test_a_number_is_found_in_a_sentence_and_never_within_a_longer_one(
    value: int, digit: int
) -> None:
    assert contains(f"so it is {value:,}.", str(value))
    assert not contains(f"so it is {value}{digit}.", str(value))
