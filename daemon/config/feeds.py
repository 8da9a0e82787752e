"""The tables [[feeds]] and [[feeds.rules]] of config.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.config.sections import Section
from policies.facts.feed_rules import EntryRule, holes


class RuleSettings(Section):
    """[[feeds.rules]]: how an entry of a JSON Feed or of RSS/Atom becomes a fact.

    The named groups of `match`, and `{title}`, `{link}`, `{summary}`, `{author}`, `{date}` of the
    entry, fill the other texts. The first rule that matches an entry is used.
    """

    field: Literal["title", "summary", "content", "link"] = "title"
    """Which part of the entry is matched."""
    match: str
    """A regular expression that is searched in that part."""
    prompt: str
    """The fact's question."""
    answer: str
    """Its answer."""
    subject: str = ""
    """What the fact is about, if that is part of its key."""
    relation: str = ""
    """Which property of the subject it states."""
    paraphrases: tuple[str, ...] = ()
    """Further paraphrases to train."""
    eval_prompts: tuple[str, ...] = ()
    """Held-out paraphrases, for the gate."""
    op: Literal["assert", "supersede", "retract"] = "assert"
    """The operation of the line."""
    dated: bool = True
    """Whether the entry's date is the fact's `valid_from`."""

    @property
    def rule(self) -> EntryRule:
        """The rule without its settings."""
        return EntryRule.model_validate(self.model_dump())

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            groups = set(re.compile(self.match).groupindex)
        except re.error as error:
            raise ValueError(f"match is no regular expression: {error}") from None
        unknown = holes(self.rule) - groups - {"title", "link", "summary", "author", "date"}
        if unknown:
            raise ValueError(f"{{{min(unknown)}}} is neither a group of match nor part of an entry")
        return self


class FeedSettings(Section):
    """[[feeds]]: an HTTP address polled for facts."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    """The feed's name in status and history."""
    url: str = Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")
    """Its address; `{cursor}` in it is replaced by the cursor of the last response."""
    every_s: float = Field(default=300, gt=0)
    """How often it is polled."""
    kind: Literal["jsonl", "json-feed", "rss"] = "jsonl"
    """What it publishes: lines of facts, a JSON Feed, or RSS or Atom. The last two need rules."""
    cursor_header: str = Field(default="x-next-cursor", pattern=r"^[A-Za-z0-9-]+$")
    """The response header that holds the next cursor."""
    key_file: Path | None = None
    """A file with a bearer token to send."""
    timeout_s: float = Field(default=60, gt=0)
    """How long one poll may take in all."""
    max_mb: int = Field(default=64, ge=1)
    """A larger response is refused, counted after decompression. A JSON Feed, RSS or Atom is read
    as a whole and may have 8 MiB and 10,000 entries at most."""
    allow_private: bool = False
    """Whether the feed may have an address of this host or of a private network."""
    allow_hosts: tuple[str, ...] = ()
    """Other hosts to which a redirection may lead."""
    open_after: int = Field(default=5, ge=1)
    """After so many failures in a row the feed is polled less often, and `palorad status` says
    so."""
    full_every_s: float = Field(default=86400, gt=0)
    """How often it is asked without ETag and Last-Modified, in case these are wrong."""
    rules: tuple[RuleSettings, ...] = ()
    """[[feeds.rules]]"""

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if self.kind != "jsonl" and not self.rules:
            raise ValueError(f'kind = "{self.kind}" needs at least one [[feeds.rules]]')
        return self
