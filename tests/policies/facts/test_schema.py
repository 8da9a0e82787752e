"""The published schema and the reader agree; what is converted reads as the same fact."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.intake.validating import convert_file, native_line, parsed_lines, validate_file
from policies.facts.admission import Format, parse_line
from policies.facts.schema import line_schema
from policies.records import Fact, Quarantined

VALIDATOR = jsonschema.Draft202012Validator(line_schema())
FOLDER = Path(__file__).parents[2] / "intake" / "nasty"
NASTY = sorted(p.with_suffix("") for p in FOLDER.glob("*.expected"))

TEXT = st.text(max_size=12) | st.none() | st.integers() | st.just("2026-11-01")
FIELDS = {
    "prompt": TEXT,
    "answer": TEXT,
    "id": TEXT,
    "subject": TEXT,
    "relation": TEXT,
    "op": st.sampled_from(["assert", "supersede", "retract", "x", None]),
    "priority": st.sampled_from(["normal", "urgent", "x", None]),
    "paraphrases": st.lists(TEXT, max_size=2) | TEXT,
    "eval_prompts": st.lists(TEXT, max_size=2),
    "valid_from": TEXT,
    "unknown": TEXT,
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_every_line_that_is_read_fits_the_schema(record: dict[str, object]) -> None:
    parsed = parse_line(json.dumps(record).encode(), 1, fmt=Format.NATIVE)
    if isinstance(parsed, Fact):
        VALIDATOR.validate(record)
        again = parse_line(native_line(parsed).encode(), 1)
        assert again == parsed


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"prompt": "a"},
        {"prompt": "a", "answer": True},
        {"prompt": " ", "answer": "b"},
        {"prompt": "a", "answer": "b", "anwser": "c"},
        {"prompt": "a", "answer": "b", "op": "delete"},
        {"prompt": "a", "answer": "b", "valid_from": "soon"},
        {"prompt": "a", "answer": "b", "paraphrases": "c"},
        {"op": "retract"},
    ],
)
def test_what_the_schema_refuses_is_not_read(record: dict[str, object]) -> None:
    assert not VALIDATOR.is_valid(record)
    assert isinstance(parse_line(json.dumps(record).encode(), 1), Quarantined)


@pytest.mark.parametrize("path", NASTY, ids=lambda p: p.name)
def test_validation_offline_says_what_intake_would(path: Path) -> None:
    wanted = json.loads(path.with_name(path.name + ".expected").read_text())
    if "error" in wanted:
        return
    later = {"no-target", "conflict"}  # only beside what the ledger holds
    bad = [b for b in wanted["bad_lines"] if b["kind"] not in later]
    report = validate_file(path)
    assert [{"line": p.line, "kind": p.kind} for p in report.problems] == bad
    assert report.accepted == wanted["accepted"] + len(wanted["bad_lines"]) - len(bad)


def test_a_converted_file_reads_the_same(tmp_path: Path) -> None:
    for path in NASTY:
        lines = [line for line in convert_file(path) if isinstance(line, str)]
        copy = tmp_path / "copy.jsonl"
        copy.write_text("\n".join(lines), encoding="utf-8")
        facts = [f for f in parsed_lines(path) if isinstance(f, Fact)]
        assert list(parsed_lines(copy)) == facts
