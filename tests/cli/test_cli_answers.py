"""generate and chat as a user meets them: stdin, files, JSON, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> Any:
    def call(command: str, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as left:
            main([command, "--model", str(tiny_model_dir), "--max-tokens=8", "--offline", *argv])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_a_prompt_from_the_flag_and_from_stdin(cli: Any) -> None:
    whole = json.loads(cli("generate", "--prompt", "Hi there", "--json")[1])
    assert set(whole) == {
        "text", "prompt_tokens", "completion_tokens", "finish_reason", "wall_s", "shortened"
    }  # fmt: skip
    assert (whole["completion_tokens"], whole["finish_reason"]) == (8, "length")
    said = (("--prompt", "Hi there"), ("Hi there",), ("Hi", "there"))
    for argv, stdin in (*((each, b"") for each in said), ((), b"Hi there"), (("-",), b"Hi there")):
        assert cli("generate", *argv, stdin=stdin)[:2] == (0, whole["text"] + "\n")
    assert "not UTF-8" in cli("generate", stdin=b"\xff")[2]
    stop = whole["text"][3:5]
    cut = json.loads(cli("generate", "--prompt", "Hi there", "--stop", stop, "--json")[1])
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"


def test_a_file_is_answered_as_each_prompt_alone(cli: Any, tmp_path: Path) -> None:
    said = {"system": "Short.", "user": "The patient takes metformin.", "assistant": "known"}
    rows: list[dict[str, Any]] = [
        {"prompt": "Hi there", "id": "a"},
        {"messages": [{"role": "user", "content": "yes?"}]},
        {"messages": [{"role": role, "content": text} for role, text in said.items()]},
    ]
    file, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    code, printed, _ = cli("generate", "--file", str(file))
    answers = [json.loads(line) for line in printed.splitlines()]
    assert (code, [a["index"] for a in answers], answers[0]["id"]) == (0, [0, 1, 2], "a")
    assert [(a["prompt"], a["reference"]) for a in answers] == [
        ("Hi there", None),
        ("yes?", None),
        (said["user"], "known"),
    ]
    assert answers[2]["system"] == said["system"]
    asked = (("Hi there",), ("yes?",), (said["user"], "--system", said["system"]))
    alone = [json.loads(cli("generate", *each, "--json")[1])["text"] for each in asked]
    assert [a["text"] for a in answers] == alone
    for extra in (("--batch-size", "1"), ("--batch-size", "2")):
        assert cli("generate", "--file", str(file), *extra)[1] == printed
    code, told, _ = cli("generate", "--file", str(file), "--out", str(out), "--json")
    assert (code, json.loads(told)["rows"], out.read_text()) == (0, 3, printed)
    drawn = ("--file", str(file), "--temperature=1", "--seed=4", "--top-k=9", "--min-p=0.01")
    assert cli("generate", *drawn) == cli("generate", *drawn)
    lines = tmp_path / "p.txt"
    lines.write_text("Hi there\n\nyes?\n")
    printed = cli("generate", "--file", str(lines))[1]
    assert [json.loads(line)["text"] for line in printed.splitlines()] == alone[:2]
    # U+2028 and its kin end no row.
    odd = json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False)
    file.write_text(f"{odd}\r\n{odd}\n")
    assert cli("generate", "--file", str(file))[1].count("\n") == 2


def test_where_no_answers_can_be_written_none_are_computed(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.txt"
    file.write_text("Hi there\n")
    (tmp_path / "link").symlink_to(file)
    monkeypatch.setattr("mlx_itune.inference.opening.open_model", None)
    for out in (file, tmp_path / "link", Path("/dev/null"), tmp_path):
        code, _, err = cli("generate", "--file", str(file), "--out", str(out))
        told = "is a directory" if out == tmp_path else "already exists"
        assert (code, err.count("\n")) == (5, 1) and told in err
    assert file.read_text() == "Hi there\n"


LONG = "word " * 3000


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        # What a file holds.
        (b'{"prompt": "a"}\n{"prompt": ""}', 3, ":2: has neither"),
        (b'{"prompt": "a"}\n{', 3, ":2: is not valid JSON"),
        (b'{"messages": [{"role": "king", "content": "a"}]}', 3, ":1: messages[1]: unknown role"),
        (b'{"messages": []}', 3, ":1: asks nothing"),
        (b'{"prompt": "a", "id": "\\ud800"}', 3, ":1: is not UTF-8 text"),
        (json.dumps({"prompt": LONG}).encode(), 3, "context is 2,048"),
        (b"\xff", 3, "is not UTF-8"),
        (b"\n", 3, "holds no prompts"),
        # Flags.
        (("--prompt", "a", "--file", "x"), 2, "exclude each other"),
        (("--prompt", "a", "--out", "x"), 2, "--out takes"),
        (("a", "--prompt", "a"), 2, "exclude each other"),
        (("a", "--temperature", "inf"), 2, "not a finite number"),
        (("a", "--top-p", "nan"), 2, "not a finite number"),
        (("a", "--min-p", "-1"), 2, "not in the range"),
        (("a", "--seed", str(1 << 64)), 2, "not in the range"),
        (("--prompt", "a", "--raw", "--system", "x"), 2, "--raw takes no --system"),
        (("--file", "none.txt"), 5, "none.txt"),
        ((), 2, "the prompt is empty"),
        (("--prompt", "a\udcff"), 3, "not Unicode text"),
        (("--prompt", LONG), 3, "context is 2,048"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    cli: Any, tmp_path: Path, given: bytes | tuple[str, ...], code: int, told: str
) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    argv = given
    if isinstance(given, bytes):
        file.write_bytes(given)
        argv = ("--file", str(file), "--out", str(out))
    got, printed, err = cli("generate", *argv)
    assert (got, printed, err.count("\n"), told in err) == (code, "", 1, True), err
    assert not out.exists()


def test_chat_commands_and_history(cli: Any) -> None:
    for said, told, roles in (
        (b"Hi\nyes?\n", "", ["user", "assistant"] * 2),
        (
            b"Hi\nyes?\n/what\n/system Short.\nHi\n\n/exit\nnever\n",
            "no such command",
            ["system", "user", "assistant"],
        ),
        (b"Hi\n" + b"word " * 3000 + b"\nyes?\n", "/reset starts a new", ["user", "assistant"] * 2),
    ):
        code, out, err = cli("chat", "--json", stdin=said)
        assert [message["role"] for message in json.loads(out)["messages"]] == roles
        assert code == 0 and told in err


def test_ctrl_c_stops_the_answer_and_not_the_chat(tiny_model_dir: Path) -> None:
    flags = ["--max-tokens", "1900", "--temperature", "1", "--offline"]
    # Tests that run in a shell's background would hand on that this signal is ignored.
    heeds = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"import signal, sys; from mlx_itune.cli import main; {heeds}; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", script, "chat", "--model", str(tiny_model_dir), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        _, err = process.communicate(b"/reset\n", timeout=60)
    assert (process.returncode, b"(stopped)" in err, b"Traceback" in err) == (0, True, False)
