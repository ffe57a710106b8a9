"""``chat``: a conversation in the terminal; nothing of it is kept."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_itune.inference.generate import ChatSession
    from mlx_itune.inference.opening import Opening
    from mlx_itune.model.serving.engine import Drawing

_ENDS = ("/exit", "/quit")
_HELP = (
    "/reset starts again, /system TEXT starts again with that system prompt, /exit or Ctrl-D ends; "
    "Ctrl-C stops an answer"
)


@options.command("chat", "mlx-itune chat --model starter --adapter adapter")
@options.opening
@click.option("--system", help="A system prompt.")
@options.stops
@options.max_tokens
@options.drawing
def command(
    opening: Opening,
    drawing: Drawing,
    system: str | None,
    stops: tuple[str, ...],
    max_tokens: int,
    as_json: bool,
) -> Result:
    """Talk to a model, one line per turn.

    /reset starts again, /system TEXT too, with that system prompt; /exit or Ctrl-D ends; Ctrl-C
    stops an answer. With --json the conversation is printed as one object when it ends.
    """
    from mlx_itune.inference.generate import ChatSession
    from mlx_itune.inference.opening import open_model

    session = ChatSession(
        *open_model(opening), stops, system=system, max_tokens=max_tokens, drawing=drawing
    )
    if sys.stdin.isatty():
        click.echo(_HELP, err=True)
    while (said := _ask()) is not None and said not in _ENDS:
        if said == "/reset":
            session.reset()
        elif said == "/system" or said.startswith("/system "):
            session.reset(said.removeprefix("/system").strip())
        elif said.startswith("/"):
            click.echo(f"no such command; {_HELP}", err=True)
        elif said:
            _answer(session, said, as_json)
    return Result({"messages": [turn.message() for turn in session.turns]})


def _answer(session: ChatSession, said: str, as_json: bool) -> None:
    """Print one answer; Ctrl-C ends it and keeps what there is."""
    try:
        with closing(session.say(said)) as pieces:
            for piece in pieces:
                if not as_json:
                    print(piece, end="", flush=True)
    except KeyboardInterrupt:
        click.echo(" (stopped)", err=True)
    except DataError as error:
        click.echo(str(error), err=True)
        return
    if not as_json:
        print()


def _ask() -> str | None:
    """The next line of the user, None at the end of input; the prompt sign goes to stderr."""
    while True:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                import readline  # noqa: F401  (history and editing keys)

                return input("> ").strip()
            line = sys.stdin.readline()
            return line.strip() if line else None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UsageError("what stdin holds is not UTF-8 text") from error
        except KeyboardInterrupt:
            click.echo(_HELP, err=True)
