"""``eval``: every answer kept, the wrong ones on a page, and an exit code for a low score."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.kit.files import sha256_file
from tests.export.shipped_models import write_adapter

WRONG = "<script>alert(1)</script>"


@pytest.fixture
def asked(tmp_path: Path, tiny_quantized_dir: Path) -> list[Any]:
    """A tuned model and a folder that has rows to train on and rows to test on."""
    data = tmp_path / "data"
    data.mkdir()
    texts = ["The patient takes metformin.", "Allergies?", "Follow-up in weeks?", WRONG]
    rows = [
        {"system": "Answer.", "prompt": text, "completion": "yes" if n % 2 else "no"}
        for n, text in enumerate(texts)
    ]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    write_adapter(
        tmp_path / "a", tiny_quantized_dir, kind="grid", seed=1, strength=0.18, template="chatml"
    )
    model = ["--model", tiny_quantized_dir, "--adapter", tmp_path / "a"]
    return ["eval", *model, "--data", data, "--max-new-tokens", 4]


def test_every_answer_is_kept_and_a_low_score_ends_in_code_8(
    cli: Any, asked: list[Any], tmp_path: Path
) -> None:
    out, page = tmp_path / "answers.jsonl", tmp_path / "wrong.html"
    body = cli.json(*asked, "--out", out, "--html", page, "--fail-under", 0.5, code=8)
    assert (body["score"], body["metric"], body["passed"]) == (0, "accuracy", False)
    assert body["tasks"]["all"]["way"] == "labels" and "answers" not in body
    assert body["base"]["exact_match_rows"] == 0
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"row", "prompt", "reference", "answer", "score", "base", "base_score"} <= kept[0].keys()
    assert kept[3]["row"].endswith("test.jsonl:4") and kept[3]["prompt"] == WRONG
    # What was asked and should be said comes back from it as rows, not what the model said.
    cli("data", "import", out, "--out", tmp_path / "again", "--split", "1/0/0")
    for row in map(json.loads, (tmp_path / "again/train.jsonl").read_text().splitlines()):
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][-1]["content"] in ("yes", "no")
    html = page.read_text()
    assert "4. test.jsonl:4" in html and "100 % alike" in html and "train.jsonl:1" in html
    assert WRONG not in html and "&lt;script&gt;" in html and "default-src 'none'" in html
    # Neither is written over.
    assert "already exists" in cli.refused(*asked, "--out", out, code=5)
    assert "already exists" in cli.refused(*asked, "--html", page, code=5)
    assert "needs answers" in cli.refused(*asked, "--no-generate", "--fail-under", 1, code=2)


def test_the_table_says_what_its_shares_are_of_and_which_rows_are_wrong(
    cli: Any, asked: list[Any]
) -> None:
    printed = cli(*asked, "--no-base", "--score", "contains").out
    for words in (
        *("exact match, share of rows", "contains the reference, share of rows"),
        *("of 4 rows: test.jsonl:2", "--html FILE shows them"),
    ):
        assert words in printed


def test_all_rows_of_a_folder_count_and_those_that_were_learned_are_told(
    cli: Any, asked: list[Any], tmp_path: Path
) -> None:
    train = tmp_path / "data/train.jsonl"
    origin = json.loads((tmp_path / "a/provenance.json").read_text())
    origin["data"] = [{"path": "train.jsonl", "sha256": sha256_file(train)}]
    (tmp_path / "a/provenance.json").write_text(json.dumps(origin))
    loss_only = [*asked[:7], "--no-generate", "--no-base"]
    assert "trained on these rows" not in cli(*loss_only).err
    (tmp_path / "data/test.jsonl").unlink()
    for data in (tmp_path / "data", train):
        printed = cli(*loss_only[:6], data, *loss_only[7:])
        assert ": 4 rows" in printed.out and "trained on these rows" in printed.err


@pytest.fixture
def judge() -> Iterator[str]:
    """A server that grades 4, fails at every third answer, and wants no thoughts."""
    asked: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            fine = body["temperature"] == 0 and len(asked) % 3
            said = {"choices": [{"message": {"content": 'Well: {"score": 4}'}}]}
            self.send_response(200 if fine else 500)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_judge_on_this_machine_grades_and_its_failures_are_counted(
    cli: Any, asked: list[Any], judge: str
) -> None:
    body = cli.json(*asked, "--judge", judge)
    graded = body["base"]["judge"]["graded"] + body["judge"]["graded"]
    assert (graded, body["judge"]["mean"]) == (6, 4)
    told = cli.refused(*asked, "--judge", "http://example.org/v1", code=2)
    assert "another machine" in told


def test_json_answers_are_held_against_a_schema(cli: Any, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object", "required": ["drug"]}')
    (tmp_path / "data/test.jsonl").write_text(
        '{"prompt": "Drug?", "completion": "{\\"drug\\": 1}"}'
    )
    judged = ("--schema", tmp_path / "s.json", "--out", tmp_path / "out.jsonl", "--no-base")
    found = cli.json(*asked, *judged)["tasks"]["all"]["json"]
    assert (found["valid"], found["schema_valid"], [*found["fields"]]) == (0, 0, ["drug"])
    assert json.loads((tmp_path / "out.jsonl").read_text())["fault"] == "no JSON object or list"
    assert "is for JSON" in cli.refused(*asked, *judged[:2], "--score", "contains", code=2)
