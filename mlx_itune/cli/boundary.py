"""The one error boundary: every way a command can end, as one line and a documented exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from mlx_itune.kit.errors import ItuneError, ResourceError, UsageError, closest

_COMPLETION = "_MLX_ITUNE_COMPLETE"
_OUT_OF_MEMORY = ("unable to allocate", "out of memory", "insufficient memory", "resource limit")


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like Ctrl-C, so that nothing half-written stays behind."""


@contextmanager
def _signals_unwind() -> Iterator[None]:
    def unwind(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, unwind) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(group: click.Group, argv: list[str]) -> int:
    """Run ``group`` on ``argv`` and return the exit code (0-7, 130, 143)."""
    as_json = "--json" in argv
    try:
        with _signals_unwind():
            if _COMPLETION in os.environ:
                group.main(args=argv, prog_name="mlx-itune", complete_var=_COMPLETION)
            # Not group.main: it turns Ctrl-C and a closed pipe into endings of its own.
            with group.make_context("mlx-itune", argv) as context:
                group.invoke(context)
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as left:
        return left.exit_code
    except ItuneError as error:
        return _fail(error, as_json)
    except click.UsageError as error:
        return _fail(_usage(error), as_json)
    except click.ClickException as error:
        return _fail(ItuneError(error.format_message()), as_json)
    except (KeyboardInterrupt, click.Abort) as stop:
        return _stopped(stop, "interrupted", 130, as_json)
    except Terminated as stop:
        return _stopped(stop, "terminated", 143, as_json)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`); point it elsewhere or the exit flush fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return _fail(_too_big(error), as_json)
    except Exception as error:
        if isinstance(error, RuntimeError) and _is_out_of_memory(error):
            return _fail(_too_big(error), as_json)
        return _fail(_crash(error), as_json)


def _usage(error: click.UsageError) -> UsageError:
    """Click's message, with a did-you-mean where an option was mistyped."""
    hint = f"see {error.ctx.command_path} --help" if error.ctx else None
    if isinstance(error, click.NoSuchOption):
        options = (
            [name for p in error.ctx.command.get_params(error.ctx) for name in p.opts]
            if error.ctx
            else []
        )
        near = closest(error.option_name, options)
        message = f"no such option '{error.option_name}'"
        return UsageError(message, hint=f"did you mean {near}?" if near else hint)
    return UsageError(error.format_message().rstrip("."), hint=hint)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return any(mark in str(error).lower() for mark in _OUT_OF_MEMORY)


def _too_big(error: BaseException) -> ResourceError:
    said = str(error).splitlines()[0] if str(error) else "no detail given"
    return ResourceError(
        f"out of memory ({said})", hint="use a smaller --batch-size, --max-length or model"
    )


def _crash(error: Exception) -> ItuneError:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="mlx-itune-crash-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    return ItuneError(
        f"a bug in mlx-itune: {type(error).__name__}: {error}",
        hint=f"the traceback is in {file.name}",
    )


def _fail(error: ItuneError, as_json: bool) -> int:
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        body = {
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        print(json.dumps({"error": body}))
    return error.exit_code


def _stopped(stop: BaseException, what: str, code: int, as_json: bool) -> int:
    """A stop that carries words was told of already: a run, sealed, and how it goes on."""
    if not stop.args:
        print(f"error: {what}; nothing half-written was kept", file=sys.stderr)
    if as_json:
        body = {"message": str(stop) or what, "where": None, "hint": None, "exit_code": code}
        print(json.dumps({"error": body}))
    return code
