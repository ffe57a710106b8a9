"""Keep-awake and the word after an abort, with a caffeinate that only waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlx_itune.training.engine.loop import kept_awake

# As the real one with -i -w PID: ends when that process does.
CAFFEINATE = '#!/bin/sh\necho "$@" >> "$LOG"\nwhile kill -0 "$3" 2>/dev/null; do sleep 0.05; done\n'
TRAINER = """
import os, sys, time
from mlx_itune.training.engine.loop import kept_awake
from mlx_itune.training.run.run import resume_line
sys.platform = "darwin"
with kept_awake(resume_line("my runs/x")):
    time.sleep(0.3)
    if sys.argv[1] == "abort":
        os.abort()
print("orderly", file=sys.stderr)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tool = tmp_path / "bin" / "caffeinate"
    tool.parent.mkdir()
    tool.write_text(CAFFEINATE)
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LOG": str(tmp_path / "log")}


def train(how: str, environment: dict[str, str], tmp_path: Path) -> tuple[int, str]:
    """Exit code, and what stood on the terminal a little later."""
    screen = tmp_path / "screen"
    with screen.open("wb") as stderr:
        command = [sys.executable, "-c", TRAINER, how]
        code = subprocess.run(command, stderr=stderr, env=environment).returncode
    deadline = time.monotonic() + 10
    while how == "abort" and time.monotonic() < deadline and "resume" not in screen.read_text():
        time.sleep(0.05)
    return code, screen.read_text()


def test_an_aborted_trainer_leaves_the_line_that_continues_it_and_another_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code, said = train("abort", environment, tmp_path)
    assert code == -signal.SIGABRT
    assert "continue with: mlx-itune resume 'my runs/x'" in said
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in said
    assert train("finish", environment, tmp_path) == (0, "orderly\n")
    for call in (tmp_path / "log").read_text().splitlines():
        assert call.startswith("-i -w ")
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert not [line for line in listed.splitlines() if f"caffeinate {call}" in line]


@pytest.mark.parametrize(("platform", "tried"), [("linux", 0), ("darwin", 1)])
def test_elsewhere_or_without_the_tool_the_run_goes_on(
    platform: str, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = Mock(side_effect=FileNotFoundError)
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(sys, "platform", platform)
    with kept_awake("x"):
        pass
    assert popen.call_count == tried
