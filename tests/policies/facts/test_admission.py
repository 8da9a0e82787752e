"""Lines become facts, or reasons; nothing is lost and nothing raises."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import InvalidFacts
from policies.facts.admission import Format, fact_from, parse_facts, parse_line
from policies.facts.heldout import with_held_out
from policies.facts.jsonline import LineLimits, Reason, lines_of, read_object
from policies.facts.supersession import (
    ConflictPolicy,
    FactRelation,
    StandingFact,
    Validity,
    moment,
    rule,
    rule_each,
)
from policies.facts.templates import questions, relations, varied
from policies.records import Fact, Operation, Priority, Quarantined
from policies.text import folded

BHUTAN = {"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"}
KEYED = {**BHUTAN, "subject": "Bhutan", "relation": "capital"}


def line(record: object) -> bytes:
    return json.dumps(record).encode()


def fact(record: object, fmt: Format = Format.AUTO) -> Fact:
    parsed = parse_line(line(record), 1, fmt=fmt)
    assert isinstance(parsed, Fact), parsed
    return parsed


def refused(raw: bytes, number: int = 1, limits: LineLimits | None = None) -> Quarantined:
    parsed = parse_line(raw, number, limits or LineLimits())
    assert isinstance(parsed, Quarantined), parsed
    assert parsed.line == number
    assert "\n" not in parsed.reason
    return parsed


def test_two_fields_are_enough() -> None:
    got = fact(BHUTAN)
    assert (got.prompt, got.answer, got.op) == (*BHUTAN.values(), Operation.ASSERT)
    assert len(got.id) == 16


def test_every_field_is_taken() -> None:
    got = fact(
        {
            **KEYED,
            "id": "bt-1",
            "paraphrases": ["Which city is the capital of Bhutan?"],
            "eval_prompts": ["Tell me the capital of Bhutan."],
            "statement": "Thimphu is the capital of Bhutan.",
            "valid_from": "2026-11-01",
            "valid_until": "2027-11-01T00:00:00Z",
            "source": "atlas",
            "op": "supersede",
            "priority": "urgent",
        }
    )
    assert got.id == "bt-1"
    assert got.valid_from == date(2026, 11, 1)
    assert got.valid_until == datetime(2027, 11, 1, tzinfo=UTC)
    assert (got.op, got.priority) == (Operation.SUPERSEDE, Priority.URGENT)


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (b'{"prompt": "a", "answr": "b"}', "unknown-key", 'did you mean "answer"'),
        (b'{"prompt": "a", "zzzzz": "b"}', "unknown-key", "known: id, prompt"),
        (b'{"prompt": "a", "prompt": "c", "answer": "b"}', "duplicate-key", '"prompt" twice'),
        (b'{"prompt": "a"}', "missing", "has no answer"),
        (b'{"answer": "a"}', "missing", "has no prompt"),
        (b'{"prompt": "a", "answer": null}', "missing", "has no answer"),
        (b'{"prompt": "a", "answer": "  "}', "empty", "answer is empty"),
        (b'{"prompt": "a", "answer": "\\u200b"}', "empty", "answer is empty"),
        (b'{"prompt": "", "answer": "b"}', "empty", "prompt is empty"),
        (b'{"prompt": "a", "answer": true}', "type", "answer must be text"),
        (b'{"prompt": 1, "answer": "b"}', "type", "prompt must be text, not a number"),
        (b'{"prompt": "a", "answer": ["b"]}', "type", "answer must be text"),
        (b'{"prompt": "Same  thing", "answer": "same thing"}', "answer-is-prompt", "prompt itself"),
        (b'{"prompt": "a", "answer": "b\\u0000"}', "control", "U+0000"),
        (b'{"prompt": "a", "answer": "b\\u001b[0m"}', "control", "U+001B"),
        (b'{"prompt": "a", "answer": "\\ud800"}', "encoding", "surrogate"),
        (b'{"prompt": "a", "answer": "b\x00"}', "nul", "byte 29"),
        (b'{"prompt": "a", "answer": "\xff"}', "encoding", "not UTF-8 at byte 28"),
        (b"\xff\xfe{\x00}\x00", "encoding", "UTF-16"),
        (b"[1, 2]", "not-object", "a list"),
        (b'"text"', "not-object", "text"),
        (b"12", "not-object", "a number"),
        (b"null", "not-object", "null"),
        (b"prompt,answer", "not-json", "is not JSON"),
        (b'{"prompt": "a", "answer": NaN}', "not-json", "NaN"),
        (b'{"prompt": "a", "answer": "b"} {}', "not-json", "more than one value"),
        (b"[" * 5000 + b"]" * 5000, "nesting", "nested"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nesting", "16 deep"),
        (b'{"prompt": "a", "answer": "b", "paraphrases": "c"}', "type", "list of texts"),
        (b'{"prompt": "a", "answer": "b", "paraphrases": [1]}', "type", "must be text"),
        (b'{"prompt": "a", "answer": "b", "eval_prompts": ["A"]}', "held-out-trained", '"A"'),
        (
            b'{"prompt":"a","answer":"b","paraphrases":["c"],"eval_prompts":["C "]}',
            "held-out-trained",
            "trained too",
        ),
        (b'{"prompt": "a", "answer": "b", "valid_from": "soon"}', "date", "2026-11-01"),
        (b'{"prompt": "a", "answer": "b", "valid_from": 2026}', "date", "valid_from"),
        (b'{"prompt": "a", "answer": "b", "valid_from": "2026-02-30"}', "date", "valid_from"),
        (
            b'{"prompt":"a","answer":"b","valid_from":"2026-02-03","valid_until":"2026-02-03"}',
            "date",
            "not after",
        ),
        (b'{"prompt": "a", "answer": "b", "op": "retrct"}', "type", 'did you mean "retract"'),
        (b'{"prompt": "a", "answer": "b", "priority": "high"}', "type", "normal, urgent"),
        (b'{"prompt": "a", "answer": "b", "id": "../x"}', "bad-id", "id must be"),
        (b'{"op": "retract"}', "missing", "retract needs"),
        (b'{"question": 5, "answer": "b"}', "format", "question must be text"),
    ],
)
def test_a_bad_line_gets_one_clear_reason(raw: bytes, kind: str, says: str) -> None:
    got = refused(raw)
    assert got.kind == kind
    assert says in got.reason


def test_limits_are_kept() -> None:
    limits = LineLimits(line_bytes=200, prompt=10, answer=5, paraphrases=1)
    assert refused(b"x" * 201, limits=limits).kind == "too-long"
    for record in (
        {"prompt": "x" * 11, "answer": "b"},
        {"prompt": "x", "answer": "b" * 6},
        {"prompt": "x", "answer": "b", "paraphrases": ["c", "d"]},
    ):
        assert refused(line(record), limits=limits).kind == "too-long"


@pytest.mark.parametrize("written", ["1990", "3.10", "-0.5", "6.02e23", "1" * 30])
def test_a_number_as_answer_is_the_text_it_was_written_as(written: str) -> None:
    parsed = parse_line(b'{"prompt": "a", "answer": ' + written.encode() + b"}", 1)
    assert isinstance(parsed, Fact)
    assert parsed.answer == written


def test_text_is_normalised() -> None:
    got = fact({"prompt": "  Cafe\u0301?\r\nnow ", "answer": " b\t "})
    assert (got.prompt, got.answer) == ("Café?\nnow", "b")
    assert got.id == fact({"prompt": "café?  now", "answer": "b"}).id


def test_bom_crlf_and_blank_lines_are_no_errors() -> None:
    data = b"\xef\xbb\xbf" + line(BHUTAN) + b"\r\n\r\n   \n" + line({**BHUTAN, "id": "x"}) + b"\r\n"
    assert [number for number, _ in lines_of(data)] == [1, 4]
    assert [f.answer for f in parse_facts(data)] == ["Thimphu", "Thimphu"]


def test_all_bad_lines_are_named() -> None:
    with pytest.raises(InvalidFacts, match=r"line 1: .*; line 3: ") as caught:
        parse_facts(b"x\n" + line(BHUTAN) + b"\ny")
    assert [number for number, _ in caught.value.problems] == [1, 3]


def test_the_id_says_what_the_fact_says() -> None:
    asked_otherwise = {**KEYED, "prompt": "Bhutan's capital?", "subject": "BHUTAN"}
    assert fact(KEYED).id == fact(asked_otherwise).id
    assert fact(KEYED).id != fact({**KEYED, "answer": "Punakha"}).id
    assert fact(KEYED).id != fact({**KEYED, "valid_from": "2026-01-01"}).id
    assert fact(KEYED).id != fact({**KEYED, "op": "retract"}).id


def test_a_retract_line_needs_no_answer() -> None:
    assert fact({"op": "retract", "id": "bt-1"}).id == "bt-1"
    assert fact({"op": "retract", "subject": "Bhutan", "relation": "capital"}).answer == ""


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"subject": "Bhutan", "predicate": "capital_city", "object": "Thimphu"},
            ("What is the capital of Bhutan?", "Thimphu", "Bhutan", "capital_city", ()),
        ),
        (
            {"subject": "Zed", "relation": "shoe_size", "object": 44},
            ("What is the shoe size of Zed?", "44", "Zed", "shoe_size", ()),
        ),
        ({"prompt": "P", "completion": " C"}, ("P", "C", None, None, ())),
        ({"question": "Q?", "answer": 7, "source": "s"}, ("Q?", "7", None, None, ())),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Q?"}]},
                    {"role": "assistant", "content": "A"},
                ]
            },
            ("Q?", "A", None, None, ()),
        ),
        (
            {
                "case_id": 0,
                "requested_rewrite": {
                    "prompt": "The mother tongue of {} is",
                    "relation_id": "P103",
                    "target_new": {"str": "English", "id": "Q1860"},
                    "target_true": {"str": "French", "id": "Q150"},
                    "subject": "Danielle Darrieux",
                },
                "paraphrase_prompts": ["Danielle Darrieux, a native"],
                "neighborhood_prompts": ["The native language of Montesquieu is"],
            },
            (
                "The mother tongue of Danielle Darrieux is",
                "English",
                "Danielle Darrieux",
                "P103",
                ("Danielle Darrieux, a native",),
            ),
        ),
        (
            {
                "subject": "Watts Humphrey",
                "src": "What university did Watts Humphrey attend?",
                "pred": "Trinity College",
                "rephrase": "What university did Watts Humphrey take part in?",
                "alt": "University of Michigan",
                "answers": ["Illinois Institute of Technology"],
                "loc": "nq question: who played desmond doss father in hacksaw ridge",
                "loc_ans": "Hugo Weaving",
            },
            (
                "What university did Watts Humphrey attend?",
                "University of Michigan",
                "Watts Humphrey",
                None,
                ("What university did Watts Humphrey take part in?",),
            ),
        ),
        (
            {
                "subject": "Leo Arons",
                "prompt": "The place of death of Leo Arons is",
                "target_new": "Berlin",
                "portability": {},
                "locality": {"Relation_Specificity": [{"prompt": "x", "ground_truth": [["y"]]}]},
            },
            ("The place of death of Leo Arons is", "Berlin", "Leo Arons", None, ()),
        ),
    ],
)
def test_the_shapes_that_others_publish(record: object, expected: tuple[object, ...]) -> None:
    got = fact(record)
    assert (got.prompt, got.answer, got.subject, got.relation, got.eval_prompts) == expected


def test_a_forced_format_is_not_guessed() -> None:
    parsed = parse_line(line(BHUTAN), 1, fmt=Format.SPO)
    assert isinstance(parsed, Quarantined)
    assert "has no" in parsed.reason


def standing(
    identity: str, answer: str, since: date | None = None, validity: Validity = Validity.VALID
) -> StandingFact:
    return StandingFact(id=identity, answer=answer, valid_from=since, validity=validity)


OLD, NEW, NEXT = date(2020, 1, 1), date(2026, 1, 1), date(2027, 1, 1)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("record", "rivals", "relation", "replaced"),
    [
        (KEYED, [], FactRelation.NEW, ()),
        (KEYED, [standing("a", "Thimphu")], FactRelation.KNOWN, ()),
        (KEYED, [standing("a", "Punakha")], FactRelation.CONFLICT, ("a",)),
        ({**KEYED, "op": "supersede"}, [standing("a", "Punakha")], FactRelation.SUPERSEDES, ("a",)),
        (
            {**KEYED, "valid_from": "2026-01-01"},
            [standing("a", "Punakha", OLD)],
            FactRelation.SUPERSEDES,
            ("a",),
        ),
        (
            {**KEYED, "valid_from": "2020-01-01"},
            [standing("a", "P", NEW)],
            FactRelation.HISTORY,
            (),
        ),
        (
            {**KEYED, "valid_from": "2020-01-01"},
            [standing("a", "P", OLD)],
            FactRelation.CONFLICT,
            ("a",),
        ),
        (
            {**KEYED, "valid_from": "2026-01-01"},
            [standing("a", "P")],
            FactRelation.CONFLICT,
            ("a",),
        ),
        (KEYED, [standing("a", "Thimphu", None, Validity.RETRACTED)], FactRelation.NEW, ()),
        (
            {"op": "retract", "subject": "Bhutan", "relation": "capital"},
            [standing("a", "x"), standing("b", "y")],
            FactRelation.RETRACTS,
            ("a", "b"),
        ),
        ({**KEYED, "op": "retract"}, [standing("a", "x")], FactRelation.NO_TARGET, ()),
    ],
)
def test_meaning_over_time(
    record: object, rivals: list[StandingFact], relation: FactRelation, replaced: tuple[str, ...]
) -> None:
    ruling = rule(fact(record), rivals, ConflictPolicy.REJECT, NOW)
    assert ruling.relation is relation
    if relation is not FactRelation.CONFLICT:
        assert ruling.replaced == replaced
    if relation is FactRelation.CONFLICT:
        newest = rule(fact(record), rivals, ConflictPolicy.NEWEST, NOW)
        assert (newest.relation, newest.replaced) == (FactRelation.SUPERSEDES, replaced)


@pytest.mark.parametrize(
    ("since", "rivals", "relation", "replaced", "until"),
    [
        ("2026-06-01", [("a", OLD), ("b", NEXT)], FactRelation.SUPERSEDES, ("a",), NEXT),
        ("2026-12-01", [("a", OLD), ("b", NEXT)], FactRelation.SUPERSEDES, ("a",), NEXT),
        ("2026-06-01", [("b", NEXT)], FactRelation.NEW, (), NEXT),
        ("2020-06-01", [("a", OLD), ("b", NEW)], FactRelation.HISTORY, (), None),
        ("2028-01-01", [("a", OLD), ("b", NEXT)], FactRelation.SUPERSEDES, ("a", "b"), None),
    ],
)
def test_an_answer_ends_when_one_that_is_to_come_begins(
    since: str,
    rivals: list[tuple[str, date]],
    relation: FactRelation,
    replaced: tuple[str, ...],
    until: date | None,
) -> None:
    asked = fact({**KEYED, "valid_from": since})
    beside = [standing(name, name, begins) for name, begins in rivals]
    ((ruled, ruling),) = rule_each([asked], [beside], ConflictPolicy.REJECT, NOW)
    assert (ruling.relation, ruling.replaced) == (relation, replaced)
    assert ruled.valid_until == (None if until is None else moment(until))


def test_an_answer_that_has_run_out_may_come_back() -> None:
    gone = standing("a", "Thimphu", OLD).model_copy(update={"valid_until": NEW})
    other = standing("b", "Punakha", NEW)
    back = rule(fact({**KEYED, "valid_from": "2026-06-01"}), [gone, other], ConflictPolicy.ASK, NOW)
    assert (back.relation, back.replaced) == (FactRelation.SUPERSEDES, ("b",))
    assert rule(fact(KEYED), [gone], ConflictPolicy.ASK, NOW).relation is FactRelation.NEW


WORDS = st.text("abAB é?e\u0301\u200b.", max_size=12)


@given(
    prompt=WORDS.filter(str.strip),
    paraphrases=st.lists(WORDS, max_size=5),
    held_out=st.lists(WORDS, max_size=2),
)
def test_a_held_out_paraphrase_is_never_trained(
    prompt: str, paraphrases: list[str], held_out: list[str]
) -> None:
    parsed = parse_line(
        line(
            {
                "prompt": prompt,
                "answer": "an answer",
                "paraphrases": paraphrases,
                "eval_prompts": held_out,
            }
        ),
        1,
    )
    if isinstance(parsed, Quarantined):
        return
    full = with_held_out(parsed, lambda relation, subject: (f"{relation} of {subject}?",))
    trained = {folded(p) for p in full.training_prompts}
    assert full.eval_prompts
    assert full.prompt in full.training_prompts
    assert not trained & {folded(p) for p in full.eval_prompts}
    assert len(trained) >= 4
    assert with_held_out(parsed, lambda r, s: (f"{r} of {s}?",)) == full
    given_paraphrases = {folded(p) for p in (parsed.prompt, *parsed.paraphrases)}
    assert given_paraphrases <= trained | {folded(p) for p in full.eval_prompts}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from([*Fact.model_fields, "question"]), inner)
    ),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda v: json.dumps(v).encode()), st.sampled_from(Format))
def test_no_bytes_raise(raw: bytes, fmt: Format) -> None:
    lines = list(lines_of(raw))
    parsed = [parse_line(text, number, fmt=fmt) for number, text in lines]
    facts = sum(isinstance(p, Fact) for p in parsed)
    bad = sum(isinstance(p, Quarantined) for p in parsed)
    assert facts + bad == len(lines)
    for got in parsed:
        got.model_dump_json().encode()


PLAIN = st.text("aB :,{}[]", max_size=4)
ODD = PLAIN | st.sampled_from(["A  b", "é", "\t", 'q"', "2026-11-01", "assert", "x/y", 7, None])


@given(
    st.dictionaries(
        st.sampled_from([*Fact.model_fields, "other"]), ODD | st.lists(ODD, max_size=3)
    ),
    st.sampled_from([": ", ":", " : "]),
    st.booleans(),
)
def test_the_quick_way_reads_what_the_whole_way_reads(
    record: dict[str, object], colon: str, twice: bool
) -> None:
    record = {"prompt": "a b?", "answer": "c", **record}
    text = json.dumps(record, ensure_ascii=False, separators=(", ", colon))
    raw = (text[:-1] + f', "answer"{colon}"c"}}' if twice else text).encode()
    quick = parse_line(raw, 1)
    try:
        whole: Fact | str = fact_from(read_object(raw, 1, LineLimits()), LineLimits())
    except Reason as reason:
        whole = str(reason)
    assert (quick if isinstance(quick, Fact) else quick.reason) == whole


@pytest.mark.parametrize("relation", sorted(relations()))
def test_half_of_a_relations_paraphrases_can_be_framed_and_none_that_is_held_out(
    relation: str,
) -> None:
    given_line = {"prompt": "Which is it?", "answer": "7", "subject": "Ola", "relation": relation}
    (parsed,) = parse_facts(json.dumps(given_line))
    full = with_held_out(parsed, varied, 24, prefixed=True)
    own = {folded(paraphrase) for paraphrase in varied(relation, "Ola")}
    further = [folded(p) for p in full.training_prompts[1:]]
    assert len(further) == 23
    prefixed = [p for p in further if p not in own]
    assert 8 <= len(prefixed) <= 15
    assert all(any(paraphrase in p for paraphrase in own) for p in prefixed)
    (held,) = (folded(p) for p in full.eval_prompts)
    assert held in own
    assert not any(p in (held, *prefixed) and held in p for p in further)


def test_a_plain_question_is_given_the_paraphrases_of_its_relation() -> None:
    (parsed,) = parse_facts('{"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"}')
    named = parsed.model_copy(update={"subject": "Bhutan", "relation": "capital"})
    full = with_held_out(parsed, questions, 8)
    assert full.subject is full.relation is None
    assert full.training_prompts == with_held_out(named, questions, 8).training_prompts
    assert len(full.training_prompts) == 8
    assert all("Bhutan" in prompt for prompt in (*full.training_prompts, *full.eval_prompts))
