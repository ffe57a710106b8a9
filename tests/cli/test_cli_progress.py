"""Progress as a person or a log sees it: a live view on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli.progress import Progress, TrainingView

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
        "gradient_norm": 1.0,
        "skipped": False,
        "supervised_tokens_per_second": 1234.5,
        "tokens_per_second": 9999.0,
        "eta_s": 65.0,
        "peak_memory_bytes": 2_310_000_000,
        "memory_bytes": 1_200_000_000,
        **more,
    }


def story(steps: int = 200) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"event": "start", "run": "runs/r1", "steps": steps, "examples": 800, "valid_examples": 40}
    ]
    for n in range(1, steps + 1):
        events.append(step(n, steps))
        if n % 50 == 0:
            events.append({"event": "valid", "step": n, "loss": 2.0 - n / 1000})
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
    for fact in ("1 min 05 s left", "lr 2.00e-04", "1,234 learned tokens/s", "1.2 GB"):
        assert fact in steps[0], steps[0]
    assert "peak 2.3 GB" in steps[0]


def test_validation_lines_name_the_best(capsys: Capture) -> None:
    with Progress() as progress:
        for at, loss in ((0, 2.0), (10, 1.5), (20, 1.7), (30, None)):
            progress.training({"event": "valid", "step": at, "loss": loss})
    assert capsys.readouterr().err.splitlines() == [
        "step 0: validation loss 2.0000, before training",
        "step 10: validation loss 1.5000, the best so far",
        "step 20: validation loss 1.7000 (best 1.5000 at step 10)",
        "step 30: the validation loss is not finite",
    ]


def test_bytes_are_megabytes_and_the_end_is_told_once(capsys: Capture, clock: list[float]) -> None:
    with Progress() as progress:
        for done in (300_000, 1_400_000, 1_400_000, 1_400_000, 1_400_001):
            progress.update("read", done, 1_400_000, "bytes")
        progress.update("write", 10, 10)
        progress.update("write", 10, 10)
        # Long after the end, the same words are still the same.
        clock[0] += 60
        progress.update("write", 10, 10)
    assert capsys.readouterr().err.splitlines() == ["read 1.4 MB of 1.4 MB", "write 10 of 10"]


def test_what_is_said_stays_one_harmless_line(capsys: Capture) -> None:
    with Progress() as progress:
        progress.say("file\x1b[2J\nname\u202e [red]")
        progress.update("a\nb", 1, 1)
        progress.training({"event": "warning", "message": "one\ntwo"})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["file\\x1b[2J\\nname\\u202e [red]", "a\\nb 1 of 1", "warning: one\\ntwo"]


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


def test_incidents_and_skipped_steps_are_counted_and_few_are_spelled_out() -> None:
    view = TrainingView(run="runs/r1")
    said = []
    for n in range(1, 9):
        said += view.add(step(n, loss=None, skipped=True))
        said += view.add({"event": "incident", "step": n, "rows": ["a:1", "a:2"], "suspects": []})
    assert view.skipped == 8
    assert "8 skipped" in view.line()
    assert "loss -" in view.line()
    assert said[0] == "step 1: not learned, loss or gradient is not finite (a:1, a:2)"
    assert said[-1] == "further ones: runs/r1/incidents.jsonl"
    assert len(said) == 6


def test_the_view_weighs_losses_and_says_how_a_run_stopped_and_went_on() -> None:
    view = TrainingView()
    view.add(step(1, loss=1.0, supervised_tokens=99))
    view.add(step(2, loss=5.0, supervised_tokens=1))
    assert view.loss == pytest.approx(1.04)
    view.add({"event": "checkpoint", "step": 7, "path": "step-000007"})
    assert view.add({"event": "stopped", "step": 7, "resume": "mlx-itune resume runs/r1"}) == [
        "stopped after step 7, sealed in checkpoints/step-000007; "
        "continue with: mlx-itune resume runs/r1",
    ]
    event = {"event": "resume", "step": 40, "damaged": ["step-000060"], "changed": ["cpus 4"]}
    went_on, damaged, changed = view.add(event)
    assert went_on == "resumed after step 40"
    assert "step-000060" in damaged
    assert "cpus 4" in changed


@pytest.mark.parametrize("width", [1, 12, 30, 60, 200])
def test_the_panel_fits_any_width(width: int) -> None:
    view = TrainingView()
    for event in story(100)[:-1]:
        view.add(event)
    lines = view.panel(width)
    assert all(len(line) <= width for line in lines)
    facts = [fact for line in lines for fact in line.split("   ")]
    assert len(facts) == 6
    # Each line is as full as it can be.
    assert all(len(a) + 3 + len(b.split("   ")[0]) > width for a, b in itertools.pairwise(lines))


SHOW = """
import json, sys, time
from mlx_itune.cli.progress import Progress
with Progress() as progress:
    progress.update("read", 700_000, 1_400_000, "bytes")
    time.sleep(0.4)
    for line in sys.stdin:
        event = json.loads(line)
        progress.training(event)
        if event.get("step") == 130:
            time.sleep(0.6)
    print("a result")
"""


def on_a_terminal(
    argv: list[str],
    stdin: bytes = b"",
    *,
    columns: int = 100,
    results: Path | None = None,
    **env: str,
) -> str:
    """What a terminal of `columns` receives from `argv`; its stdout may go to a file instead."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    unset = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"TERM": "xterm-256color", **env}
    out = results.open("wb") if results else None
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=out or slave, stderr=slave, env=environment
        )
        os.close(slave)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        received = b"".join(_until_closed(master))
        assert process.wait() == 0, received.decode()
    finally:
        os.close(master)
        if out:
            out.close()
    return received.decode()


def _until_closed(master: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            return
        if not data:
            return
        yield data


def shown(columns: int = 100, results: Path | None = None, **env: str) -> str:
    lines = "".join(json.dumps(event) + "\n" for event in story(200)).encode()
    argv = [sys.executable, "-c", SHOW]
    return on_a_terminal(argv, lines, columns=columns, results=results, **env)


def test_a_terminal_sees_a_bar_and_all_numbers() -> None:
    text = shown()
    plain = ESCAPE.sub("", text)
    assert "━" in text
    assert COLOUR.search(text)
    for fact in (
        "read",
        "700.0 KB of 1.4 MB",
        "130 of 200",
        "65 %",
        "1 min 05 s left",
        "epoch 1",
        "validation 1.9000 (best 1.9000 at 100)",
        "lr 2.00e-04",
        "1,234 learned tokens/s",
        "1.2 GB, peak 2.3 GB",
        "saved step-000100",
        "a result",
    ):
        assert fact in plain, fact
    # The lasting lines stand once; the bar is wiped away, and the cursor is there again.
    assert plain.count("step 100: validation loss 1.9000") == 1
    assert text.rindex("\x1b[2K") > text.rindex("━")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_narrow_terminal_keeps_count_and_time_left() -> None:
    text = shown(columns=38, NO_COLOR="1")
    assert not COLOUR.search(text)
    plain = ESCAPE.sub("", text)
    drawn = [line for line in re.split(r"[\r\n]+", plain) if " of 200" in line]
    assert drawn
    assert all(len(line.rstrip()) <= 38 for line in drawn)
    assert "130 of 200" in plain
    assert "1 min 05 s left" in plain


def test_a_terminal_that_cannot_draw_gets_plain_lines() -> None:
    text = shown(TERM="dumb")
    assert "\x1b" not in text
    assert "step 200 of 200" in text


def test_training_on_a_terminal_leaves_one_json_object_on_stdout(
    tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Dose {n}?", "completion": f"{n} mg"} for n in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [sys.executable, "-m", "mlx_itune", "train", "--model", str(tiny_quantized_dir)]
    argv += ["--data", str(data), "--out", str(tmp_path / "adapter"), "--steps", "6"]
    argv += ["--runs", str(tmp_path / "runs"), "--eval-every", "3", "--offline", "--json"]
    text = on_a_terminal(argv, results=tmp_path / "out")
    made = json.loads((tmp_path / "out").read_text())
    assert made["steps"] == 6
    plain = ESCAPE.sub("", text)
    assert "step 3: validation loss" in plain
    assert f"run {made['run']}: 6 steps" in plain.replace("\r", "").replace("\n", "")
