"""The JSON shapes of vLLM's HTTP API that the embedded server speaks."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.generate import Generation, Request, TokenScore

Json = dict[str, Any]
# Of a list only the first thing that is wrong is told: all of it would fill the memory.
Ids = Annotated[list[int], Field(fail_fast=True)]
Few = Field(fail_fast=True, max_length=16)
Many = Field(fail_fast=True, max_length=1024)


class _Asked(BaseModel):
    """What both kinds of generation take; other fields are ignored, as vLLM ignores them."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    stop: str | Annotated[list[str], Few] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: Literal[1] | None = None
    stream: bool | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in stop if s)

    def request(self, ids: Sequence[int], max_tokens: int, logprobs: int | None) -> Request:
        """One sequence for the engine; vLLM's default temperature is 1."""
        return Request(
            tuple(ids),
            max_tokens,
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            self.stops,
            self.seed,
            bool(self.ignore_eos),
            logprobs,
        )


class CompletionAsked(_Asked):
    """The body of `POST /v1/completions`."""

    prompt: str | Ids | Annotated[list[str], Many] | Annotated[list[Ids], Many]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=1)
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One text or list of token ids for every choice."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(i) for i in self.prompt if isinstance(i, int)]]
        return [p for p in self.prompt if isinstance(p, str | list)]


class Part(BaseModel):
    """One piece of a message given as a list."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Many]

    def plain(self) -> dict[str, str]:
        """What chat templates take."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatAsked(_Asked):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1024, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class LoadAsked(BaseModel):
    """The body of `POST /v1/load_lora_adapter`."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAsked(BaseModel):
    """The body of `POST /v1/unload_lora_adapter`."""

    lora_name: str


def error(status: int, message: str, kind: str = "", param: str | None = None) -> Json:
    """vLLM's error body."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
    kind = kind or kinds.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def card(name: str, root: str, parent: str | None, created: int, length: int | None) -> Json:
    """One entry of `/v1/models`."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "palorad",
        "root": root,
        "parent": parent,
        "max_model_len": length,
        "permission": [],
    }


def head(kind: Literal["completion", "chat", "chunk"], model: str, created: int) -> Json:
    """What every answer or chunk of one request begins with."""
    prefix = "cmpl" if kind == "completion" else "chatcmpl"
    objects = {
        "completion": "text_completion",
        "chat": "chat.completion",
        "chunk": "chat.completion.chunk",
    }
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": objects[kind],
        "created": created,
        "model": model,
    }


def usage(results: Sequence[Generation]) -> Json:
    """How many tokens were read and written."""
    asked = sum(r.prompt_tokens for r in results)
    answered = sum(len(r.token_ids) for r in results)
    return {
        "prompt_tokens": asked,
        "total_tokens": asked + answered,
        "completion_tokens": answered,
    }


def text_logprobs(
    tokens: Sequence[str],
    logprobs: Sequence[float],
    top: Sequence[Mapping[str, float]],
    start: int = 0,
) -> Json:
    """The `logprobs` of a plain completion; `start` is where its text begins."""
    offsets, at = [], start
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": list(logprobs),
        "tokens": list(tokens),
        "top_logprobs": [dict(t) for t in top],
    }


def prompt_logprobs(taken: Sequence[TokenScore]) -> list[Json | None]:
    """The prompt's own tokens as vLLM gives them: none for the first, which nothing precedes.

    vLLM adds the likeliest token at each place where it is asked for one; here it is left out.
    """
    return [None, *({str(t.token_id): {"logprob": t.logprob, "rank": t.rank}} for t in taken)]


def chat_logprobs(
    tokens: Sequence[str], logprobs: Sequence[float], top: Sequence[Mapping[str, float]]
) -> Json:
    """The `logprobs` of a chat answer."""

    def entry(token: str, value: float) -> Json:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    return {
        "content": [
            {**entry(token, value), "top_logprobs": [entry(t, v) for t, v in best.items()]}
            for token, value, best in zip(tokens, logprobs, top, strict=True)
        ]
    }
