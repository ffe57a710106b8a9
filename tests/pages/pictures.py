"""README's pictures: a run's report, and the page of `serve` with base and adapter asked alike.

usage: python tests/pages/pictures.py ADAPTER [--runs runs] [--out docs/images] QUESTION...
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = (sys.executable, "-m", "mlx_itune")
WIDTH, HEIGHT = 900, 760


def report(page: Any, run: Path, out: Path) -> None:
    page.goto((run / "report.html").resolve().as_uri())
    # Down to the third answer, or the end of the first chart, so that nothing is cut.
    bottom = page.evaluate("""() => {
      const third = [...document.querySelectorAll("h3")].find((h) => /^3\\. /.test(h.innerText));
      if (third) return third.parentElement.getBoundingClientRect().top - 4;
      return document.querySelector("svg").getBoundingClientRect().bottom + 24;
    }""")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": bottom}
    page.screenshot(path=out / "report.png", full_page=True, clip=clip)


def chat(page: Any, adapter: Path, questions: list[str], out: Path) -> None:
    """Every question asked of both; the picture is taken when both have answered."""
    command = [*OURS, "serve", "--adapter", f"tuned={adapter}", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            page.goto(json.loads(server.stdout.readline())["url"].removesuffix("v1"))
            page.locator("#settings summary").click()
            page.locator("#max-tokens").fill("40")
            page.locator("#settings summary").click()
            for question in questions:
                page.locator("#prompt").fill(question)
                page.locator("#send").click()
                for side in ("left", "right"):
                    answered = page.locator(f"#{side}-status", has_text="tokens in")
                    answered.wait_for(timeout=300_000)
            page.screenshot(path=out / "chat.png")
        finally:
            server.terminate()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    origin = json.loads((args.adapter / "provenance.json").read_text())
    found = (shutil.which(name) for name in ("chromium", "google-chrome"))
    with sync_playwright() as playwright:
        program = next(filter(None, found), None)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        size = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, color_scheme="light", device_scale_factor=1.5)
        report(page, args.runs / origin["run"], args.out)
        chat(page, args.adapter, args.questions, args.out)
        browser.close()


if __name__ == "__main__":
    main()
