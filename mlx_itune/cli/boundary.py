"""The one error boundary: every way a command can end, as one line and a documented exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click

from mlx_itune.kit.errors import (
    ItuneError,
    ModelError,
    ResourceError,
    StorageError,
    UsageError,
    is_panic,
)
from mlx_itune.kit.json_files import data_file, plain
from mlx_itune.kit.wording import brief, did_you_mean, name_here

_COMPLETION = "_MLX_ITUNE_COMPLETE"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEARING_S = 2.0
_AGAIN_S = 0.05
_BY_SIGNAL = 128
_STDOUT_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_OUT_OF_MEMORY = ("unable to allocate", "out of memory", "insufficient memory", "resource limit")


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwinds like Ctrl-C, so that nothing half-written stays behind."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """The first signal unwinds the command; those right behind it do not disturb the clearing."""
    quiet_until = 0.0

    def unwind(signum: int, frame: FrameType | None) -> None:
        nonlocal quiet_until
        if time.monotonic() > quiet_until:
            quiet_until = time.monotonic() + _CLEARING_S
            raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)

    def lost(fault: sys.UnraisableHookArgs) -> None:
        nonlocal quiet_until
        if not isinstance(fault.exc_value, (KeyboardInterrupt, Terminated)):
            reported(fault)
            return
        # It came in a __del__ or the like, which lets nothing through: once more, then.
        signum = getattr(fault.exc_value, "signum", signal.SIGINT)
        while True:
            # On a busy machine it may be back before the timer has begun.
            with suppress(KeyboardInterrupt, Terminated):
                quiet_until = 0.0
                threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signum)).start()
                return

    wanted = [n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, unwind) for signum in wanted}
    reported, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = reported
        for signum, handler in before.items():
            signal.signal(signum, handler)


def leave(code: int) -> NoReturn:
    """Exit; after a signal, those that follow find nothing left to interrupt."""
    if code > _BY_SIGNAL:
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
    sys.exit(code)


def guarded(group: click.Group, argv: list[str]) -> int:
    """Run ``group`` on ``argv`` and return the exit code (0-7, 129, 130, 143)."""
    as_json = "--json" in argv
    if sys.stdout is None:
        return _fail(StorageError("is closed", where="standard output"), as_json=False)
    with _signals_unwind():
        try:
            return _run(group, argv)
        except (KeyboardInterrupt, Terminated) as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            named = {signal.SIGINT: "interrupted", signal.SIGHUP: "hung up"}
            told = ItuneError(str(stop) or named.get(signum, "terminated"))
            # A stop that carries words was told of already: a run, sealed, and how it goes on.
            line = "" if stop.args else f"error: {told}; nothing half-written was kept"
            return _fail(told, as_json, line, _BY_SIGNAL + signum)
        except BrokenPipeError:
            # The reader of stdout went away (`| head`).
            _drop(1)
            return 0
        except BaseException as error:
            return _fail(_as_ours(error), as_json)


def _run(group: click.Group, argv: list[str]) -> int:
    if instruction := os.environ.get(_COMPLETION):
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "mlx-itune", _COMPLETION, instruction)
    code = 0
    try:
        # Not group.main: it turns Ctrl-C and a closed pipe into endings of its own.
        with group.make_context("mlx-itune", argv) as context:
            group.invoke(context)
    except click.exceptions.NoArgsIsHelpError as asked:
        # A bare group is a question, not a mistake.
        print(asked.ctx.get_help() if asked.ctx else asked.format_message())
    except click.exceptions.Exit as left:
        code = left.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    sys.stdout.flush()
    return code


def _as_ours(error: BaseException) -> ItuneError:
    said = str(error)
    if isinstance(error, ItuneError):
        return error
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return ItuneError(error.format_message())
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said.lower() for words in _OUT_OF_MEMORY)
    ):
        hint = "use a smaller --batch-size, --max-length or model"
        return ResourceError(f"out of memory ({brief(error)})", hint=hint)
    if isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT_FAILS:
        _drop(1)
        return StorageError(os.strerror(error.errno), where="standard output")
    if isinstance(error, OSError) and error.filename is not None:
        # Whoever opened it should have told more; a file is no bug of ours all the same.
        return StorageError(error.strerror or brief(error), where=os.fsdecode(error.filename))
    if isinstance(error, UnicodeEncodeError):
        # Files are read as UTF-8: only a name of the system's can hold what is no text.
        before, after = error.object[: error.start].split(), error.object[error.start :].split()
        name = "".join([*before[-1:], *after[:1]])
        return UsageError(f"{name!r} is no UTF-8 text", hint="give it another name")
    if isinstance(error, RuntimeError) and said.startswith("Symlink loop"):
        # pathlib's, before Python 3.13.
        return StorageError(said, hint="name another path")
    if is_panic(error):
        what = f"a library gave up on a file ({brief(error)})"
        return ModelError(what, hint="the file is broken")
    return _crash(error)


def _usage(error: click.UsageError) -> UsageError:
    hint = f"see {error.ctx.command_path} --help" if error.ctx else None
    if not isinstance(error, click.NoSuchOption):
        return UsageError(error.format_message().rstrip("."), hint=hint)
    parameters = error.ctx.command.get_params(error.ctx) if error.ctx else []
    names = [name for p in parameters for name in p.opts]
    theirs = error.option_name.lstrip("-").lower().replace("-", "_")
    table = data_file(__file__, "elsewhere")
    known = [f"--{ours}" for ours, listed in table["flags"].items() if theirs in listed.split()]
    known = [] if "--learning-rate" in names else [name for name in known if name in names]
    meant = f"did you mean {known[0]}?" if known else None
    if name_here(theirs, names) is None:
        meant = meant or table["unneeded"].get(theirs)
    meant = meant or did_you_mean(error.option_name, names)
    return UsageError(f"no such option '{error.option_name}'", hint=meant or hint)


def _crash(error: BaseException) -> ItuneError:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="mlx-itune-crash-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    what = f"a bug in mlx-itune: {type(error).__name__}: {error}"
    return ItuneError(what, hint=f"the traceback is in {file.name}")


def _fail(error: ItuneError, as_json: bool, line: str | None = None, code: int = 0) -> int:
    """Tell of an error: a line on stderr (another, or none, where it is given), one object."""
    code = code or error.exit_code
    try:
        if line != "":
            print(line or f"error: {error}", file=sys.stderr, flush=True)
    except OSError:
        # The exit code stands all the same.
        _drop(2)
    if as_json:
        told = {"message": error.message, "where": error.where, "hint": error.hint}
        with suppress(OSError, ValueError):
            print(json.dumps({"error": plain({**told, "exit_code": code})}), flush=True)
    return code


def _drop(descriptor: int) -> None:
    # Or the flush at the interpreter's exit fails, too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
