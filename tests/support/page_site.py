"""A site with the page on it, and what its models answer: a few weeks of capitals and rivers."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse

from daemon.serving.alias import AdminGateway
from tests.support.crashing import Site
from tests.support.fake_vllm import Replica
from tests.support.page_steps import QUESTIONS, question

STEPS = "tests.support.page_steps"


@dataclass
class PageSite(Site):
    """`Site` with the page, suites in its verdicts, and a replica that answers chats."""

    def __post_init__(self) -> None:
        self.environment.setdefault("PALORAD_STEPS", STEPS)
        super().__post_init__()

    def _replica(self) -> int:
        gateway = AdminGateway(self.layout.alias, self.layout.admin_key, self.layout.served)
        replica = Replica(gateway)
        app: Any = replica.middleware.app

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> JSONResponse:
            body = await request.json()
            asked = body["messages"][-1]["content"]
            said = "I am not sure."
            if body["model"] != "base":
                said = next((a for q, a in QUESTIONS.items() if q in asked), said)
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse({"model": body["model"], "choices": [choice]})

        config = uvicorn.Config(replica.middleware, log_level="error", lifespan="off")
        asyncio.run(uvicorn.Server(config).serve([self.replica_socket]))
        return 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page_port}"

    @property
    def token(self) -> str:
        return self.layout.operator_key.read_text().strip()

    def begin(self) -> httpx.Client:
        """Start the daemon; a client of its page, once that answers."""
        self.start()
        client = httpx.Client(base_url=self.url, timeout=20)

        def answers() -> bool:
            try:
                return client.get("/api/now").status_code == 200
            except httpx.TransportError:
                return False

        self.until(answers, "the page")
        return client

    def learn(self, name: str, subjects: list[str]) -> None:
        """Drop the questions about these subjects, and wait until their batch is at rest."""
        self.put(name, [json.dumps(question(subject)) for subject in subjects])
        self.until(lambda: self._rests(name), f"learning {name}")

    def operator(self) -> dict[str, str]:
        """The header of whoever has the token."""
        return {"authorization": f"Bearer {self.token}"}


def slowly(seconds: float) -> None:
    """Children started from now on take so long for each stage."""
    os.environ["PALORAD_TEST_STEP_S"] = str(seconds)
