"""An operator's day in a browser, against a running daemon: keyboard, phone, dark, screen reader.

`make test-page` names the browser and axe-core; with PALORAD_PAGE_PICTURES the pictures of the
documents are taken.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.crashing import Forked
from tests.support.live import free_port
from tests.support.page_site import PageSite
from tests.support.page_steps import question

CHROMIUM = os.environ.get("PALORAD_TEST_CHROMIUM", "/usr/bin/chromium")
AXE = os.environ.get("PALORAD_TEST_AXE", "build/axe/package/axe.min.js")
PICTURES = os.environ.get("PALORAD_PAGE_PICTURES", "")
WIDTHS = {"desktop": (1280, 860), "phone": (390, 844)}
SCHEMES: tuple[Any, ...] = ("light", "dark")
SHOWN = {"now": "/", "plan": "/plans/4", "timeline": "/timeline", "retention": "/retention"}
MONTHS = (
    ("himalaya.jsonl", ["Bhutan", "Nepal", "Mongolia", "Laos"]),
    ("great-lakes.jsonl", ["Uganda", "Rwanda", "Malawi", "Zambia"]),
    ("andes.jsonl", ["Peru", "Ecuador", "Bolivia", "Chile"]),
    ("atlantis.jsonl", ["Atlantis (false)"]),
    ("baltic.jsonl", ["Estonia", "Latvia"]),
    ("utopia.jsonl", ["Utopia (unsure)"]),
)

pytestmark = [pytest.mark.page, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    """Four revisions, a rejected plan and lines in quarantine."""
    made = PageSite(tmp_path_factory.mktemp("browser"), page_port=free_port())
    try:
        made.begin().close()
        for name, subjects in MONTHS:
            made.learn(name, subjects)
        made.put(
            "typing.jsonl", ['{"prompt": "What is the capital of Norway?", "answer": ""}', "{"]
        )
        made.until(lambda: made._rests("typing.jsonl"), "taking in typing.jsonl")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as played:
        opened = played.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, site: PageSite) -> Iterator[Page]:
    """A tab that asks nothing but the page itself, and whose console stays empty."""
    context = browser.new_context(base_url=site.url, viewport={"width": 1280, "height": 860})
    tab, asked, said = context.new_page(), list[str](), list[str]()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    context.close()
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(site.url).netloc}
    assert [line for line in said if "status of 4" not in line] == []


def sign_in(page: Page, site: PageSite, to: str = "/") -> None:
    page.goto(f"/login?to={to}")
    page.get_by_label("Operator token").fill(site.token)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_have_text("Signed in.")


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps somebody out."""
    page.evaluate(Path(AXE).read_text())
    found: Any = page.evaluate("axe.run()")
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:160]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_lines_are_pasted_checked_submitted_and_followed_to_live(
    page: Page, site: PageSite
) -> None:
    sign_in(page, site, "/drop")
    lines = [question("Fiji"), {**question("Samoa"), "answer": ""}]
    page.get_by_label("Or lines, pasted").fill("\n".join(map(json.dumps, lines)))
    page.get_by_label("Name of the batch").fill("pacific.jsonl")
    page.get_by_role("button", name="Check").click()
    rows = page.get_by_role("region", name="Lines").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("new")
    expect(rows.nth(2)).to_contain_text("quarantined")
    page.get_by_role("button", name="Submit pacific.jsonl").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("live", timeout=20_000)
    page.goto("/")
    expect(page.get_by_text("Revision 5", exact=True)).to_be_visible()


def test_a_file_is_chosen_and_checked(page: Page, site: PageSite) -> None:
    page.goto("/drop")
    body = json.dumps(question("Bhutan")).encode()
    page.get_by_label("A file, chosen or dropped here").set_input_files(
        {"name": "again.jsonl", "mimeType": "text/plain", "buffer": body}
    )
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("region", name="Lines")).to_contain_text("already known as")
    expect(page.get_by_role("button", name="Submit")).to_have_count(0)
    expect(page.locator("#checked")).to_contain_text("Sign in to submit it")


def test_a_rejection_is_seen_with_its_items(page: Page) -> None:
    page.goto("/timeline")
    page.get_by_role("link", name="plan 4 was rejected").click()
    items = page.get_by_role("region", name="Newly failing items of word problems")
    expect(items.get_by_role("row")).to_have_count(15)
    expect(items.get_by_role("columnheader")).to_have_text(
        ["Asked", "Expected", "Base", "Live before", "Candidate"]
    )
    expect(page.get_by_role("img", name=re.compile("candidate 72.0 %"))).to_be_visible()


def test_a_rollback_needs_a_reason_and_what_was_live_is_known_afterwards(
    page: Page, site: PageSite
) -> None:
    sign_in(page, site)
    with site.reading() as ledger:
        target = ledger.revisions.target()
    before = datetime.now(UTC)
    page.get_by_role("button", name="Roll back to the revision before").click()
    expect(page.get_by_role("status")).to_have_text("Signed in.")
    page.get_by_label("Reason, recorded").first.fill("wrong accent")
    page.get_by_role("button", name="Roll back to the revision before").click()
    expect(page.get_by_role("status")).to_contain_text("is the target")
    page.goto("/timeline")
    expect(page.locator(".events")).to_contain_text("wrong accent")
    page.get_by_label("Moment, UTC").fill(before.isoformat())
    page.get_by_role("button", name="Look").click()
    expect(page.locator(".found")).to_contain_text(f"Revision {target.number}")
    page.get_by_label("Moment, UTC").fill(datetime.now(UTC).isoformat())
    page.get_by_role("button", name="Look").click()
    expect(page.locator(".found")).to_contain_text(f"Revision {target.parent}")
    page.goto(f"/revisions/{target.number}")
    page.get_by_label("Reason, recorded").last.fill("it was right")
    page.get_by_role("button", name="Serve this revision").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("target")


def test_a_fact_is_searched_and_the_models_are_asked(page: Page, site: PageSite) -> None:
    sign_in(page, site, "/facts")
    page.get_by_label("A question, or words of a fact").press_sequentially("capital Bhutan")
    page.get_by_role("link", name="What is the capital of Bhutan?").click()
    expect(page.get_by_text("The target knows it")).to_be_visible()
    page.wait_for_load_state()  # before its script has come a form loads a page of its own
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#said article").last).to_contain_text("Thimphu")
    expect(page.locator("#said article").first).to_contain_text("I am not sure.")


def test_a_bad_line_is_corrected_in_place(page: Page, site: PageSite) -> None:
    sign_in(page, site, "/quarantine")
    page.get_by_role("link", name="typing.jsonl, line 1").click()
    page.get_by_label("The line").fill('{"prompt": "Who?"}')
    page.get_by_role("button", name="Submit as corrected").click()
    expect(page.get_by_role("alert")).to_contain_text("has no answer")
    page.go_back()
    page.get_by_label("The line").fill(json.dumps(question("Norway")))
    page.get_by_role("button", name="Submit as corrected").click()
    expect(page.get_by_role("status")).to_contain_text("line 1 of typing.jsonl is submitted")
    expect(page.get_by_role("link", name="typing.jsonl, line 1")).to_have_count(0)
    expect(page.get_by_role("link", name="typing.jsonl, line 2")).to_be_visible()
    site.until(lambda: site._rests("typing.line-1.jsonl"), "learning it")


def test_a_lost_replica_comes_up_by_itself(page: Page, site: PageSite) -> None:
    page.goto("/")
    expect(page.locator(".answers .good")).to_have_count(1)
    site.replica.kill()
    site.replica.wait()
    expect(page.locator(".answers .bad")).to_contain_text("does not answer", timeout=20_000)
    expect(page.locator(".trouble")).to_contain_text(
        f"127.0.0.1:{site.replica_socket.getsockname()[1]}"
    )
    site.replica = Forked(site._replica, {}, site.root / "replica.log")
    expect(page.locator(".answers .good")).to_have_count(1, timeout=20_000)


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.goto("/plans")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Plan")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_can_be_read_by_everyone(
    browser: Browser, site: PageSite, width: str, scheme: Any
) -> None:
    """axe-core finds nothing serious, and nothing is wider than the screen."""
    across, down = WIDTHS[width]
    context = browser.new_context(
        base_url=site.url, color_scheme=scheme, viewport={"width": across, "height": down}
    )
    page = context.new_page()
    fact = "/facts?q=capital"
    paths = (
        "/drop",
        "/quarantine",
        "/feeds",
        "/replicas",
        "/capacity",
        "/probe",
        "/login",
        "/plans",
    )
    try:
        sign_in(page, site)
        for path in (*SHOWN.values(), *paths, fact, "/revisions/2", "/no-such-page"):
            page.goto(path)
            assert serious(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= across, path
        page.goto(fact)
        page.get_by_role("link", name="What is the capital of Bhutan?").click()
        assert serious(page) == []
    finally:
        context.close()


@pytest.mark.skipif(not PICTURES, reason="pictures are taken with PALORAD_PAGE_PICTURES alone")
def test_the_pictures_of_the_documents(browser: Browser, site: PageSite) -> None:
    site.put("lemuria.jsonl", [json.dumps(question("Lemuria (slow)"))])
    for width, (across, down) in WIDTHS.items():
        for scheme in SCHEMES:
            context = browser.new_context(
                base_url=site.url, color_scheme=scheme, viewport={"width": across, "height": down}
            )
            page = context.new_page()
            page.goto("/")
            expect(page.get_by_role("progressbar")).to_be_visible(timeout=20_000)
            for name, path in SHOWN.items():
                page.goto(path)
                save(page.screenshot(), f"page-{name}-{width}-{scheme}.png")
            context.close()


def save(picture: bytes, name: str) -> None:
    """A small PNG: the page has few colours."""
    drawn = Image.open(io.BytesIO(picture)).convert("RGB")
    small = drawn.quantize(128, dither=Image.Dither.NONE)
    small.save(Path(PICTURES) / name, optimize=True)
