"""Whether the alias itself answers from a revision on one replica."""

from __future__ import annotations

import asyncio
from typing import Final

from daemon.serving import identity
from daemon.serving.client import HttpServer
from daemon.serving.common import Common
from daemon.serving.pointer import Pointer
from daemon.serving.protocol import Completion

# A shared file system may show the pointer late on another host.
POINTER_S: Final = 5.0
AGAIN_S: Final = 0.1


async def problem(server: HttpServer, common: Common, goal: Pointer) -> str | None:
    """What the alias answers otherwise than `goal` would; None where it answers from it.

    One that still answers from another revision is asked again for `POINTER_S` seconds. Raises as
    the server's methods do, `ServerUnusable` where the revision's identity cannot be read.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + POINTER_S
    while True:
        answers, reason = await _asked(server, common, goal)
        said = answers[0].headers.get("x-palorad-revision") if answers else None
        if said == str(goal.revision):
            return reason
        if loop.time() >= until:
            return f"the alias answered from revision {said}, not {goal.revision}"
        await asyncio.sleep(AGAIN_S)


async def _asked(
    server: HttpServer, common: Common, goal: Pointer
) -> tuple[tuple[Completion, ...], str | None]:
    """The alias's answers, and what is wrong with them."""
    if goal.revision == 0:
        return await server.complete(common.alias, ["1"], max_tokens=1), None
    known = await asyncio.to_thread(identity.read, common.served / goal.model)
    answers = await server.identify(
        *(common.alias, known.prompts, known.max_tokens),
        salt=common.nonce(),
        limit_s=common.verify_timeout_s,
    )
    return answers, identity.mismatch(known, answers, common.tolerance)
