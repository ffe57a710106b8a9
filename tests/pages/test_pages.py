"""Every page that the program makes, in a browser: narrow and wide, light and dark (make pages).

Nothing is cut or smaller than 11 px, nothing is fetched from elsewhere, nothing goes wrong inside.
--images DIR keeps the screenshots that README and docs show.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pages
ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "data" / "messages.jsonl"
SMALLEST_PX = 11
# What is wrong on a page, as the browser has laid it out.
FAULTS = """(smallest) => {
  const wrong = [], wide = document.documentElement;
  if (wide.scrollWidth > innerWidth) wrong.push(`the page is ${wide.scrollWidth} px wide`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), holder = walker.currentNode.parentElement;
    if (!text || !holder.checkVisibility() || holder.closest("style, script")) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    const matrix = holder.getScreenCTM?.(), scale = matrix ? Math.hypot(matrix.a, matrix.b) : 1;
    const size = parseFloat(getComputedStyle(holder).fontSize) * scale;
    if (size < smallest) wrong.push(`${size.toFixed(1)} px: ${text.slice(0, 40)}`);
    for (let e = holder; e; e = e.parentElement) {
      const flow = getComputedStyle(e).overflowX;
      if (/auto|scroll/.test(flow)) break;
      const frame = e.getBoundingClientRect();
      const cuts = /hidden|clip/.test(flow) || e.tagName == "svg";
      if (cuts && (box.left < frame.left - 1 || box.right > frame.right + 1))
        wrong.push(`cut: ${text.slice(0, 40)}`);
    }
  }
  return wrong;
}"""


def command(*argv: object) -> None:
    """A command of ours, as a user types it."""
    typed = [sys.executable, "-m", "mlx_itune", *map(str, argv)]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the starter and the run that made it."""
    made = tmp_path_factory.mktemp("pages")
    about = ["--model", "starter", "--template", "chatml", "--data", ROWS]
    where = ["--out", made / "adapter", "--runs", made / "runs", "--offline"]
    command("train", *about, *where, "--steps", 40, "--samples", 3)
    return made


def report(made: Path) -> Path:
    (page,) = made.glob("runs/*/report.html")
    return page


def stats(made: Path) -> Path:
    command("data", "stats", ROWS, "--html", made / "stats.html")
    return made / "stats.html"


def shown(made: Path) -> Path:
    about = ["--model", "starter", "--template", "chatml", "--html", made / "show.html"]
    command("data", "show", ROWS, *about)
    return made / "show.html"


def scored(made: Path) -> Path:
    about = ["--model", "starter", "--adapter", made / "adapter", "--runs", made / "runs"]
    command("eval", *about, "--data", ROWS, "--html", made / "eval.html", "--offline")
    return made / "eval.html"


PAGES: dict[str, Callable[[Path], Path]] = {
    "report": report,
    "stats": stats,
    "show": shown,
    "eval": scored,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: Debian's or Google's where there is one, else Playwright's own."""
    from playwright.sync_api import sync_playwright

    found = (shutil.which(name) for name in ("chromium", "google-chrome"))
    with sync_playwright() as playwright:
        program = next(filter(None, found), None)
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=PAGES)
def address(request: pytest.FixtureRequest, trained: Path) -> str:
    """Of one page after the other."""
    return PAGES[request.param](trained).as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_readable_and_fetches_nothing(
    address: str, width: int, scheme: str, browser: Any, request: pytest.FixtureRequest
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    fetched: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda asked: fetched.append(asked.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(address)
    name = re.sub(r"\W+", "-", f"{Path(address).stem}-{width}-{scheme}")
    if images := request.config.getoption("images"):
        page.screenshot(path=Path(images) / f"{name}.png")
    folded = page.locator("details > summary")
    for number in range(folded.count()):
        if folded.nth(number).is_visible():
            folded.nth(number).click()
    wrong += page.evaluate(FAULTS, SMALLEST_PX)
    page.close()
    assert not wrong
    assert fetched == [address]
