"""Problems are read as GSM8K, lm-evaluation-harness and users write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.onboarding.problems import BadProblems, Problem, read_problems, some


def read(path: Path, *rows: object) -> list[Problem]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problems(path)


def test_gsm8k_lines_have_the_result_and_a_solution_without_the_calculator(tmp_path: Path) -> None:
    answer = "Half of 48 is 48/2=<<48/2=24>>24.\n#### 1,024"
    (one,) = read(tmp_path / "g", {"question": "How many clips?", "answer": answer})
    assert one.answers == ("1024",)
    assert one.solution == "Half of 48 is 48/2=24.\n#### 1,024"


def test_samples_of_lm_eval_are_read_once_a_document(tmp_path: Path) -> None:
    doc = {"question": "How many clips?", "answer": "x #### 72"}
    sample = {"doc_id": 0, "doc": doc, "target": "x #### 72", "resps": [["71"]], "filter": "strict"}
    (one,) = read(tmp_path / "s", sample, sample | {"filter": "flexible"})
    assert (one.prompt, one.answers) == ("How many clips?", ("72",))
    (two,) = read(tmp_path / "t", {"doc": {"question": "Who?"}, "target": "Ann", "resps": []})
    assert (two.answers, two.solution) == (("Ann",), "")


def test_own_problems_keep_family_and_solution(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "answers": [4, "four"], "family": "sum", "solution": "2+2 = 4"}
    assert read(tmp_path / "p", row) == [Problem("2+2?", ("4", "four"), "sum", "2+2 = 4")]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": "72"},
        {"doc": {"question": "Which?", "choices": ["a", "b"]}, "target": "1"},
        {"doc": {"question": "Which?"}, "target": 1},
        {"prompt": "Which?"},
        {"prompt": "Which?", "answer": "?!"},
        ["Which?"],
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, row: object) -> None:
    with pytest.raises(BadProblems, match="p, line 2"):
        read(tmp_path / "p", {"prompt": "2+2?", "answer": "4"}, row)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadProblems, match="no problem"):
        read(tmp_path / "p")


def test_fewer_problems_are_the_first_of_more() -> None:
    given = [Problem(str(n), ("a",)) for n in range(40)]
    assert some(given, 10, 3) == some(given, 30, 3)[:10]
    assert sorted(one.prompt for one in some(given, 99, 3)) == sorted(str(n) for n in range(40))
