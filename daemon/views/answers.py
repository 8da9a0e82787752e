"""What the models answer to a question now, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daemon.config.settings import Settings
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.protocol import Completion
from daemon.views.status import AnswerView
from policies.errors import ServerRefused, ServerUnreachable
from policies.records import Revision

ANSWER_TOKENS: Final = 48


async def answers(
    settings: Settings, question: str, previous: Revision | None
) -> tuple[AnswerView, ...]:
    """What base, the revision before and the alias answer; nothing where no server does."""
    asked = {"base": settings.model.name}
    if previous is not None and previous.number > 0:
        asked["previous"] = previous.served_name
    asked["live"] = settings.model.alias
    try:
        found = await answers_of(settings, [*asked.values()], question)
    except ServerUnreachable:
        return ()
    return tuple(
        AnswerView(who=who, model=model, answer=f"(refused: {answer})")
        if isinstance(answer, ServerRefused)
        else AnswerView(who=who, model=answered_by(answer), answer=answer.text.strip())
        for (who, model), answer in zip(asked.items(), found, strict=True)
    )


async def answers_of(
    settings: Settings, models: Sequence[str], question: str, max_tokens: int = ANSWER_TOKENS
) -> list[Completion | ServerRefused]:
    """Each model's greedy answer on the first replica; raises `ServerUnreachable`."""
    key = settings.server.user_key_file
    server = HttpServer(
        settings.server.urls[0],
        user_key=key.read_text().strip() if key else None,
        timeouts=Timeouts(request_s=settings.server.request_timeout_s),
    )
    found: list[Completion | ServerRefused] = []
    try:
        for model in models:
            try:
                found.append(await _answer(server, model, question, max_tokens))
            except ServerRefused as refused:
                found.append(refused)
    finally:
        await server.aclose()
    return found


def answered_by(answer: Completion) -> str:
    """The revision that has answered, also where the alias was asked."""
    return answer.headers.get("x-palorad-model", answer.model)


async def _answer(server: HttpServer, model: str, question: str, max_tokens: int) -> Completion:
    """As a chat message, or as plain text where the model has no chat template."""
    try:
        return await server.chat(model, question, max_tokens=max_tokens)
    except ServerRefused as refused:
        if refused.status != 400:
            raise
    (answer,) = await server.complete(model, (question,), max_tokens=max_tokens)
    return answer
