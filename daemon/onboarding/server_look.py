"""What a running server says of itself, and what to change so that palorad can switch adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx

from daemon.serving.vllm_version import VLLM_AT_LEAST, VLLM_TESTED, known_version
from policies.errors import ServerUnreachable
from policies.records import Record

LOOK_S: Final = 5.0
_REFUSED: Final = (401, 403)


class ServerLook(Record):
    """A server: what it serves, and how much of what palorad needs it has.

    `version` is vLLM's, None for another server; `rank` the largest adapter, None where it does not
    tell. `gateway` says whether palorad's middleware is in front of it.
    """

    url: str
    version: str | None
    model: str
    root: str
    gateway: bool
    runtime_lora: bool
    rank: int | None

    def lines(self) -> tuple[str, ...]:
        """The same for people."""
        other = "palorad's own server" if self.gateway else "no vLLM"
        kind = f"vLLM {self.version}" if self.version else other
        rank = "it does not tell" if self.rank is None else str(self.rank)
        return (
            f"{kind}, serves {self.model!r}" + (f" from {self.root}" if self.root else ""),
            f"adapters at run time: {'yes' if self.runtime_lora else 'no'}; largest rank: {rank}; "
            f"palorad's middleware: {'there' if self.gateway else 'missing'}",
        )

    def changes(self, rank: int) -> Iterator[str]:
        """What to change at the server, for adapters of this rank."""
        known = known_version(self.version or "")
        if self.version is None and not self.gateway:
            yield f"this is no vLLM (no /version): serve the model with vLLM {_dotted(VLLM_TESTED)}"
        elif known is not None and known < VLLM_AT_LEAST:
            yield (
                f"before vLLM {_dotted(VLLM_AT_LEAST)} requests under way can be answered by "
                f"another adapter: install {_dotted(VLLM_TESTED)}"
            )
        if not self.runtime_lora:
            yield "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
        if self.rank is None and not self.gateway:
            yield f"start it with --max-lora-rank {rank}, or set train.rank_budget to what it has"
        elif self.rank is not None and self.rank < rank:
            yield (
                f"its --max-lora-rank is {self.rank}: larger adapters keep more; start it with "
                f"--max-lora-rank {rank}, then set server.max_lora_rank and train.rank_budget"
            )
        if not self.gateway:
            yield (
                "start it with palorad's middleware, without which no alias moves: "
                "--middleware palorad_alias.AliasMiddleware --api-server-count 1, and the "
                "variables in docs/serving.md#vllm-attached"
            )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def look(url: str, key: str | None, client: httpx.Client | None = None) -> ServerLook:
    """The server behind a URL; raises `ServerUnreachable` where none answers or lists no model."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with client or httpx.Client(timeout=LOOK_S, trust_env=False) as asked:
        try:
            asked.get(f"{url}/health").raise_for_status()
            listed = asked.get(f"{url}/v1/models", headers=headers)
            base = _base(listed)
            tried = asked.post(f"{url}/v1/load_lora_adapter", headers=headers, json={})
            ready = asked.get(f"{url}/palorad/ready").status_code
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"{url}: no server answers ({error or type(error).__name__}); start it, or correct "
                "--server"
            ) from None
        if base is None:
            advice = (
                "; name the file with its key by --key" if listed.status_code in _REFUSED else ""
            )
            raise ServerUnreachable(f"{url}: it lists no model ({listed.status_code}){advice}")
        version = _json(asked, f"{url}/version").get("version")
        config = _json(asked, f"{url}/server_info?config_format=json").get("vllm_config")
    return ServerLook(
        url=url,
        version=str(version) if version else None,
        model=str(base["id"]),
        root=str(base.get("root") or ""),
        gateway=ready in (200, 503),
        runtime_lora=tried.status_code != httpx.codes.NOT_FOUND,
        rank=_rank(config),
    )


def _base(listed: httpx.Response) -> Mapping[str, Any] | None:
    """The card of the model that is no adapter."""
    try:
        cards: list[Mapping[str, Any]] = listed.json()["data"]
        return next(card for card in cards if not card.get("parent") and card["id"])
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _json(client: httpx.Client, url: str) -> Mapping[str, Any]:
    try:
        answer = client.get(url)
        found = answer.json() if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rank(config: object) -> int | None:
    lora = config.get("lora_config") if isinstance(config, dict) else None
    rank = lora.get("max_lora_rank") if isinstance(lora, dict) else None
    return rank if isinstance(rank, int) else None
