"""The page in a headless Chromium: load, ask, look at a token's votes, an error; pictures are kept in tests/.shots."""

import json
import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from ensemw2s.serving.api import make_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parent.parent / ".shots"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(params=["light", "dark", "phone"])
def page(request, browser, url):
    size = {"width": 390, "height": 844} if request.param == "phone" else {"width": 1100, "height": 900}
    scheme = "dark" if request.param == "dark" else "light"
    found = browser.new_page(viewport=size, color_scheme=scheme, has_touch=request.param == "phone")
    found.look = request.param
    asked: list[str] = []
    found.on("request", lambda one: asked.append(one.url))
    found.goto(url)
    yield found
    found.close()
    assert all(one.startswith(url) for one in asked if not one.startswith("data:")), "the page asks nobody else"


def shot(page: Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}-{page.look}.png", full_page=True)


def shot_of(page: Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def ask(page: Page, prompt: str = "sort these 3 1 2") -> None:
    expect(page.locator("#model option")).to_have_count(2)
    page.fill("#prompt", prompt)
    page.fill("#most", "24")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#send")).to_be_enabled()


def test_a_prompt_is_answered_token_by_token_and_the_votes_are_shown(page, backend):
    ask(page)
    tokens = page.locator("#answer .token")
    expect(tokens).to_have_count(24)
    tapped = tokens.nth(3)
    tapped.tap() if page.look == "phone" else tapped.hover()
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("round-1")
    expect(rows.nth(1)).to_contain_text("2.00")  # its alpha
    expect(page.locator("#figures")).to_contain_text("agreement")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    shot(page, "votes")
    shades = tokens.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(shades)) > 1, "tokens that the experts disagree on have another colour"


def test_what_an_expert_and_the_student_would_have_said(page, backend):
    ask(page)
    for name in ("round-2", "student"):
        page.get_by_role("button", name=name, exact=True).click()
    answers = page.locator(".other pre")
    expect(answers).to_have_count(2)
    expect(answers.nth(1)).not_to_be_empty()
    expect(answers.nth(0)).not_to_be_empty()
    shot(page, "compare")


def test_an_expert_that_is_switched_off_does_not_vote(page, backend):
    page.get_by_role("button", name="sort up 14 3 9 =").click()
    expect(page.locator("#hint")).to_contain_text("Tap a token")
    boxes = page.locator("#members-list input")
    expect(boxes).to_have_count(2)
    expect(page.locator("#members-list")).to_contain_text("60 %")
    with page.expect_request("**/chat/completions") as sent:
        boxes.nth(0).uncheck()
    assert list(sent.value.post_data_json["ensemble"]["weights"]) == ["round-2"]
    expect(page.locator("#before-label")).to_contain_text("with all experts")
    expect(page.locator("#before-text")).not_to_be_empty()
    shot(page, "members")
    boxes.nth(1).click()
    expect(boxes.nth(1)).to_be_checked()  # one has to stay


PARTS = [("a", [97]), ("\\xf0", [240]), ("\\x9f\\x98\\x80", [159, 152, 128]), ("\\xc3", [195]), ("<eos>", [])]


def test_a_character_of_several_tokens_is_shown_as_one(page):
    tokens = [
        {"token": shown, "bytes": raw, "id": i, "logprob": -0.5, "agreement": 1, "entropy": 0, "votes": []}
        for i, (shown, raw) in enumerate(PARTS)
    ]
    choice = {"index": 0, "delta": {"content": "a😀"}, "finish_reason": "stop", "ensemble": {"tokens": tokens}}
    body = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    page.route("**/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page)
    shown = page.locator("#answer .token")
    expect(shown).to_have_text(["a", "😀", "\\xc3", "⊣"])
    shown.nth(1).focus()
    expect(page.locator("#figures")).to_contain_text("2 tokens, each a part of the character")


def test_the_keyboard_is_enough(page):
    ask(page)
    page.locator("#answer .token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#answer .token").nth(2)).to_be_focused()
    expect(page.locator("#answer .token").nth(2)).to_have_attribute("aria-pressed", "true")


def test_an_error_is_said(page):
    ask(page, "9 " * 200)
    expect(page.get_by_role("alert")).to_contain_text("allows 60")
    shot(page, "error")


def test_the_api_is_described(page):
    page.goto(page.url + "docs")
    expect(page.locator(".opblock").filter(has_text="Chat Completions")).to_be_visible()
    shot(page, "docs")


def test_a_key_is_asked_for_and_used(browser, backend, served, limits):
    with served(make_api(backend, limits, ["right"])) as url:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(url)
        expect(page.locator("#ask-key")).to_contain_text("asks for an API key")
        shot_of(page, "key-phone")
        page.fill("#key", "wrong")
        page.press("#key", "Tab")
        expect(page.get_by_role("alert")).to_contain_text("no valid API key")
        page.fill("#key", "right")
        page.press("#key", "Tab")
        expect(page.locator("#model option")).to_have_count(2)
        expect(page.get_by_role("alert")).to_be_hidden()
        page.close()
