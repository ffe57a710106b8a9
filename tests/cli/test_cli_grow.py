"""``data grow``: drafts of a teacher, and what becomes of them."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.drafts.filters import Kept, found_in, rouge_l, words
from mlx_itune.dataset.drafts.recipe import shipped
from tests.cli.conftest import until
from tests.crash.trainer import Trainer

PARTS = "pump valve filter display battery motor fan sensor gateway lamp".split()
OWN = """
prompt = "Text: {passage}\\nWrite {style}."
user = "What is said of number {heading}?"
assistant = "{answer}"
distinct = "{answer}"
styles = ["briefly", "at length"]
max_words = 400
max_tokens = 12
max_rouge = 1.0

[schema]
enum = ["often", "rarely", "never"]
"""


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    with (tmp_path / "docs/passages.jsonl").open("w") as file:
        for n, part in enumerate(PARTS):
            text = f"The {part} of the Heron is checked every {n + 2} weeks by team {n}."
            row = {"id": f"p-{n:012}", "text": text, "source": "a.md", "page": None}
            place = {"heading": str(n), "start": 0, "end": len(text), "sha256": "0"}
            file.write(json.dumps({**row, **place}) + "\n")
    (tmp_path / "own.toml").write_text(OWN)
    return tmp_path / "docs"


@pytest.fixture
def server() -> Iterator[Any]:
    """A teacher that answers in the form asked for, and a judge; it keeps what it was asked."""
    asked: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            said = body["messages"][-1]["content"]
            schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
            part = next((p for p in PARTS if p in said), "thing")
            answer = f"the {part} of the Heron is checked"
            if "<answer>" in said:
                text = '{"score": 4}'
            elif "question" in schema.get("properties", {}):
                text = json.dumps({"question": f"Is {part} {part} a {part}?", "answer": answer})
            elif "enum" in schema:
                text = json.dumps(schema["enum"][-1])
            else:
                text = answer
            done = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            self.send_response(500 if server.is_broken else 200)
            self.end_headers()
            self.wfile.write(json.dumps(done).encode())

        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.is_broken, server.asked = False, asked  # type: ignore[attr-defined]
        server.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_server_drafts_and_a_judge_marks(
    cli: Any, docs: Path, tmp_path: Path, server: Any
) -> None:
    grow = ("data", "grow", docs, "--recipe", "question-answer", "--server", server.url)
    grow = (*grow, "--judge", server.url, "--out", tmp_path / "drafts")
    made = cli.json(*grow)
    # Some more are asked for than are wanted, as some will be refused.
    assert (made["accepted"], made["drafts"], made["calls"]) == (10, 10, 12 + 10 + 10)
    assert {*made} >= {"rejected", "recipe", "mean_doubt", "ended", "asked", "out"}
    first = lines_of(tmp_path / "drafts/drafts.jsonl")[0]
    assert first["kind"] == "draft" and first["passage"].startswith("p-") and first["prompt"]
    assert first["teacher"] == {
        "url": server.url, "model": "default_model", "temperature": 0.8, "seed": 0,
    }  # fmt: skip
    scores = first["scores"]
    assert (scores["found"], scores["agreement"], scores["judge"]) == (1, 1, 0.75)
    asked = len(server.asked)
    assert cli.json(*grow)["asked"] == 0 and len(server.asked) == asked
    train = ("train", "--model", "starter", "--out", tmp_path / "a", "--data")
    told = cli.refused(*train, tmp_path / "drafts", code=3)
    assert "a draft, which nobody has accepted yet" in told
    assert "another seed" in cli.refused(*grow, "--seed", 1, code=2)
    away = ("--server", "http://example.org/v1", "--out", tmp_path / "x")
    assert "another machine" in cli.refused(*grow[:5], *away, code=2)


def test_what_a_server_said_before_it_failed_is_kept(
    cli: Any, docs: Path, tmp_path: Path, server: Any
) -> None:
    grow = ("data", "grow", docs, "--recipe", "refusal", "--server", server.url, "--out")
    assert cli.json(*grow, tmp_path / "d", "--count", 4)["accepted"] == 4
    server.is_broken = True
    assert "answers 500" in cli.refused(*grow, tmp_path / "d", code=4)
    assert len(lines_of(tmp_path / "d/drafts.jsonl")) == 4
    server.is_broken = False
    assert cli.json(*grow, tmp_path / "d")["accepted"] == 10
    asked = Counter(line["key"] for line in lines_of(tmp_path / "d/calls.jsonl"))
    assert max(asked.values()) == 1
    row = lines_of(tmp_path / "d/drafts.jsonl")[0]["messages"]
    assert [m["role"] for m in row] == ["system", "user", "assistant"]
    assert row[-1]["content"] == "The text does not say."


def test_killed_and_gone_on_with_no_call_is_twice(
    cli: Any, docs: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    out, own = tmp_path / "drafts", tmp_path / "own.toml"
    grow = ["data", "grow", docs, "--recipe", own, "--model", tiny_model_dir, "--out", out]
    grow += ["--count", 90, "--batch-size", 4]
    calls = out / "calls.jsonl"
    for sign in (signal.SIGKILL, signal.SIGINT):
        before = calls.stat().st_size if calls.exists() else 0
        process = Trainer(tmp_path / "log", *grow)
        until(lambda: calls.exists() and calls.stat().st_size > before + 400)  # noqa: B023
        process.kill(sign)
        assert process.wait() == (-sign if sign == signal.SIGKILL else 128 + sign)
    made = cli.json(*grow)
    assert made["accepted"] == 90 and made["asked"] < made["calls"]
    asked = Counter(line["key"] for line in lines_of(calls))
    assert len(asked) == made["calls"] and max(asked.values()) == 1
    # What it asked is enough to make the same again.
    drafts = (out / "drafts.jsonl").read_bytes()
    assert cli.json(*grow)["asked"] == 0
    assert (out / "drafts.jsonl").read_bytes() == drafts


def test_few_rows_make_drafts_of_their_labels(cli: Any, tmp_path: Path, server: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for n in range(12):
            said = {"system": "Sort.", "prompt": f"message number {n}", "completion": "ab"[n % 2]}
            file.write(json.dumps(said) + "\n")
    grow = ("data", "grow", rows, "--server", server.url, "--out", tmp_path / "d", "--count", 4)
    made = cli.json(*grow)
    # The teacher says the same each time.
    assert (made["recipe"], made["accepted"]) == ("classification", 1)
    assert made["rejected"] == {"near another row": 19} and made["ended"] == "5 tries a draft"
    first = server.asked[0]["messages"]
    assert [m["role"] for m in first] == ["system", *["user", "assistant"] * 5, "user"]
    assert first[-1]["content"] == "Write a message of the kind: a"
    row = lines_of(tmp_path / "d/drafts.jsonl")[0]
    assert [m["content"] for m in row["messages"]][::2] == ["Sort.", "a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt = 'x'\nassistant = '{anser}'", ":2: assistant: there is no {anser}"),
        ("prompt = 'x'\nassistant = 'y'\nshot = 3", ":3: unknown key 'shot' (did you mean shots?)"),
        ("prompt = 'x'\nassistant = 'y'\nshots = 'a'", ":3: shots: a whole number is needed"),
        ("prompt = 'x'", "assistant is missing"),
        ("prompt = 'x'\nassistant = '{label}'", "has no labels"),
    ],
)
def test_a_recipe_of_ones_own_is_read_strictly(
    cli: Any, docs: Path, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "r.toml").write_text(text)
    asked = ("data", "grow", docs, "--model", "starter", "--out", tmp_path / "d", "--recipe")
    assert said in cli.refused(*asked, tmp_path / "r.toml", code=2)
    assert "question-answer" in cli.refused(*asked, "question-anser", code=2)
    assert not (tmp_path / "d").exists()


def test_scores() -> None:
    assert rouge_l(words("the cat sat"), words("The cat, it sat!")) == pytest.approx(6 / 7)
    assert found_in("It is 5 volts", "They say it is 5 volts here") == 1
    assert found_in('{"a": ["Ann"], "b": "Bob", "c": 3}', "Ann has 3 cats") == pytest.approx(2 / 3)
    assert Kept(["a b c", "x y z"]).nearest("x y") == pytest.approx(0.8)
    assert len(shipped()) == 8
