"""The studio in a browser, from an empty folder to a verified bundle, by its pages alone: all that
Ertas Studio (a to g) and Data Suite (a to f) are measured by."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages.test_pages import FAULTS, SMALLEST_PX, browser  # noqa: F401

pytestmark = pytest.mark.pages
ROOT = Path(__file__).resolve().parents[2]
WAIT_MS = 400_000
PAIRS = [
    (f"What does part {n} of the pump cost?", f"Part {n} costs {n + 3} euros.") for n in range(24)
]


class House:
    """A studio over a folder; its pages, by what a user does there."""

    def __init__(self, folder: Path, browser: Any) -> None:  # noqa: F811
        self.folder, self._browser = folder, browser
        self.wrong: list[str] = []
        self.open()

    def open(self) -> None:
        argv = [
            sys.executable,
            "-m",
            "mlx_itune",
            "studio",
            str(self.folder),
            "--port",
            "0",
            "--json",
        ]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.own = f"http://{urlsplit(self.url).netloc}"
        window = {"width": 1280, "height": 900}
        self.page = self._browser.new_context(viewport=window).new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        told = lambda said: said.type == "error" and "status of 40" not in said.text  # noqa: E731
        self.page.on("console", lambda said: self.wrong.append(said.text) if told(said) else None)
        self.page.goto(self.url)
        self.page.wait_for_selector("nav")

    def close(self) -> None:
        self.page.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def run(self, name: str, state: str = "done", **fields: Any) -> str:
        """Fill in the form of a command, compare what it shows, run it: what the command says."""
        self.page.goto(f"{self.own}/form/{name.replace(' ', '/')}")
        for field, value in fields.items():
            at = self.page.locator(f"[name={field}]")
            if at.is_hidden():
                self.page.locator("summary").click()
            if at.evaluate("e => e.tagName") == "SELECT":
                at.select_option(value)
            elif at.get_attribute("type") == "checkbox":
                at.check()
            else:
                at.fill(str(value))
        typed = self.page.locator("#command")
        self.page.get_by_role("button", name="Run", exact=True).click()
        said = self.ended(state)
        assert typed.inner_text().startswith(f"mlx-itune {name}")
        return said

    def ended(self, state: str = "done") -> str:
        status = self.page.locator(".verdict").first
        self.page.wait_for_function(
            "() => /^(?!running)./.test(document.querySelector('.verdict')?.textContent || '')",
            timeout=WAIT_MS,
        )
        said = self.page.locator("main").inner_text()
        assert status.inner_text().startswith(state), said
        return said


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[House]:  # noqa: F811
    opened = House(tmp_path_factory.mktemp("studio"), browser)
    yield opened
    opened.close()
    assert not opened.wrong


def lines(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_kind_of_rows_and_documents_comes_in(house: House) -> None:
    """Ertas Studio (a), Data Suite (a): five schemas, CSV, Parquet, text; documents with spans."""
    at = house.folder
    lines(at / "instruction.jsonl", ({"instruction": q, "output": a} for q, a in PAIRS[:4]))
    lines(at / "input.jsonl", ({"input": q, "output": a, "topic": "pump"} for q, a in PAIRS[2:8]))
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in PAIRS[8:12]]
    lines(at / "sharegpt.jsonl", ({"conversations": each} for each in turns))
    said = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS]
    lines(at / "messages.jsonl", ({"messages": each} for each in said[12:16]))
    lines(
        at / "text.jsonl",
        ({"text": f"### Instruction:\n{q}\n\n### Response:\n{a}"} for q, a in PAIRS[:2]),
    )
    (at / "notes.csv").write_text(
        "question,answer\n" + "".join(f"{q},{a}\n" for q, a in PAIRS[16:20])
    )
    columns = zip(*PAIRS[20:], strict=True)
    names = ("question", "answer")
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), at / "rows.parquet")
    mail = "Mail bob.smith@example.org or call +1 202 555 0143."
    lines(at / "personal.jsonl", [{"question": "Whom do I ask?", "answer": mail}])
    (at / "manuals").mkdir()
    (at / "manuals/pump.md").write_text(
        "# Pump\n\n## Setup\n\nThe pump weighs 12 kilograms. Close the red valve first.\n"
    )
    (at / "manuals/care.txt").write_text("Oil the pump each month. The filter lasts a year.\n")
    house.page.goto(house.own)
    for name in ("instruction.jsonl", "notes.csv", "rows.parquet", "manuals/pump.md"):
        assert house.page.get_by_role("rowheader", name=name).is_visible()
    files = "instruction.jsonl input.jsonl sharegpt.jsonl messages.jsonl notes.csv rows.parquet"
    said_by = house.run(
        "data import", sources=f"{files} personal.jsonl", out="raw", split="0.8/0.2"
    )
    assert "27 rows, 27 accepted, 0 rejected" in said_by
    house.run("data check", files="text.jsonl")
    house.run("data ingest", sources="manuals", out="docs")
    first = json.loads((at / "docs/passages.jsonl").read_text().splitlines()[0])
    assert first["source"] and first["end"] > first["start"] and len(first["sha256"]) == 64


def test_rows_are_looked_at_cleaned_and_traced(house: House) -> None:
    """Data Suite (b), (c), (e), (f)."""
    at = house.folder
    house.run("data clean", sources="raw", out="cleaned", preset="default", pii="all")
    assert len((at / "cleaned/removed.jsonl").read_text().splitlines()) == 2
    rows = "".join(path.read_text() for path in at.glob("cleaned/[tv]*.jsonl"))
    assert "bob.smith" not in rows and "0143" not in rows
    page = house.page
    page.goto(f"{house.own}/rows?data=cleaned&model=starter&rows=3")
    assert page.locator(".tokens .w1").count() > 3 and page.locator(".tokens .w0").count() > 3
    page.get_by_role("link", name="removed.jsonl").click()
    assert "duplicate" in page.locator(".log").inner_text()
    assert "data clean" in house.run("data trace", row="train:1", data="cleaned")
    assert "0 rejected" in house.run("data check", files="cleaned")
    assert house.run("data stats", data="cleaned")


def test_runs_are_planned_trained_seen_repeated_and_swept(house: House) -> None:
    """Ertas Studio (b), (c), (e), (g)."""
    at, page = house.folder, house.page
    common: dict[str, Any] = {"model": "starter", "data": "cleaned"}
    assert "needs" in house.run("train", "failed (7)", **common, out="no", memory_gb="0.001")
    assert not (at / "no").exists()
    page.goto(f"{house.own}/form/train?model=starter&data=cleaned&out=adapter&memory_gb=0.001")
    page.get_by_role("button", name="Does it fit?").click()
    assert "does not fit" in house.ended("failed (7)")
    # Stopped by the page, seen by a studio that was started again, resumed there.
    page.goto(f"{house.own}/form/train?model=starter&data=cleaned&out=adapter&steps=40")
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator("a[href^='/runs/runs/']").click(timeout=WAIT_MS)
    page.wait_for_selector(".curves, svg", timeout=WAIT_MS)
    house.close()
    house.open()
    page = house.page
    page.get_by_role("link", name="Runs", exact=True).click()
    page.locator("a[href^='/runs/runs/']").first.click()
    run = page.locator("h1").inner_text()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Resume").click(timeout=WAIT_MS)
    house.ended()
    listed = subprocess.run(
        [sys.executable, "-m", "mlx_itune", "runs", "list", "--json"],
        cwd=at,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [each["state"] for each in json.loads(listed.stdout)["runs"]] == ["finished"]
    page.goto(f"{house.own}/runs/runs/{run}")
    shown = page.locator("main").inner_text()
    assert "learning_rate" in shown and '"event": "end"' in shown and page.locator("svg").count()
    result = json.loads((at / f"runs/{run}/result.json").read_text())
    house.run("train", config=f"runs/{run}/config.toml", out="again")
    again = sorted(at.glob("runs/*/result.json"), key=lambda path: path.stat().st_mtime)[-1]
    assert json.loads(again.read_text())["valid_loss"] == result["valid_loss"]
    said = house.run("sweep", **common, over="learning_rate=1e-4,1e-3", steps="8", out="sweep")
    assert "best" in said
    page.goto(f"{house.own}/runs")
    for box in page.get_by_role("checkbox").all()[:2]:
        box.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Run", exact=True).click()
    assert "valid loss" in house.ended()


def test_drafts_become_rows_only_when_somebody_accepts_them(house: House) -> None:
    """Data Suite (d), by keyboard alone."""
    at, page = house.folder, house.page
    teacher = {"model": "starter", "adapter": "adapter", "count": "4"}
    said = house.run("data grow", source="docs", recipe="question-answer", out="grown", **teacher)
    assert "drafts" in said
    (at / "drafts").mkdir()
    says = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS]
    drafts = (
        {"kind": "draft", "id": f"d-{n:012x}", "messages": m, "doubt": n / 9}
        for n, m in enumerate(says[:3])
    )
    lines(at / "drafts/drafts.jsonl", drafts)
    refused = house.run("train", "faults in the data", model="starter", data="drafts", out="no")
    assert "draft" in refused
    page.goto(f"{house.own}/review?drafts=drafts&by=ann")
    for key, left in (("a", "2 left"), ("r", "1 left")):
        page.keyboard.press(key)
        page.wait_for_function(f"() => document.body.innerText.includes('{left}')")
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("Mended.")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.body.innerText.includes('Nothing is left')")
    house.run("data review", drafts="drafts", out="accepted")
    rows = (at / "accepted/train.jsonl").read_text()
    assert rows.count("\n") == 2 and "Mended." in rows


def test_three_are_asked_side_by_side_and_shipped(house: House) -> None:
    """Ertas Studio (d), (f): fused, two levels, asked by a schema, bundled, verified."""
    at, page = house.folder, house.page
    tuned = {"model": "starter", "adapter": "adapter"}
    house.run("fuse", **tuned, out="fused", bits="8", data="cleaned")
    for kind in ("q8_0", "q4_0"):
        house.run("export", **tuned, to="gguf", type=kind, out=f"{kind}.gguf", data="cleaned")
    for name, kind in (("shipped", "gguf"), ("lora", "peft")):
        said = house.run("export", **tuned, to=kind, out=name, bundle="on")
        assert "sha256" in said
        assert "each as the manifest says" in house.run("verify", bundle=name)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        p.name for p in (at / "lora").rglob("*")
    }
    assert [*(at / "shipped").rglob("*.gguf")] and (at / "shipped/README.md").is_file()
    page.goto(f"{house.own}/ship")
    assert "mean KL" in page.locator("main").inner_text()
    schema = {"type": "object", "properties": {"euros": {"type": "integer"}}, "required": ["euros"]}
    schema["additionalProperties"] = False
    (at / "answer.schema.json").write_text(json.dumps(schema))
    page.goto(
        f"{house.own}/try?adapter=adapter&model=starter&shipped=fused&schema=answer.schema.json"
    )
    page.get_by_role("button", name="Load").click()
    page.locator("#prompt").fill(PAIRS[0][0], timeout=WAIT_MS)
    page.keyboard.press("Enter")
    for side in ("base", "tuned", "shipped"):
        page.locator(f"#{side}-status", has_text="tokens in").wait_for(timeout=WAIT_MS)
        assert set(json.loads(page.locator(f"#{side}-log .answer").inner_text())) == {"euros"}


def test_pages_are_readable(house: House, request: pytest.FixtureRequest) -> None:
    names = [
        "",
        "rows?data=cleaned",
        "form/train",
        "runs",
        "try",
        "ship",
        "jobs",
        "review?drafts=drafts",
    ]
    run = max((house.folder / "runs").iterdir()).name
    for scheme in ("light", "dark"):
        for width in (390, 1280):
            page = house.page
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            for name in (*names, f"runs/runs/{run}"):
                page.goto(f"{house.own}/{name}")
                for each in page.locator("summary").all():
                    each.click()
                if images := request.config.getoption("images"):
                    stem = re.sub(r"\W+", "-", f"studio-{name[:12]}-{width}-{scheme}")
                    page.screenshot(path=Path(images) / f"{stem}.png", full_page=True)
                assert page.evaluate(FAULTS, SMALLEST_PX) == [], (name, width, scheme)


def test_an_outsider_cannot_reach_it(house: House, browser: Any) -> None:  # noqa: F811
    at = urlsplit(house.own)
    token = house.url.split("token=")[1]
    mine = {"Cookie": f"studio-{at.port}={token}"}

    def status(path: str, headers: Mapping[str, str], method: str = "GET") -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", at.port or 0)) as connection:
            connection.request(method, path, "run=x" if method == "POST" else None, dict(headers))
            return connection.getresponse().status

    assert status("/", mine) == 200
    assert status("/", {}) == status("/?token=wrong", {}) == status("/jobs", {}) == 403
    assert status("/", {**mine, "Host": f"evil.example:{at.port}"}) == 403
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{(at.port or 0) + 1}"):
        assert status("/form/resume", {**mine, "Origin": origin}, "POST") == 403
        assert status("/jobs", {**mine, "Origin": origin}) == 403
    assert status("/form/resume", mine, "POST") == 403
    for path in ("/file?path=../x", "/file?path=/etc/passwd", "/rows?data=/etc", "/runs/../../x"):
        assert status(path, mine) in (400, 404)
    # A page of another site, in the browser that has the cookie.
    page = house.page.context.new_page()
    page.route(
        "http://evil.example/**",
        lambda route: route.fulfill(
            body=(
                f"<form id=f method=post action='{house.own}/form/resume'><input name=run></form>"
            ),
            content_type="text/html",
        ),
    )
    page.goto("http://evil.example/")
    with page.expect_navigation():
        page.evaluate("document.getElementById('f').submit()")
    assert "403" in page.content() or "may not use" in page.content()
    page.close()
