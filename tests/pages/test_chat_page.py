"""The page of `serve` in a browser: base and adapter side by side, by keyboard, readable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages.test_pages import FAULTS, SMALLEST_PX, browser  # noqa: F401

from tests.export.shipped_models import write_adapter
from tests.inference.served import QUESTIONS, Client, serving

pytestmark = pytest.mark.pages
BASE = "mlx-itune/starter"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = tmp_path_factory.mktemp("chat") / "notes"
    write_adapter(made, "starter", kind="lora", seed=1, strength=0.18)
    with serving("--model", "starter", f"--adapter=notes={made}") as client:
        yield client


@pytest.fixture
def page(client: Client, browser: Any) -> Iterator[Any]:  # noqa: F811
    """The page; what goes wrong on it, or is fetched from elsewhere, fails the test."""
    opened = browser.new_page()
    own, wrong = client.url.removesuffix("v1"), list[str]()
    opened.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.goto(own)
    yield opened
    opened.close()
    # A browser tells of every answer that refuses.
    assert not [each for each in wrong if "status of 400" not in each]


def ask(page: Any, question: str, tokens: int) -> None:
    """Ask by keyboard alone, and wait for both answers."""
    from playwright.sync_api import expect

    if page.locator("#max-tokens").is_hidden():
        page.locator("#settings summary").focus()
        page.keyboard.press("Enter")
    page.locator("#max-tokens").fill(str(tokens))
    page.locator("#prompt").focus()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    for side in ("left", "right"):
        expect(page.locator(f"#{side}-status")).to_contain_text("tokens in", timeout=30_000)


def answers(page: Any, side: str) -> list[str]:
    return list(page.locator(f"#{side}-log .answer").all_text_contents())


def test_both_answer_as_the_api_does(page: Any, client: Client) -> None:
    ask(page, QUESTIONS[0], 12)
    said = {"left": BASE, "right": "notes"}
    for side, model in said.items():
        assert answers(page, side) == [client.text(QUESTIONS[0], model=model, max_tokens=12)]
    assert page.evaluate("document.activeElement.id") == "prompt"
    # Each goes on with its own conversation.
    ask(page, QUESTIONS[1], 12)
    for side, model in said.items():
        first, second = answers(page, side)
        told = [("user", QUESTIONS[0]), ("assistant", first), ("user", QUESTIONS[1])]
        messages = [{"role": role, "content": text} for role, text in told]
        assert second == client.text("", model=model, max_tokens=12, messages=messages)
    page.locator("#clear").click()
    assert not answers(page, "left") and not answers(page, "right")


def test_an_answer_is_stopped_and_an_error_is_told(page: Any, client: Client) -> None:
    from playwright.sync_api import expect

    page.locator("#settings summary").click()
    page.locator("#max-tokens").fill("1500")
    page.locator("#prompt").fill("Hi")
    page.locator("#send").click()
    page.keyboard.press("Escape")
    for side in ("left", "right"):
        expect(page.locator(f"#{side}-status")).to_have_text("stopped")
    page.locator("#right-model").select_option("")
    assert page.locator("#right-log").is_hidden()
    page.locator("#prompt").fill("word " * 3000)
    page.locator("#send").click()
    page.locator("#left-log .error").wait_for()
    assert "context" in page.locator("#left-log .error").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable(page: Any, width: int, scheme: Any, request: pytest.FixtureRequest) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    ask(page, "x" * 200 + " " + QUESTIONS[1], 40)
    if images := request.config.getoption("images"):
        page.screenshot(path=Path(images) / f"chat-{width}-{scheme}.png", full_page=True)
    assert page.evaluate(FAULTS, SMALLEST_PX) == []
