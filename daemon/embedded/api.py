"""The routes of the embedded server, as vLLM answers them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from adapters.errors import BrokenAdapter
from adapters.generate import Generation, Token
from daemon.embedded import protocol as shapes
from daemon.embedded.engine import BATCHES_AT_ONCE, Engine, Job
from daemon.serving.adapter_load import LORA_INFO
from policies.errors import PaloradError


class Refusal(Exception):
    """A clear no, with vLLM's status code and body."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str = "") -> None:
        self.status = status
        self.body = shapes.error(status, message, kind, param)
        super().__init__(message)


class Api:
    """The routes over one engine."""

    def __init__(self, model: Path, name: str, engine: Engine) -> None:
        self.model = model
        self.name = name
        self.engine = engine
        self.created = int(time.time())
        self.loading = asyncio.Lock()

    def models(self) -> shapes.Json:
        """The base and what is loaded beside it."""
        base, created = self.name, self.created
        length = self.engine.generator.context_length
        cards = [shapes.card(base, str(self.model), None, created, length)]
        cards += [
            shapes.card(a.name, a.path, base, created, None) for a in self.engine.adapters.values()
        ]
        return {"object": "list", "data": cards}

    def metrics(self) -> str:
        """What runs and waits, by adapter, as vLLM says it."""
        running, waiting = self.engine.at_work()
        labels = {
            "max_lora": str(BATCHES_AT_ONCE),
            "running_lora_adapters": ",".join(sorted(running)),
            "waiting_lora_adapters": ",".join(sorted(waiting)),
        }
        registry = CollectorRegistry()
        info = Gauge(LORA_INFO, "Running stats on lora requests.", [*labels], registry=registry)
        info.labels(**labels).set_to_current_time()
        return generate_latest(registry).decode()

    async def load(self, asked: shapes.LoadAsked) -> str:
        """Load an adapter under a name that is not taken."""
        name, path = asked.lora_name, asked.lora_path
        async with self.loading:
            if name == self.name or name in self.engine.adapters or asked.load_inplace:
                message = f"The lora adapter '{name}' has already been loaded."
                raise Refusal(400, message, kind="InvalidUserInput")
            if not (Path(path) / "adapter_config.json").is_file():
                raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
            try:
                await asyncio.to_thread(self.engine.load, name, path)
            except BrokenAdapter as broken:
                raise Refusal(500, f"Loading lora {name} failed: {broken}") from broken
        return f"Success: LoRA adapter '{name}' added successfully."

    async def unload(self, asked: shapes.UnloadAsked) -> str:
        """Forget an adapter; what was asked of it before is still answered."""
        async with self.loading:
            if asked.lora_name not in self.engine.adapters:
                raise Refusal(404, f"The lora adapter '{asked.lora_name}' cannot be found.")
            self.engine.unload(asked.lora_name)
        return f"Success: LoRA adapter '{asked.lora_name}' removed successfully."

    def named(self, model: str | None) -> tuple[str, str | None]:
        """The model's name and the adapter behind it (None: the base)."""
        if not model or model == self.name:
            return self.name, None
        if model not in self.engine.adapters:
            raise Refusal(404, f"The model `{model}` does not exist.", "model")
        return model, model

    def room(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens the answer may have."""
        length = self.engine.generator.context_length
        wanted = max(1, length - prompt_tokens) if max_tokens is None else max_tokens
        if prompt_tokens + wanted > length:
            raise Refusal(
                400,
                f"This model's maximum context length is {length} tokens. However, you requested "
                f"{wanted} output tokens and your prompt contains {prompt_tokens} input tokens, "
                f"for a total of {prompt_tokens + wanted} tokens.",
                "input_tokens",
            )
        return wanted

    async def complete(self, asked: shapes.CompletionAsked, request: Request) -> Response:
        """`POST /v1/completions`."""
        model, adapter = self.named(asked.model)
        generator = self.engine.generator
        ids = [generator.encode(p) if isinstance(p, str) else tuple(p) for p in asked.prompts]
        vocabulary = len(generator.tokenizer)
        if not ids or not all(ids):
            raise Refusal(400, "Either prompt or prompt_embeds must be provided and non-empty.")
        if any(not 0 <= i < vocabulary for prompt in ids for i in prompt):
            raise Refusal(400, "a token id is out of the vocabulary", "prompt")
        limit = 16 if asked.max_tokens is None else asked.max_tokens
        requests = [asked.request(p, self.room(len(p), limit), asked.logprobs) for p in ids]
        if asked.prompt_logprobs is not None:
            if asked.stream:
                raise Refusal(400, "prompt_logprobs are not given in a stream", "prompt_logprobs")
            requests = [replace(request, prompt_logprobs=True) for request in requests]
        jobs = self.engine.submit(adapter, requests, stream=bool(asked.stream))
        head = shapes.head("completion", model, int(time.time()))
        if asked.stream:
            return self.streamed(jobs, lambda i, t: self.text_chunk(head, asked, i, t))
        results = await self.finished(jobs, request)
        choices = [self.text_choice(asked, jobs[i], i, r) for i, r in enumerate(results)]
        return JSONResponse({**head, "choices": choices, "usage": shapes.usage(results)})

    async def chat(self, asked: shapes.ChatAsked, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        model, adapter = self.named(asked.model)
        if not self.engine.generator.tokenizer.chat_template:
            raise Refusal(400, "this model has no chat template; use /v1/completions", "messages")
        ids = self.engine.generator.encode_chat([m.plain() for m in asked.messages])
        limit = asked.max_completion_tokens or asked.max_tokens
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        requests = [asked.request(ids, self.room(len(ids), limit), logprobs)]
        jobs = self.engine.submit(adapter, requests, stream=bool(asked.stream))
        created = int(time.time())
        if asked.stream:
            head = shapes.head("chunk", model, created)
            opening = {"index": 0, "delta": {"role": "assistant", "content": ""}}
            first = {**head, "choices": [{**opening, "logprobs": None, "finish_reason": None}]}
            return self.streamed(jobs, lambda _, t: self.chat_chunk(head, asked, t), first)
        (result,) = await self.finished(jobs, request)
        choice: shapes.Json = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text},
            "logprobs": None,
            "finish_reason": result.finish_reason,
            "stop_reason": None,
        }
        if asked.logprobs:
            choice["logprobs"] = shapes.chat_logprobs(*self.readable(result))
        if asked.return_token_ids:
            choice["token_ids"] = list(result.token_ids)
        head = shapes.head("chat", model, created)
        return JSONResponse({**head, "choices": [choice], "usage": shapes.usage([result])})

    async def finished(self, jobs: list[Job], request: Request) -> list[Generation]:
        """All results; a client that goes away takes its requests with it."""
        results = asyncio.create_task(_all(jobs))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({results, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not results.done():
                raise Refusal(499, "the client has closed the connection")
            return results.result()
        finally:
            gone.cancel()
            results.cancel()
            self.engine.cancel(jobs)

    def streamed(
        self,
        jobs: list[Job],
        chunk: Callable[[int, Token], shapes.Json],
        first: shapes.Json | None = None,
    ) -> StreamingResponse:
        """Server-sent events, one for each token, of all `jobs` as they come."""

        async def events() -> AsyncIterator[str]:
            try:
                if first is not None:
                    yield _event(first)
                async for index, token in _merged(jobs):
                    yield _event(chunk(index, token))
                yield "data: [DONE]\n\n"
            except PaloradError as error:
                yield _event(shapes.error(500, str(error)))
            finally:
                self.engine.cancel(jobs)

        return StreamingResponse(events(), media_type="text/event-stream")

    def text_choice(
        self, asked: shapes.CompletionAsked, job: Job, index: int, result: Generation
    ) -> shapes.Json:
        """One choice of a whole completion."""
        choice: shapes.Json = {
            "index": index,
            "text": result.text,
            "logprobs": None,
            "finish_reason": result.finish_reason,
            "stop_reason": None,
        }
        if asked.logprobs is not None:
            choice["logprobs"] = shapes.text_logprobs(*self.readable(result))
        if asked.prompt_logprobs is not None:
            choice["prompt_logprobs"] = shapes.prompt_logprobs(result.taken)
        if asked.return_token_ids:
            choice["token_ids"] = list(result.token_ids)
            choice["prompt_token_ids"] = list(job.request.prompt_ids)
        return choice

    def text_chunk(
        self, head: shapes.Json, asked: shapes.CompletionAsked, index: int, token: Token
    ) -> shapes.Json:
        """One token of a streamed completion."""
        choice: shapes.Json = {
            "index": index,
            "text": token.text,
            "logprobs": None,
            "finish_reason": token.finish,
            "stop_reason": None,
        }
        if asked.logprobs is not None:
            choice["logprobs"] = shapes.text_logprobs(*self.readable_token(token))
        if asked.return_token_ids:
            choice["token_ids"] = [token.token_id]
        return {**head, "choices": [choice]}

    def chat_chunk(self, head: shapes.Json, asked: shapes.ChatAsked, token: Token) -> shapes.Json:
        """One token of a streamed chat answer."""
        choice: shapes.Json = {
            "index": 0,
            "delta": {"content": token.text},
            "logprobs": None,
            "finish_reason": token.finish,
        }
        if asked.logprobs:
            choice["logprobs"] = shapes.chat_logprobs(*self.readable_token(token))
        if asked.return_token_ids:
            choice["token_ids"] = [token.token_id]
        return {**head, "choices": [choice]}

    def readable(self, result: Generation) -> tuple[list[str], list[float], list[dict[str, float]]]:
        """Tokens, their log-probabilities and the best alternatives, as text."""
        decode = self.engine.generator.tokenizer.decode
        top = [{decode([i]): value for i, value in best} for best in result.top]
        return [decode([i]) for i in result.token_ids], list(result.logprobs), top

    def readable_token(self, token: Token) -> tuple[list[str], list[float], list[dict[str, float]]]:
        """The same for one token of a stream."""
        decode = self.engine.generator.tokenizer.decode
        top = {decode([i]): value for i, value in token.top}
        return [decode([token.token_id])], [token.logprob or 0.0], [top]


async def _all(jobs: list[Job]) -> list[Generation]:
    return [await job.result() for job in jobs]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _merged(jobs: list[Job]) -> AsyncIterator[tuple[int, Token]]:
    if len(jobs) == 1:
        async for token in jobs[0].tokens():
            yield 0, token
        return
    queue: asyncio.Queue[tuple[int, Token | Exception | None]] = asyncio.Queue()

    async def pump(index: int, job: Job) -> None:
        try:
            async for token in job.tokens():
                queue.put_nowait((index, token))
            queue.put_nowait((index, None))
        except PaloradError as error:
            queue.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(i, job)) for i, job in enumerate(jobs)]
    try:
        left = len(jobs)
        while left:
            index, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if news is None:
                left -= 1
            else:
                yield index, news
    finally:
        for task in pumps:
            task.cancel()


def _event(value: shapes.Json) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"
