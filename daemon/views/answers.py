"""What the models answer to a question now, side by side."""

from __future__ import annotations

from typing import Final

from daemon.config.settings import Settings
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.protocol import Completion
from daemon.views.status import AnswerView
from policies.errors import ServerRefused, ServerUnreachable
from policies.records import Revision

ANSWER_TOKENS: Final = 48


async def answers(
    settings: Settings, prompt: str, previous: Revision | None
) -> tuple[AnswerView, ...]:
    """What base, the revision before and the live one answer to a prompt on the first replica; none
    where it cannot be reached.
    """
    key = settings.server.user_key_file
    server = HttpServer(
        settings.server.urls[0],
        user_key=key.read_text().strip() if key else None,
        timeouts=Timeouts(request_s=settings.server.request_timeout_s),
    )
    asked = {"base": settings.model.name, "live": settings.model.alias}
    if previous is not None and previous.number > 0:
        asked = {"base": asked["base"], "previous": previous.served_name, "live": asked["live"]}
    said: list[AnswerView] = []
    try:
        for who, model in asked.items():
            try:
                answer = await _answer(server, model, prompt)
            except ServerRefused as refused:
                said.append(AnswerView(who=who, model=model, answer=f"(refused: {refused})"))
            else:
                by = answer.headers.get("x-palorad-model", answer.model)
                said.append(AnswerView(who=who, model=by, answer=answer.text.strip()))
    except ServerUnreachable:
        return ()
    finally:
        await server.aclose()
    return tuple(said)


async def _answer(server: HttpServer, model: str, prompt: str) -> Completion:
    """As a chat message, or as plain text where the model has no chat template."""
    try:
        return await server.chat(model, prompt, max_tokens=ANSWER_TOKENS)
    except ServerRefused as refused:
        if refused.status != 400:
            raise
    (answer,) = await server.complete(model, (prompt,), max_tokens=ANSWER_TOKENS)
    return answer
