"""Suites are read whole or refused with the lines that are wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.gate.suites import (
    BadSuite,
    PromptForm,
    Suite,
    alternating,
    has_chat_template,
    load_suite,
    load_texts,
    parse_items,
    refuse_trained,
    trained_questions,
)
from policies.gate.records import Role, SuiteItem


def suite(items: tuple[SuiteItem, ...], /, **changes: object) -> Suite:
    fields: dict[str, object] = {
        "name": "s",
        "role": Role.REASONING,
        "grader": "exact",
        "form": PromptForm.PLAIN,
        "max_tokens": 8,
        "items": items,
    }
    return Suite.model_validate(fields | changes)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_native_lines_keep_their_order_family_and_ids() -> None:
    items = parse_items(
        lines(
            {"id": "a", "prompt": "1+1?", "answer": "2", "family": "sums"},
            {"prompt": "2+2?", "answer": 4},
        ),
        "here",
    )
    assert [(i.prompt, i.answer, i.stratum) for i in items] == [
        ("1+1?", "2", "sums"),
        ("2+2?", "4", ""),
    ]
    assert items[0].id == "a"
    assert items[1].id


def test_several_answers_may_be_right_and_change_the_hash() -> None:
    several = parse_items(lines({"prompt": "a", "answers": ["x", 7]}), "here", "contains")
    (item,) = several
    assert (item.answer, item.also) == ("x", ("7",))
    one = parse_items(lines({"prompt": "a", "answer": "x"}), "here", "contains")
    assert suite(several).fingerprint != suite(one).fingerprint
    assert suite(several).questions == suite(one).questions


def test_another_grader_is_another_suite_of_the_same_questions() -> None:
    asked = suite(parse_items(lines({"prompt": "a", "answer": "x"}), "here"))
    other = asked.graded_by("contains")
    assert other.grader == "contains"
    assert other.questions == asked.questions
    assert other.fingerprint != asked.fingerprint


def test_gsm8k_lines_give_the_number_after_the_mark() -> None:
    row = {"question": "How many?", "answer": "3 * 400 = <<3*400=1200>>1,200\n#### 1,200"}
    (item,) = parse_items(lines(row), "here")
    assert (item.prompt, item.answer) == ("How many?", "1200")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n  \n", "is empty"),
        ("{not json\n", "line 1: is not JSON"),
        ('["a"]\n', "line 1: is not a JSON object"),
        (lines({"prompt": "a", "answer": "b"}, {"prompt": "c"}), 'line 2: has no "answer"'),
        (lines({"answer": "b"}), 'line 1: has no "prompt"'),
        (lines({"prompt": " ", "answer": "b"}), 'line 1: "prompt" is empty'),
        (lines({"prompt": "a", "answer": True}), '"answer" must be text'),
        (lines({"prompt": "a", "answers": []}), '"answers" must be a list of texts'),
        (lines({"prompt": "a", "answers": ["b", " "]}), '"answer" is empty'),
        (lines({"prompt": "a", "answers": ["b"], "answer": "b"}), 'both "answer" and "answers"'),
        (
            lines(
                {"prompt": "What is it?", "answer": "1"}, {"prompt": "what IS it?", "answer": "2"}
            ),
            "line 2: asks the same as line 1",
        ),
        (lines({"prompt": "a", "answer": "b", "famly": "x"}), "unknown key 'famly'"),
        (lines({"question": "a", "answer": "no mark"}), "no result after ####"),
        (lines({"prompt": "a", "answer": "\ud800"}), "surrogate"),
        (
            lines({"prompt": "a b", "answer": "1"}, {"prompt": "a  b", "answer": "2"}),
            "line 2: asks the same as line 1",
        ),
        (
            lines(
                {"id": "x", "prompt": "a", "answer": "1"}, {"id": "x", "prompt": "b", "answer": "2"}
            ),
            "line 2: has the id 'x' of line 1",
        ),
    ],
)
def test_a_bad_suite_is_refused_with_its_lines(text: str, says: str) -> None:
    with pytest.raises(BadSuite, match="here: ") as caught:
        parse_items(text, "here")
    assert says in str(caught.value)


def test_answers_that_the_grader_cannot_use_are_refused() -> None:
    text = lines({"prompt": "a", "answer": "7"}, {"prompt": "b", "answer": "seven"})
    with pytest.raises(BadSuite, match=r"here: line 2: .*no number"):
        parse_items(text, "here", "number")
    with pytest.raises(BadSuite, match="did you mean 'number'"):
        parse_items(text, "here", "nummer")


def test_a_missing_file_names_the_suite_and_the_path(tmp_path: Path) -> None:
    with pytest.raises(BadSuite, match=r"suite 'maths' .*no such file"):
        load_suite(
            tmp_path / "none.jsonl",
            name="maths",
            role=Role.REASONING,
            grader="number",
            form="plain",
            max_tokens=8,
        )


def test_the_texts_of_a_drift_suite_are_read_like_questions(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(lines({"text": "It rained."}, {"id": 7, "text": "It snowed."}))
    texts = load_texts(path, name="plain text")
    assert [item.prompt for item in texts.items] == ["It rained.", "It snowed."]
    assert texts.items[1].id == "7"
    path.write_text(lines({"text": "It rained."}, {"prompt": "Why?"}, {"text": "It  rained."}))
    with pytest.raises(BadSuite, match=r"line 2: .*'prompt'.*line 3: asks the same as line 1"):
        load_texts(path, name="plain text")


def test_the_form_follows_the_model_unless_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(lines({"prompt": "a", "answer": "b"}))

    def form(wanted: Literal["auto", "chat", "plain"], *, chat: bool) -> PromptForm:
        loaded = load_suite(
            path,
            name="s",
            role=Role.LOCALITY,
            grader="exact",
            form=wanted,
            max_tokens=1,
            chat=chat,
        )
        return loaded.form

    assert (form("auto", chat=True), form("auto", chat=False)) == (
        PromptForm.CHAT,
        PromptForm.PLAIN,
    )
    assert (form("plain", chat=True), form("chat", chat=False)) == (
        PromptForm.PLAIN,
        PromptForm.CHAT,
    )


ITEMS = (
    SuiteItem(id="1", prompt="a", answer="x"),
    SuiteItem(id="2", prompt="b", answer="y"),
)


@pytest.mark.parametrize(
    "changes",
    [
        {"grader": "number"},
        {"form": PromptForm.CHAT},
        {"max_tokens": 9},
        {"items": ITEMS[:1]},
        {"items": (ITEMS[0], ITEMS[1].model_copy(update={"answer": "z"}))},
    ],
)
def test_whatever_can_change_an_answer_changes_the_fingerprint(changes: dict[str, object]) -> None:
    assert suite(ITEMS, **changes).fingerprint != suite(ITEMS).fingerprint


def test_name_and_order_leave_the_fingerprint() -> None:
    assert suite(ITEMS[::-1], name="other").fingerprint == suite(ITEMS).fingerprint


@given(st.integers(0, 9), st.integers(0, 3))
def test_paraphrases_alternate_between_chat_and_plain(count: int, offset: int) -> None:
    forms = alternating(count, chat=True, offset=offset)
    assert len(forms) == count
    assert all(one != other for one, other in itertools.pairwise(forms))
    assert set(alternating(count, chat=False)) <= {PromptForm.PLAIN}


def test_a_chat_template_is_found_in_either_place(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("x")
    assert has_chat_template(tmp_path)


def test_a_question_that_training_uses_is_no_question_for_the_gate(tmp_path: Path) -> None:
    replay, skill = tmp_path / "replay.jsonl", tmp_path / "skill.jsonl"
    replay.write_text(lines({"prompt": "c", "paraphrases": ["say  b"], "answer": "x"}, ["no"], 7))
    skill.write_text(lines({"prompt": "d", "solution": "x"}) + "{broken\n")
    trained = trained_questions([replay, skill, tmp_path / "none.jsonl"])
    assert set(trained) == {"c", "say b", "d"}
    refuse_trained(suite(ITEMS), trained)
    asked = (*ITEMS, SuiteItem(id="3", prompt=" say b", answer="x"))
    with pytest.raises(BadSuite, match=r"suite 's': 1 of its .*replay.jsonl, line 1.*remove them"):
        refuse_trained(suite(asked), trained)
