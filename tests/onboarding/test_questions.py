"""What is asked: shipped questions, the user's own, and those among logged requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.onboarding.own_problems import nouns, own_problems, plural
from daemon.onboarding.questions import (
    AGAIN,
    BadQuestions,
    FactQuestion,
    distinct,
    read_logs,
    read_questions,
    shipped,
)
from policies.gate.grading import AUTO, check_expected
from policies.text import folded


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shipped_questions_differ_have_gradable_answers_and_another_paraphrase() -> None:
    found = shipped()
    assert len(found) > 700
    assert len({folded(one.prompt) for one in found}) == len(found)
    for one in found:
        assert one.answers
        assert folded(one.again) != folded(one.prompt)
        assert one.said(f"I think that it is {one.answers[0]}.")
        for answer in one.answers:
            check_expected(AUTO, answer)


def test_own_problems_differ_and_every_noun_is_listed_once() -> None:
    prompts = [one.prompt for one in own_problems()]
    assert len(set(prompts)) == len(prompts) > 600
    assert len(set(nouns())) == len(nouns())


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("table", "tables"),
        ("dish", "dishes"),
        ("fox", "foxes"),
        ("toy", "toys"),
        ("pony", "ponies"),
    ],
)
def test_plurals_are_formed_by_rule(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_own_questions_keep_their_answers_and_paraphrase(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        {"prompt": "Who runs Acme?", "answer": "Ann", "paraphrases": ["Acme is run by whom?"]},
        {"prompt": "Which year?", "answers": [1990, "'90"]},
        {"prompt": "What is Foo?"},
    )
    one, two, three = read_questions(path)
    assert (one.again, one.answers) == ("Acme is run by whom?", ("Ann",))
    assert two.answers == ("1990", "'90")
    assert (three.again, three.answers) == (AGAIN.format("What is Foo?"), ())


def test_an_answer_counts_in_a_sentence_alone_where_it_is_asserted(tmp_path: Path) -> None:
    (one,) = read_questions(lines(tmp_path / "q", {"prompt": "Capital?", "answer": "Brasilia"}))
    assert one.said("The capital is Brasilia.")
    assert not one.said("It is not Brasilia.")


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"question": "x"}', '{"prompt": ""}'])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"prompt": "Who?"}}\n{line}\n')
    with pytest.raises(BadQuestions, match=r"q\.jsonl, line 2"):
        read_questions(path)


def test_logs_of_every_shape_give_their_first_question(tmp_path: Path) -> None:
    def said(*texts: object) -> list[dict[str, object]]:
        return [{"role": "user", "content": text} for text in texts]

    path = lines(
        tmp_path / "log.jsonl",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *said("Who wrote Emma?", "Why?"),
            ]
        },
        {"custom_id": "1", "body": {"messages": said([{"type": "text", "text": "What is Fe?"}])}},
        {"request": {"prompt": "Where is Oslo?"}},
        {"prompt": ["Name a colour", "who  wrote emma?"]},
        {"messages": said("What is the latest version?")},
        {"messages": said("What is my name?")},
        {"messages": said("Rewrite this text: " + "x " * 300 + "?")},
        {"messages": said("Thanks, goodbye")},
        {"status": 200},
    )
    found = read_logs(path)
    asked = [one.prompt for one in found.questions]
    assert asked == ["Who wrote Emma?", "What is Fe?", "Where is Oslo?", "Name a colour"]
    assert found.left_out == 5


def test_a_logged_question_takes_the_answer_that_somebody_gave() -> None:
    (shipped_one,) = [one for one in shipped() if one.prompt == "What is the capital of Peru?"]
    logged = FactQuestion("what is the  capital of peru?", "Capital of Peru?")
    assert distinct([logged, shipped_one, logged]) == [shipped_one]


def test_a_log_without_a_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadQuestions, match="no line is a request"):
        read_logs(lines(tmp_path / "log.jsonl", {"status": 200}))
    with pytest.raises(BadQuestions, match="cannot be read"):
        read_logs(tmp_path / "none.jsonl")
