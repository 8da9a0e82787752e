"""A task of lm-evaluation-harness is asked and graded like any other suite."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.gate.lm_tasks import TaskGrader, load_task
from daemon.gate.suites import BadSuite, PromptForm, Suite
from policies.gate.records import Role

TASK = """
task: palorad_sums
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
output_type: {kind}
training_split: train
fewshot_split: train
test_split: test
num_fewshot: 2
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: {target}
{choices}
generation_kwargs: {{until: ["Question:"], do_sample: false}}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
filter_list:
  - name: strict
    filter: [{{function: regex, regex_pattern: "#### ([0-9]+)"}}, {{function: take_first}}]
  - name: loose
    filter:
      - {{function: regex, regex_pattern: "([0-9]+)", group_select: -1}}
      - {{function: take_first}}
"""

HERE = importlib.util.find_spec("lm_eval") is not None


def harness(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the real harness: it takes a while to import and warns of its own accord."""
    for mark in (
        pytest.mark.skipif(not HERE, reason="needs palorad[lm-eval]"),
        pytest.mark.timeout(300),
        pytest.mark.filterwarnings("default"),
    ):
        test = mark(test)
    return test


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", os.fspath(tmp_path / "cache"))
    for split, numbers in (("train", range(5)), ("test", range(10, 16))):
        rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in numbers]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path)
    return tmp_path


def write(folder: Path, kind: str = "generate_until", metric: str = "exact_match") -> None:
    choosing = kind == "multiple_choice"
    text = TASK.format(
        train=folder / "train.jsonl",
        test=folder / "test.jsonl",
        kind=kind,
        metric=metric,
        target="0" if choosing else '"{{answer}}"',
        choices='doc_to_choice: ["a", "b"]' if choosing else "",
    )
    (folder / "sums.yaml").write_text(text)


def load(
    folder: Path | None, task: str = "palorad_sums", filter_name: str | None = None
) -> tuple[Suite, TaskGrader]:
    return load_task(
        task,
        name="sums",
        role=Role.REASONING,
        form=PromptForm.PLAIN,
        max_tokens=16,
        filter_name=filter_name,
        folder=folder,
    )


@harness
def test_questions_come_with_their_examples_and_are_graded_by_the_task(folder: Path) -> None:
    suite, grade = load(folder)
    item = suite.items[0]
    assert len(suite.items) == 6
    assert item.prompt.count("Question:") == 3
    assert item.prompt.endswith("Question: 10 + 1?\nAnswer:")
    assert item.answer == "11"
    assert grade(item, " #### 11\nQuestion: next #### 99")
    assert not grade(item, " 11")
    assert not grade(item, "")
    assert not grade(suite.items[1], "#### 11")


@harness
def test_the_filter_is_part_of_what_is_measured(folder: Path) -> None:
    strict, _ = load(folder)
    loose, grade = load(folder, filter_name="loose")
    assert grade(loose.items[0], "it is 11")
    assert load(folder)[0].fingerprint == strict.fingerprint != loose.fingerprint
    with pytest.raises(BadSuite, match=r"no filter 'lose' \(known: strict, loose\)"):
        load(folder, filter_name="lose")


@harness
def test_what_cannot_be_asked_freely_or_found_is_refused(folder: Path) -> None:
    with pytest.raises(BadSuite, match="cannot be loaded"):
        load(folder, task="palorad_sumz")
    write(folder, kind="multiple_choice", metric="acc")
    with pytest.raises(BadSuite, match="free generation only"):
        load(folder)


@pytest.mark.skipif(HERE, reason="it is installed")
def test_without_the_harness_the_error_says_what_to_install() -> None:
    with pytest.raises(BadSuite, match=r"pip install 'palorad\[lm-eval\]'"):
        load(None)
