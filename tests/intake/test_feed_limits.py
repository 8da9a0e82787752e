"""What a small document of a feed can make of the daemon's memory and time is bounded."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc

import pytest

from daemon.config.feeds import FeedSettings
from daemon.intake.feed_entries import DOCUMENT_BYTES, ENTRIES, lines_of_feed
from daemon.intake.fetch import _limit_of
from policies.errors import FeedFailed
from policies.facts.feed_rules import EntryRule

RULE = EntryRule(field="title", match=r"^(?P<what>\w+)", prompt="What is {what}?", answer="{what}")
HALF_MB = 2**19
MOST_MB = 20.0


def filled(unit: bytes) -> bytes:
    return unit * (HALF_MB // len(unit))


def rss(inner: bytes) -> bytes:
    return b'<rss version="2.0"><channel><title>t</title>' + inner + b"</channel></rss>"


def refused(data: bytes, kind: str) -> tuple[str, float]:
    """Why a document is refused, and the most memory in MB that Python took to find out."""
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(FeedFailed) as failed:
            lines_of_feed(data, kind, [RULE], "news")
        return str(failed.value), tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


DOCUMENTS = {
    "empty entries": (b'{"items":[' + filled(b"{},") + b"{}]}", "json-feed", "entries"),
    "values beside the entries": (
        b'{"items":[],"x":[' + filled(b"[],") * 3 + b"[]]}",
        "json-feed",
        "commas and brackets",
    ),
    "values in an entry": (
        b'{"items":[{"x":[' + filled(b"{},") * 3 + b"{}]}]}",
        "json-feed",
        "commas and brackets",
    ),
    "elements": (rss(filled(b"<item/>") * 3), "rss", "tags and attributes"),
    "nested elements": (rss(b"<item>" + filled(b"<a>") * 2), "rss", "tags and attributes"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_small_document_of_many_parts_is_refused_before_it_takes_much_memory(name: str) -> None:
    data, kind, says = DOCUMENTS[name]
    reason, peak_mb = refused(data, kind)
    assert says in reason and "JSON Lines" in reason and "\n" not in reason
    assert peak_mb < MOST_MB


def test_many_attributes_in_one_tag_are_refused_at_once() -> None:
    attributes = b" ".join(b'a%x="1"' % n for n in range(HALF_MB // 10))
    begun = time.monotonic()
    reason, _ = refused(rss(b"<item " + attributes + b"/>"), "rss")
    assert "a tag of more than 64 KiB" in reason
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["json-feed", "rss"])
def test_as_many_entries_as_are_allowed_are_read_and_no_more(kind: str) -> None:
    def document(entries: int) -> bytes:
        if kind == "json-feed":
            items: list[dict[str, str]] = [{"title": f"w{n}"} for n in range(entries)]
            return json.dumps({"items": items}).encode()
        return rss(b"".join(b"<item><title>w%d</title></item>" % n for n in range(entries)))

    assert len(lines_of_feed(document(ENTRIES), kind, [RULE], "news").splitlines()) == ENTRIES
    with pytest.raises(FeedFailed, match="has 10,001 entries; a document may have 10,000"):
        lines_of_feed(document(ENTRIES + 1), kind, [RULE], "news")


def test_rules_that_make_much_of_every_entry_are_stopped() -> None:
    wordy = RULE.model_copy(update={"paraphrases": ("{title}",) * 50})
    items = [{"title": "word " * 800} for _ in range(1000)]
    data = json.dumps({"items": items}).encode()
    with pytest.raises(FeedFailed, match="more than 32 MiB of facts by its rules"):
        lines_of_feed(data, "json-feed", [wordy], "news")


def test_a_long_text_without_tags_is_no_long_tag() -> None:
    text = b"<![CDATA[" + b"word " * 20_000 + b"]]>"
    data = rss(b"<item><title>W</title><description>" + text + b"</description></item>")
    (line,) = lines_of_feed(data, "rss", [RULE], "news").splitlines()
    assert json.loads(line)["answer"] == "W"


@pytest.mark.parametrize(
    ("kind", "max_mb", "most"),
    [
        ("jsonl", 64, 64 << 20),
        ("rss", 64, DOCUMENT_BYTES),
        ("json-feed", 64, DOCUMENT_BYTES),
        ("json-feed", 1, 1 << 20),
    ],
)
def test_what_is_read_as_a_whole_may_not_be_as_large_as_lines(
    kind: str, max_mb: int, most: int
) -> None:
    rules = () if kind == "jsonl" else ({"match": ".", "prompt": "?", "answer": "a"},)
    feed = FeedSettings.model_validate(
        {"name": "n", "url": "http://feed.test/", "kind": kind, "max_mb": max_mb, "rules": rules}
    )
    assert _limit_of(feed)[0] == most
