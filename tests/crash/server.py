"""A process that has imported everything and forks a trainer on request.

Each trainer is a process of its own that does what `mlx-itune ARGV` does: real writes, and real
deaths by SIGKILL. Only the seconds of importing are saved. Run as a script; see `Server`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Audit events (sys.addaudithook) of calls that change what is on a disk.
_CHANGES = frozenset(
    ["os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod"]
)
# What a trainer imports.
_NEEDED = (
    *(f"mlx_itune.cli.{name}" for name in ("train", "progress", "result")),
    *("mlx_itune.training.run.resume", "mlx_itune.training.run.report"),
    *("mlx_lm.models.llama", "transformers", "tokenizers", "rich.live"),
)


class Trainer:
    """One forked trainer."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server, self.pid = server, pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; harmless if it has ended: the server reaps it only in `wait`."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; -9 if it was killed."""
        return self._server.ask("wait")


class Server:
    """Starts trainers one after the other; used as a context manager."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )

    def ask(self, line: str) -> int:
        """The number that the server answers with."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *argv: object, kill_at: int | None = None) -> Trainer:
        """Run `mlx-itune ARGV`; with kill_at, it dies at that change of the disk (from 1)."""
        return Trainer(self, self.ask(json.dumps({"argv": [*map(str, argv)], "kill_at": kill_at})))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve(log: str) -> None:
    """Read orders, fork, report."""
    # In this order: mlx_itune loads a fast BLAS before mlx.core is.
    for name in _NEEDED:
        import_module(name)
    pid = 0
    for line in sys.stdin:
        if line == "wait\n":
            status = os.waitpid(pid, 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _train(order, log)
        print(pid, flush=True)


def _train(order: dict[str, Any], log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if order["kill_at"] is not None:
        _die_at(order["kill_at"])
    from mlx_itune.cli import main

    code = 1
    try:
        main(order["argv"])
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


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve(sys.argv[1])
