"""SuiteQuestions come back in order, bounded, retried, and never invented."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from daemon.gate.asking import Asker, ModelNotServed, Query, QueryResult
from daemon.gate.suites import PromptForm
from daemon.serving.protocol import ServerRefused, ServerUnreachable
from tests.support.scripted import Fault, ScriptedServer, no_fault, unreachable

PLAIN = [Query(f"p{n}", f"plain {n}", PromptForm.PLAIN) for n in range(37)]
CHAT = [Query(f"c{n}", f"chat {n}", PromptForm.CHAT) for n in range(23)]


def server(fault: Fault = no_fault) -> ScriptedServer:
    return ScriptedServer({"m": lambda prompt: prompt.upper()}, fault)


def ask(
    of: ScriptedServer, questions: Sequence[Query], *, model: str = "m", concurrency: int = 16
) -> tuple[tuple[QueryResult, ...], list[float]]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    asker = Asker(of, concurrency, sleep=sleep)
    return asyncio.run(asker.ask(model, questions, max_tokens=4)), pauses


def test_replies_keep_the_order_and_the_form() -> None:
    mixed = [q for pair in zip(PLAIN, CHAT, strict=False) for q in pair]
    of = server()
    replies, _ = ask(of, mixed)
    assert [r.text for r in replies] == [q.prompt.upper() for q in mixed]
    assert all(of.forms[q.prompt] == q.form for q in mixed)


@pytest.mark.parametrize("concurrency", [1, 2, 5, 16])
def test_no_more_than_allowed_are_under_way(concurrency: int) -> None:
    of = server()
    replies, _ = ask(of, [*PLAIN, *CHAT], concurrency=concurrency)
    assert len(replies) == 60
    assert of.busiest <= concurrency


def test_a_passing_fault_is_retried_with_longer_pauses() -> None:
    def twice(_model: str, prompt: str, time: int) -> Exception | None:
        return ServerUnreachable("lost") if prompt == "chat 3" and time < 3 else None

    of = server(twice)
    replies, pauses = ask(of, CHAT)
    assert replies[3].text == "CHAT 3"
    assert pauses == [1.0, 4.0]


def test_one_refused_prompt_leaves_its_neighbours() -> None:
    def too_long(_model: str, prompt: str, _time: int) -> Exception | None:
        return ServerRefused("too long", status=400) if prompt == "plain 9" else None

    replies, pauses = ask(server(too_long), PLAIN)
    assert [r.id for r in replies if r.text is None] == ["p9"]
    assert replies[9].problem == "too long"
    assert pauses == []


def test_a_living_server_that_answers_nothing_leaves_every_question_open() -> None:
    replies, _ = ask(server(unreachable), PLAIN)
    assert all(r.text is None and r.problem for r in replies)


def test_a_dead_server_is_an_error_and_no_answer() -> None:
    of = server(unreachable)
    of.alive = False
    with pytest.raises(ServerUnreachable, match="no longer answers"):
        ask(of, PLAIN)


def test_a_model_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModelNotServed, match="does not exist"):
        ask(server(), PLAIN, model="other")
