"""[notify]: what a receiver gets of trouble that begins, lasts and ends, when, and how signed."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from unittest import mock

import httpx

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.notifying import Notifications
from daemon.loop.preflight import prepare_state
from daemon.notification.delivery import Delivery
from tests.config.effects import Effect
from tests.support.world import START

STEP_S, STEPS = 100.0, 70


def told(settings: Settings, root: Path) -> object:
    """Two hours: the disk is full in the first 5000 s, and the receiver fails in the first 2000."""
    prepare_state(settings)
    seconds, posts = [0.0], []

    async def answer(request: httpx.Request) -> httpx.Response:
        said = json.loads(request.content)
        signed = request.headers["webhook-signature"][:12]
        posts.append((seconds[0], str(request.url), said["type"], signed))
        await asyncio.sleep(0.02)
        return httpx.Response(500 if seconds[0] < 2000 else 204)

    def opened(_: Delivery) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    async def run() -> object:
        def lines() -> list[str]:
            return ["the disk is full"] if seconds[0] < 5000 else []

        notifications = Notifications(
            ledger,
            settings,
            lines=lines,
            now=lambda: START + timedelta(seconds=seconds[0]),
            clock=lambda: seconds[0],
        )
        for _ in range(STEPS):
            if settings.notify.webhook:
                await notifications.look()
            await notifications.deliver()
            seconds[0] += STEP_S
        return posts, notifications.trouble, ledger.outbox.counts()

    with (
        Ledger.open(settings.layout.ledger) as ledger,
        mock.patch.object(Delivery, "_open", opened),
        # The ids of events, and so the signatures, differ by their salts.
        mock.patch("daemon.ledger.database.secrets.token_hex", return_value="00"),
    ):
        return asyncio.run(run())


def _key(root: Path, text: str) -> Path:
    path = root / text
    path.write_text(f"a-key-of-many-letters-{text}")
    return path


GIVEN = {"notify.webhook": "http://example.org/hook", "notify.key_file": lambda r: _key(r, "one")}
WITHOUT = {name: value for name, value in GIVEN.items() if name != "notify.webhook"}
EFFECTS: dict[str, Effect] = {
    "notify.webhook": Effect(told, "http://example.org/other", WITHOUT),
    "notify.key_file": Effect(told, lambda root: _key(root, "two"), GIVEN),
    "notify.events": Effect(told, ("trouble.ended",), GIVEN),
    "notify.timeout_s": Effect(told, 0.001, GIVEN),
    "notify.dead_after_s": Effect(told, 500.0, GIVEN),
    "notify.trouble_after_s": Effect(told, 1000.0, GIVEN),
    "notify.remind_s": Effect(told, 1500.0, GIVEN),
}
