"""A lock file: one holder at a time, named to the others, and free when its holder is dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlx_itune.kit import lock
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.lock import Holder, holder, locked


def refused(path: Path, match: str, what: str = "the run") -> None:
    with pytest.raises(StorageError, match=match), locked(path, what):
        pytest.fail("it was locked")


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    with locked(path, "the run"):
        assert holder(path) == Holder(os.getpid(), socket.gethostname())
        refused(path, f"the run is in use by process {os.getpid()}")
    assert holder(path) is None and path.read_bytes() == b""
    assert str(Holder(12, "studio")) == "process 12 on studio"
    assert str(Holder(12, socket.gethostname())) == "process 12"
    assert str(Holder(None, None)) == "another process"


def test_whoever_only_asks_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            holder(path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(200):
            with locked(path, "the run"):
                pass
    finally:
        done.set()
        asking.join()


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlx_itune.kit.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert holder(path) == Holder(other.pid, socket.gethostname())
        other.kill()
    assert json.loads(path.read_text())["pid"] == other.pid
    assert holder(path) is None


def test_a_file_that_was_removed_and_made_anew_is_not_locked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, swapped = tmp_path / "lock", False
    real = lock.fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        nonlocal swapped
        real(descriptor, operation)
        if not swapped:
            swapped = True
            path.unlink()
            path.touch()

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(path, "the run"):
        monkeypatch.undo()
        assert holder(path) == Holder(os.getpid(), socket.gethostname())


def test_a_place_that_cannot_be_locked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert holder(tmp_path / "pipe") is None
    refused(tmp_path / "pipe", "Invalid argument")
    refused(tmp_path / "no" / "lock", "No such file")

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    refused(tmp_path / "l", "keep runs on a local disk")
    assert holder(tmp_path / "l") is None
