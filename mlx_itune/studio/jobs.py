"""Commands that a page has started: each is a process of its own, which outlives the studio. Its
words are kept in a folder, `.studio/ID`, from which a later studio finds it again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import parse_object, read_record, write_object
from mlx_itune.studio.forms import shown

FOLDER = ".studio"
_TAIL_BYTES = 1 << 17
# The shell stays until the command has ended, and keeps its exit code, whatever becomes of us.
_SCRIPT = 'trap : INT TERM HUP; echo $$ >pid; cd "$0" && "$@" </dev/null >"$J/out" 2>"$J/err"; '
_SCRIPT += 'echo $? >"$J/exit"'


@dataclass(frozen=True)
class Started:
    """What job.json says: what was typed, and when (ISO 8601, UTC)."""

    argv: list[str]
    started: str


@dataclass(frozen=True)
class Job:
    """A command that a page has started. code: its exit code, None while it runs and where it was
    killed. output, log: the ends of what it wrote to stdout and stderr."""

    id: str
    argv: tuple[str, ...]
    started: str
    running: bool
    stopping: bool
    code: int | None
    output: str = ""
    log: str = ""

    @property
    def command(self) -> str:
        """As it is copied into a terminal."""
        return shown(self.argv)

    @property
    def name(self) -> str:
        """ "data check", "train"."""
        return " ".join(self.argv[: 2 if self.argv[0] in ("data", "runs") else 1])

    @property
    def state(self) -> str:
        """running, done, faults in the data (exit code 3), stopped, failed or killed."""
        if self.running:
            return "running"
        known = {0: "done", None: "killed", 3: "faults in the data", 130: "stopped", 143: "stopped"}
        return known.get(self.code, f"failed ({self.code})")


class Jobs:
    """The commands that were started in a folder, by this studio or an earlier one."""

    def __init__(self, folder: Path) -> None:
        self._home, self._all = folder, folder / FOLDER
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, argv: Sequence[str]) -> str:
        """Run `mlx-itune argv` in the folder; the id of the job. Raises StorageError."""
        now = datetime.now(timezone.utc)
        id = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        place = self._all / id
        with storage_errors(place):
            place.mkdir(parents=True, mode=0o700)
            write_object(place / "job.json", vars(Started([*argv], f"{now:%Y-%m-%d %H:%M:%S}")))
            # Held by the processes of the job alone; the system lets go of it when they end.
            lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._children[id] = subprocess.Popen(
                    [
                        "/bin/sh",
                        "-c",
                        _SCRIPT,
                        self._home,
                        sys.executable,
                        "-m",
                        "mlx_itune",
                        *argv,
                    ],
                    cwd=place,
                    env={**os.environ, "J": str(place), "PYTHONUNBUFFERED": "1"},
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            finally:
                os.close(lock)
        return id

    def all(self) -> list[Job]:
        """The newest first."""
        ids = [each.name for each in self._all.glob("*-*")] if self._all.is_dir() else []
        found = []
        for id in sorted(ids, reverse=True):
            with contextlib.suppress(StorageError, UsageError):
                found.append(self.job(id, words=False))
        return found

    def job(self, id: str, *, words: bool = True) -> Job:
        """One of them. Raises UsageError, StorageError."""
        place = self._at(id)
        if child := self._children.get(id):
            child.poll()
        about = read_record(place / "job.json", Started, error=StorageError)
        running = _is_held(place / "lock")
        code, stopping = None, (place / "stop").exists()
        with contextlib.suppress(OSError, ValueError):
            code = int((place / "exit").read_text())
        texts = [_tail(place / name) if words else "" for name in ("out", "err")]
        return Job(id, tuple(about.argv), about.started, running, stopping, code, *texts)

    def stop(self, id: str) -> None:
        """Ask it to end, as Ctrl-C does: a run seals a checkpoint first."""
        if (group := self.group(id)) is not None:
            with contextlib.suppress(OSError):
                (self._at(id) / "stop").touch()
                os.killpg(group, signal.SIGTERM)

    def group(self, id: str) -> int | None:
        """The process group of one that runs."""
        place = self._at(id)
        with contextlib.suppress(OSError, ValueError):
            return int((place / "pid").read_text()) if _is_held(place / "lock") else None
        return None

    def said(self, id: str) -> dict[str, object]:
        """The first line of stdout, an object; an empty one before that is there."""
        first = self.job(id).output.partition("\n")[0]
        with contextlib.suppress(StorageError):
            return parse_object(first, where=id, error=StorageError)
        return {}

    def _at(self, id: str) -> Path:
        if not id.replace("-", "").isalnum() or not (self._all / id / "job.json").is_file():
            raise UsageError(f"there is no command {id!r}")
        return self._all / id


def _is_held(lock: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
