"""The config.toml that `palorad init` writes: what was found and chosen, each with its reason."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

from policies.gate.figures import percent, pp
from policies.gate.records import Role
from policies.onboarding.sizing import SuiteSight
from policies.records import Record
from policies.text import counted

SERVER_PORT, PAGE_PORT = 8421, 8710
_TRIED = 64


class ServerChoice(Record):
    """Who answers: `attach` for a server that the user runs; `slow` where a CPU computes."""

    kind: str
    attach: bool
    url: str
    name: str
    rank: int
    executable: str = ""
    key_file: Path | None = None
    slow: bool = False


class SuiteChoice(Record):
    """One suite of the gate: how it is asked and graded, and what it sees."""

    name: str
    role: str
    path: str
    grader: str
    because: str
    max_tokens: int
    sight: SuiteSight


class ConfigChoice(Record):
    """Everything that the file says beside the defaults; `share` is protection.share."""

    model: Path
    server: ServerChoice
    page_port: int
    traces: int
    known: int
    suites: tuple[SuiteChoice, ...]


def config_text(choice: ConfigChoice) -> str:
    """The file as text."""
    blocks = [
        "# Written by `palorad init`. Every other setting has its default: docs/configuration.md.\n"
        "# Relative paths are relative to this file.\n\n"
        'state_dir = "state"               # ledger, archive, adapters, probe: everything durable',
        f"[model]\npath = {_text(choice.model)}\nname = {_text(choice.server.name)}"
        f"{_gap(choice.server.name)}# what the server calls it without adapters\n"
        'alias = "palora-live"             # the name that clients ask for',
        _server(choice.server),
        "[probe]\n"
        f'skill = "data/skill.jsonl"        # {choice.traces} problems, solved by the base itself'
        '\npath = ""                         # it is fitted when it is first needed',
        _train(choice),
        *_suites(choice),
    ]
    if choice.page_port != PAGE_PORT:
        blocks.append(f"[web]\nport = {choice.page_port}{_gap('1234')}# {PAGE_PORT} is in use here")
    return "\n\n".join(blocks) + "\n"


def free_port(wanted: int) -> int:
    """A port of the loopback interface that nobody listens on: this one, or one of the next."""
    for port in range(wanted, wanted + _TRIED):
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    return wanted


def _server(server: ServerChoice) -> str:
    lines = [
        "[server]",
        f'kind = "{server.kind}"',
        'mode = "attach"                   # you run it; palorad never starts or stops it'
        if server.attach
        else 'mode = "managed"                  # palorad starts it and restarts it',
        f"urls = [{_text(server.url)}]",
    ]
    if server.executable:
        lines.append(f"executable = {_text(server.executable)}")
    if server.key_file is not None:
        lines.append(f"user_key_file = {_text(server.key_file)}")
    if server.rank != 128:
        lines.append(f"max_lora_rank = {server.rank}")
    if server.slow:
        lines.append("request_timeout_s = 600           # a processor takes longer than a GPU")
    return "\n".join(lines)


def _train(choice: ConfigChoice) -> str:
    lines = []
    if choice.server.rank != 128:
        lines.append(f"[train]\nrank = {min(16, choice.server.rank)}")
        lines.append(f"rank_budget = {choice.server.rank}\n")
    lines.append("[train.replay]")
    if choice.known:
        told = f"# {choice.known} facts that the base gives twice"
        lines.append(f'known = "data/known-replay.jsonl" {told}')
    else:
        lines.append(
            'known = ""                        # the base surely knew none of what was asked'
        )
    lines.append('reasoning = "data/skill.jsonl"')
    if choice.server.slow:
        lines.append(
            "min_traces = 0                    # more would be written by the base: minutes"
        )
    return "\n".join(lines)


def _suites(choice: ConfigChoice) -> Iterator[str]:
    yield '[gate]\npreset = "balanced"               # docs/gate.md#presets'
    for suite in choice.suites:
        seen = suite.sight
        if suite.role != Role.REASONING and not seen.usable:
            why = seen.blind if seen.enough else f"{counted(seen.items, 'question')}: too few"
            yield f"# No suite {suite.name!r}: {why}."
            continue
        sees = "no loss" if seen.sees is None else f"a loss of {pp(seen.sees)} with 80 % power"
        yield "\n".join(
            [
                f"# {seen.items} questions, of which the base has {percent(seen.right)} right; "
                f"they can show {sees}.",
                "[[gate.suites]]",
                f"name = {_text(suite.name)}",
                f'role = "{suite.role}"',
                f'path = "{suite.path}"',
                f"grader = {_text(suite.grader)}{_gap(suite.grader)}# {suite.because}",
                f"max_tokens = {suite.max_tokens}",
                f"margin = {seen.margin}{_gap(str(seen.margin))}# the smallest drop that so many "
                "questions can rule out",
            ]
        )


def _text(value: str | Path) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _gap(value: str) -> str:
    """Blanks up to the column of the comments, for keys of about the usual length."""
    return " " * max(1, 24 - len(value))
