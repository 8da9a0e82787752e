"""A running daemon with a few weeks behind it, and a client of its page."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.live import free_port
from tests.support.page_site import PageSite

MARKUP = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    """Revision 2 is live, one batch is rejected, one waits for a person, two lines are bad."""
    site = PageSite(tmp_path_factory.mktemp("page"), page_port=free_port())
    try:
        site.begin().close()
        site.learn("himalaya.jsonl", ["Bhutan", "Nepal", "Mongolia"])
        site.learn("atlantis.jsonl", ["Atlantis (false)"])
        site.put(
            "mixed.jsonl",
            ['{"prompt": "Who?"}', "no JSON", f'{{"prompt": "{MARKUP}", "answer": "a\\u202eb"}}'],
        )
        site.until(lambda: site._rests("mixed.jsonl"), "learning what is good of mixed.jsonl")
        site.learn("utopia.jsonl", ["Utopia (unsure)"])
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def client(page: PageSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url, timeout=20) as opened:
        yield opened
