"""Trainers as processes of their own, forked from one that has imported everything.

Each does what `mlx-itune ARGV` does: real writes, and real deaths by SIGKILL. Only the seconds of
importing are saved.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Audit events (sys.addaudithook) of calls that change what is on a disk.
_CHANGES = frozenset(
    ["os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod"]
)
_FORKED = multiprocessing.get_context("forkserver")
# What a trainer imports; in this order: mlx_itune loads a fast BLAS before mlx.core is.
_FORKED.set_forkserver_preload(
    [
        *(f"mlx_itune.cli.{name}" for name in ("train", "progress", "result")),
        *("mlx_itune.training.run.resume", "mlx_itune.training.run.report"),
        *("mlx_lm.models.llama", "transformers", "tokenizers", "rich.live"),
    ]
)


class Trainer:
    """`mlx-itune ARGV` in a process; with kill_at, it dies at that change of the disk (from 1).
    env: variables that it has besides."""

    def __init__(
        self, log: Path, *argv: object, kill_at: int | None = None, env: Mapping[str, str] = {}
    ) -> None:
        words = [*map(str, argv)]
        self._process = _FORKED.Process(target=_train, args=(words, kill_at, str(log), dict(env)))
        self._process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; harmless if it has ended."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Its exit code; -9 if it was killed, as it is where it does not end in four minutes."""
        self._process.join(240)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _train(argv: list[str], kill_at: int | None, log: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if kill_at is not None:
        _die_at(kill_at)
    from mlx_itune.cli import main

    code = 1
    try:
        main(argv)
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _die_at(change: int) -> None:
    """SIGKILL this process just before its n-th change of the disk."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        if event in _CHANGES or writes:
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
