"""``chat``: a conversation in the terminal; nothing of it is kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options, sampling
from mlx_itune.kit.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_itune.inference.chat import ChatSession

# Kept between turns: this one, and the one before /reset.
_CONVERSATIONS = 2
_ENDS = ("/exit", "/quit")
_HELP = (
    "/reset starts again, /system TEXT starts again with that system prompt, /exit or Ctrl-D ends; "
    "Ctrl-C stops an answer"
)


@options.command("chat", "mlx-itune chat --model starter --adapter adapter")
@options.model
@options.adapter
@click.option("--system", help="A system prompt.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Text that ends an answer.")
@sampling.options
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    system: str | None,
    stops: tuple[str, ...],
    max_tokens: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
    **drawing: Any,
) -> None:
    """Talk to a model, one line per turn.

    /reset starts again, /system TEXT too, with that system prompt; /exit or Ctrl-D ends; Ctrl-C
    stops an answer. With --json the conversation is printed as one object when it ends.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import open_model
    from mlx_itune.inference.chat import ChatSession
    from mlx_itune.inference.generate import Generator

    loaded, tokenizer = open_model(
        model, adapter, template=template, compute=compute, offline=offline
    )
    session = ChatSession(
        loaded,
        Generator(loaded, tokenizer, stops, cached_prompts=_CONVERSATIONS),
        system=system,
        max_tokens=max_tokens,
        drawing=sampling.of(drawing),
    )
    if sys.stdin.isatty():
        _note(_HELP)
    while (said := _ask()) is not None and said not in _ENDS:
        if said == "/reset":
            session.reset()
        elif said == "/system" or said.startswith("/system "):
            session.reset(said.removeprefix("/system").strip())
        elif said.startswith("/"):
            _note(f"no such command; {_HELP}")
        elif said:
            _answer(session, said, as_json)
    if as_json:
        report.emit({"messages": [turn.message() for turn in session.turns]})


def _answer(session: ChatSession, said: str, as_json: bool) -> None:
    """Print one answer; Ctrl-C ends it and keeps what there is."""
    from contextlib import closing

    try:
        with closing(session.say(said)) as pieces:
            for piece in pieces:
                if not as_json:
                    print(piece, end="", flush=True)
    except KeyboardInterrupt:
        _note(" (stopped)")
    except DataError as error:
        _note(str(error))
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
            _note(_HELP)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
