"""Measured answers survive a crash and are never asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.gate.answer_store import AnswerStore, DamagedAnswers
from policies.gate.records import ItemResult

SHA, SUITE = "a" * 64, "0123456789abcdef"


def result(name: str, *, correct: bool = True, output: str = "x") -> ItemResult:
    return ItemResult(id=name, correct=correct, output=output)


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    assert store.read(SHA, SUITE) == {}
    store.append(SHA, SUITE, [result("1"), result("2", correct=False, output="é\n\u2028")])
    store.append(SHA, SUITE, [])
    store.append(SHA, SUITE, [result("3")])
    assert list(AnswerStore(tmp_path).read(SHA, SUITE)) == ["1", "2", "3"]
    assert store.read(SHA, SUITE)["2"].output == "é\n\u2028"


def test_other_models_and_other_suites_have_other_files(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.append(SHA, SUITE, [result("1")])
    assert store.read("b" * 64, SUITE) == {}
    assert store.read(SHA, "f" * 16) == {}


def test_the_first_answer_to_an_item_counts(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.append(SHA, SUITE, [result("1", correct=False)])
    store.append(SHA, SUITE, [result("1", correct=True)])
    assert not store.read(SHA, SUITE)["1"].correct


@given(cut=st.integers(0, 400))
@settings(max_examples=60)
def test_a_torn_end_loses_at_most_the_lines_it_tore(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    store = AnswerStore(tmp_path_factory.mktemp("m"))
    store.append(SHA, SUITE, [result(str(n), output="naïve" * n) for n in range(5)])
    path = store.path(SHA, SUITE)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    kept = store.read(SHA, SUITE)
    assert len(kept) == data.count(b"\n")
    store.append(SHA, SUITE, [result("new")])
    assert list(store.read(SHA, SUITE)) == [*kept, "new"]


def test_a_damaged_line_within_the_file_is_told(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.append(SHA, SUITE, [result("1")])
    path = store.path(SHA, SUITE)
    path.write_bytes(b"rubbish\n" + path.read_bytes())
    with pytest.raises(DamagedAnswers, match="line 1"):
        store.read(SHA, SUITE)


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", "short"])
def test_only_hashes_name_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="content hash"):
        AnswerStore(tmp_path).path(name, SUITE)
