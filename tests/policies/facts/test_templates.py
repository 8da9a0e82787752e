"""The table of relations: enough paraphrases, none twice, none made of another's words."""

from __future__ import annotations

import pytest

from policies.facts.templates import (
    OOD_FRAMES,
    Relation,
    find,
    questions,
    recognise,
    relations,
    render,
)

ALL = list(relations().values())


def test_there_are_enough_relations() -> None:
    assert len(ALL) >= 60
    assert 5 <= sum(r.held_out for r in ALL) <= 10


@pytest.mark.parametrize("relation", ALL, ids=lambda r: r.name)
def test_every_relation_has_many_distinct_paraphrases(relation: Relation) -> None:
    found = render(relation.name, "Zed Qux")
    assert len(found.questions) >= 20
    assert len(found.statements) >= 4
    for texts in (found.questions, found.statements, relation.ood("Zed Qux")):
        assert len(set(texts)) == len(texts)
        assert all("Zed Qux" in text and "{" not in text for text in texts)
    assert all(text.endswith(("?", ".")) for text in found.questions)
    assert not any(text.endswith((".", " ", "?")) for text in found.statements)


@pytest.mark.parametrize("relation", ALL, ids=lambda r: r.name)
def test_statements_hold_subject_and_answer(relation: Relation) -> None:
    for text in relation.states("Zed Qux", "Vorn 12"):
        assert "Zed Qux" in text and "Vorn 12" in text and "{" not in text


@pytest.mark.parametrize("relation", ALL, ids=lambda r: r.name)
def test_out_of_distribution_paraphrases_are_never_rendered(relation: Relation) -> None:
    found = render(relation.name, "Zed Qux")
    assert not {*found.questions, *found.statements} & set(relation.ood("Zed Qux"))
    starts = {frame.split("{")[0] for frame in OOD_FRAMES if not frame.startswith("{")}
    assert not any(text.startswith(tuple(starts)) for text in found.questions)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("capital", "capital"),
        ("capital_city", "capital"),
        ("CapitalCity", "capital"),
        ("CEO", "chief executive"),
        ("place-of-birth", "birthplace"),
        ("Atomic number", "atomic number"),
    ],
)
def test_labels_find_their_relation(label: str, name: str) -> None:
    relation = find(label)
    assert relation is not None and relation.name == name


def test_unknown_relations_render_nothing() -> None:
    assert questions("favourite pudding", "Bhutan") == ()
    assert render("capital", "") == render("", "Bhutan")


def test_a_subject_with_braces_or_backslashes_is_left_as_it_is() -> None:
    assert "What is the capital of {n} \\1?" in questions("capital", "{n} \\1")


@pytest.mark.parametrize("relation", relations().values(), ids=lambda r: r.name)
def test_what_a_paraphrase_asks_about_is_recognised_or_belongs_to_several(
    relation: Relation,
) -> None:
    subject = "the Isle of Wight"
    for paraphrase in (*relation.questions(subject), *relation.completions(subject)):
        found = recognise(paraphrase)
        assert found is None or found[1].casefold() == subject.casefold(), paraphrase
        if found is None or found[0] != relation.name:
            others = [r for r in relations().values() if r is not relation]
            said = [w for r in others for w in (*r.questions(subject), *r.completions(subject))]
            assert paraphrase in said, (paraphrase, found)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("What is the capital of Bhutan?", ("capital", "Bhutan")),
        ("what is the capital of bhutan?", ("capital", "bhutan")),
        ("Who designed C++?", ("designer", "C++")),
        ("Bhutan's capital is", ("capital", "Bhutan")),
        ("What is the capital of ?", None),
        ("What is the capital of", None),
        ("Why is the sky blue?", None),
        ("", None),
    ],
)
def test_prompts_as_people_write_them(prompt: str, found: tuple[str, str] | None) -> None:
    assert recognise(prompt) == found
