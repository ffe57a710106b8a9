"""Progress as a person or a log sees it: a live view on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from mlx_itune.cli.progress import Progress

Capture = pytest.CaptureFixture[str]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\d")


def step(number: int, steps: int = 200, **more: Any) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "steps": steps,
        "epoch": 0,
        "loss": 1.0 / number,
        "learning_rate": 2e-4,
        "skipped": False,
        "supervised_tokens_per_second": 1234.5,
        "eta_s": 65.0,
        "peak_memory_bytes": 2_310_000_000,
        "memory_bytes": 1_200_000_000,
        **more,
    }


def valid(number: int, loss: float | None) -> dict[str, Any]:
    return {"event": "valid", "step": number, "loss": loss}


def story(steps: int = 200) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"event": "start", "run": "runs/r1", "steps": steps, "examples": 800, "valid_examples": 40}
    ]
    for n in range(1, steps + 1):
        events.append(step(n, steps))
        if n % 50 == 0:
            events.append(valid(n, 2.0 - n / 1000))
        if n % 100 == 0:
            events.append({"event": "checkpoint", "step": n, "path": f"step-{n:06d}"})
    return [*events, {"event": "end"}]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("mlx_itune.cli.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_and_one_per_validation(
    capsys: Capture, clock: list[float]
) -> None:
    with Progress() as progress:
        for event in story(200):
            clock[0] += 0.25 if event["event"] == "step" else 0.0
            progress.training(event)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ") and " of 200" in line]
    # 200 steps of a quarter second: the tenth second comes five times, the last step is one.
    assert [line.split(",")[0] for line in steps] == [
        f"step {n} of 200" for n in (40, 80, 120, 160, 200)
    ]
    assert len([line for line in lines if "validation loss" in line]) == 4
    assert lines[0] == "run runs/r1: 200 steps, 800 rows to learn, 40 to validate"
    assert len(set(lines)) == len(lines) == 10
    for fact in ("1 min 05 s left", "lr 2.00e-04", "1,234 learned tokens/s", "1.2 GB, peak 2.3 GB"):
        assert fact in steps[0], steps[0]


def test_what_a_run_tells(capsys: Capture, clock: list[float]) -> None:
    def told(*events: dict[str, Any]) -> list[str]:
        with Progress() as progress:
            for event in events:
                progress.training(event)
        return capsys.readouterr().err.splitlines()

    assert told(valid(0, 2.0), valid(10, 1.5), valid(20, 1.7), valid(30, None)) == [
        "step 0: validation loss 2.0000, before training",
        "step 10: validation loss 1.5000, the best so far",
        "step 20: validation loss 1.7000 (best 1.5000 at step 10)",
        "step 30: the validation loss is not finite",
    ]
    # Losses count as much as they weigh.
    unlike = step(1, weight=99), step(2, loss=5.0, weight=1)
    assert told(*unlike, valid(2, 2.0))[0].endswith(", train loss 1.0400")
    # Of many incidents, the first are spelled out.
    incident = {"event": "incident", "step": 3, "rows": ["a:1", "a:2"], "suspects": []}
    first, *_, last = lines = told(*[incident] * 8)
    assert first == "step 3: not learned, loss or gradient is not finite (a:1, a:2)"
    assert last == "further ones: /incidents.jsonl" and len(lines) == 6
    sealed = {"event": "checkpoint", "step": 7, "path": "step-000007"}
    stopped = {"event": "stopped", "step": 7, "resume": "mlx-itune resume runs/r1"}
    assert told(sealed, stopped) == [
        "stopped after step 7, sealed in checkpoints/step-000007; "
        "continue with: mlx-itune resume runs/r1"
    ]
    resumed = {"event": "resume", "step": 4, "damaged": ["step-000006"], "changed": ["cpus 4"]}
    assert told(resumed) == [
        "resumed after step 4",
        "passed over, as damaged: step-000006",
        "note: not as the run began: cpus 4; last bits may differ",
    ]
    assert told({"event": "warning", "message": "one\ntwo"}) == ["warning: one\\ntwo"]


def test_bytes_are_megabytes_the_end_is_told_once_and_lines_are_harmless(
    capsys: Capture, clock: list[float]
) -> None:
    with Progress() as progress:
        read = progress.bytes_of("read", 1_400_000)
        for more in (300_000, 1_100_000, 0, 1):
            read(more)
        progress.update("wri\nte", 10, 10)
        progress.update("wri\nte", 10, 10)
        # Long after the end, the same words are still the same.
        clock[0] += 60
        progress.update("wri\nte", 10, 10)
        progress.say("file\x1b[2J\nname\u202e [red]")
    assert capsys.readouterr().err.splitlines() == [
        "read 1.4 MB of 1.4 MB",
        "wri\\nte 10 of 10",
        "file\\x1b[2J\\nname\\u202e [red]",
    ]


def test_a_terminal_that_went_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def isatty(self) -> bool:
            return False

        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress() as progress:
        progress.update("read", 1, 1)
        progress.say("x")


SHOW = """
import json, sys, time
from mlx_itune.cli.progress import Progress
with Progress() as progress:
    progress.bytes_of("read", 1_400_000)(700_000)
    time.sleep(0.4)
    for line in sys.stdin:
        event = json.loads(line)
        progress.training(event)
        if event.get("step") == 130:
            time.sleep(0.6)
    print("a result")
"""


def on_a_terminal(
    argv: list[str], stdin: str = "", *, columns: int = 100, stdout: int | None = None, **env: str
) -> tuple[str, bytes]:
    """What a terminal of `columns` receives from `argv`, and what its stdout does if piped."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    unset = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=stdout or slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", **env},
    )
    os.close(slave)
    assert process.stdin is not None
    process.stdin.write(stdin.encode())
    process.stdin.close()
    received = b""
    # Linux tells of a terminal that was closed by an error, macOS by nothing.
    with contextlib.suppress(OSError):
        while data := os.read(master, 65536):
            received += data
    os.close(master)
    printed = process.stdout.read() if process.stdout else b""
    assert process.wait() == 0, received
    return received.decode(), printed


def shown(**how: Any) -> tuple[str, bytes]:
    lines = "".join(json.dumps(event) + "\n" for event in story(200))
    return on_a_terminal([sys.executable, "-c", SHOW], lines, **how)


def test_a_terminal_sees_a_bar_and_all_numbers() -> None:
    text, _ = shown()
    plain = ESCAPE.sub("", text)
    assert "━" in text and COLOUR.search(text)
    for fact in (
        *("read", "700.0 KB of 1.4 MB", "130 of 200", "65 %", "1 min 05 s left", "epoch 1"),
        *("validation 1.9000 (best 1.9000 at 100)", "lr 2.00e-04", "1,234 learned tokens/s"),
        *("1.2 GB, peak 2.3 GB", "saved step-000100", "a result"),
    ):
        assert fact in plain, fact
    # The lasting lines stand once; the bar is wiped away, and the cursor is there again.
    assert plain.count("step 100: validation loss 1.9000") == 1
    assert text.rindex("\x1b[2K") > text.rindex("━")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_narrow_terminal_keeps_count_and_time_left_and_a_dumb_one_gets_plain_lines() -> None:
    text, printed = shown(columns=38, NO_COLOR="1", stdout=subprocess.PIPE)
    # A result in a file is not the view's.
    assert printed == b"a result\n" and "a result" not in text
    assert not COLOUR.search(text)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", text))]
    assert any("130 of 200" in line and "1 min 05 s left" in line for line in lines)
    # Of the view, which is drawn anew each time; what lasts is broken by the terminal.
    drawn = [line for line in lines if " of 200" in line or "lr 2.00e-04" in line]
    assert drawn and all(len(line) <= 38 for line in drawn)
    text, _ = shown(TERM="dumb")
    assert "\x1b" not in text and "step 200 of 200" in text
