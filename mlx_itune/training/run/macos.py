"""What a long run on a Mac needs: the machine awake, and a word when the GPU's watchdog strikes."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

from mlx_itune.kit.errors import ResourceError

_OUT_OF_MEMORY = ("insufficient memory", "outofmemory", "out of memory")
_UNABLE = "unable to allocate"
WATCHDOG_HINT = (
    "macOS stops GPU work that holds up the display: let the display sleep, lower "
    "--micro-batch-tokens, or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"
)
# Waits for the trainer ($1) as caffeinate does anyway. A trainer that ends in an orderly way stops
# this script first; one that is aborted (MLX cannot turn a failed command buffer into an exception:
# the process dies of SIGABRT) leaves it to say what can be done.
_WATCH = 'caffeinate -i -w "$1"; printf "\\n%s\\n" "$2" >&2'


@contextlib.contextmanager
def kept_awake(resume_line: str) -> Iterator[None]:
    """No idle sleep during the block; if this process dies in it, the terminal says how to go on.

    Only on macOS, by the system's own caffeinate; elsewhere, or without it, nothing happens.
    """
    child = _watch(resume_line) if sys.platform == "darwin" else None
    try:
        yield
    finally:
        if child is not None:
            _end(child)


def _watch(resume_line: str) -> subprocess.Popen[bytes] | None:
    words = f"training was cut off; continue with: {resume_line}  ({WATCHDOG_HINT})"
    command = ["/bin/sh", "-c", _WATCH, "sh", str(os.getpid()), words]
    try:
        # A session of its own: Ctrl-C is for the trainer.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the script and, with it, the caffeinate that it waits for."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, 15)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        child.wait(timeout=5)


@contextlib.contextmanager
def explained_gpu_errors(resume_line: str) -> Iterator[None]:
    """Turn MLX's errors for a failed command buffer or allocation into a ResourceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = " ".join(str(error).split())
        short = said.lower().replace("_", "")
        resume = f"continue with: {resume_line}"
        memory = isinstance(error, MemoryError) or any(
            word in short for word in (*_OUT_OF_MEMORY, _UNABLE)
        )
        if memory:
            raise ResourceError(
                f"out of memory ({said[:200] or 'no detail given'})",
                hint=f"close other programs, then {resume}; or start anew with a lower "
                "--micro-batch-tokens or --max-length",
            ) from error
        if "command buffer" in short or "[metal]" in short:
            raise ResourceError(
                f"the GPU gave up ({said[:200]})", hint=f"{WATCHDOG_HINT}; then {resume}"
            ) from error
        raise


def resume_line(run: str) -> str:
    """What to type to continue a run."""
    return f"mlx-itune resume {shlex.quote(run)}"
