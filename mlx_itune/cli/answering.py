"""Answers: ``generate`` (one, or a file's), ``chat`` (nothing is kept) and ``serve``."""

from __future__ import annotations

import atexit
import json
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import count

if TYPE_CHECKING:
    from mlx_itune.inference.generate import ChatSession
    from mlx_itune.inference.opening import Opening
    from mlx_itune.inference.prompts import Asked
    from mlx_itune.model.serving.engine import Drawing

_ENDS = ("/exit", "/quit")
_SHORTENED = "--max-tokens ran short, and what was left was used to end it as the schema allows"
_NO_TEXT = "what stdin holds is not UTF-8 text"
_HELP = (
    "/reset starts again, /system TEXT starts again with that system prompt, /exit or Ctrl-D ends; "
    "Ctrl-C stops an answer"
)


@options.command("generate")
@options.opening
@options.as_record(
    "asked", "mlx_itune.inference.prompts:Asked", options.flags("words prompt file raw")
)
@options.flags("out-of-answers prompts-at-once stop max-tokens schema")
@options.drawing
def generate(
    opening: Opening, asked: Asked, drawing: Drawing, out: Path | None, as_json: bool, **how: Any
) -> Result:
    """Answers of a base, adapted or fused model to PROMPT, or to each prompt of --file."""
    from mlx_itune.api.answers import Model
    from mlx_itune.inference.opening import open_model
    from mlx_itune.kit.files import refuse_taken, write_new
    from mlx_itune.kit.json_files import plain

    if asked.raw and opening.system:
        raise UsageError("--raw takes no --system", hint="put it into the prompt")
    if out and not asked.file:
        raise UsageError("--out takes the answers to --file")
    if out:
        refuse_taken(out)
    how["schema"] = schema = _schema(how["schema"])
    prompts = asked.prompts(_stdin)
    model = Model(*open_model(opening))
    options.tell(() if asked.raw else model.notes)
    began = time.monotonic()
    if asked.file:
        answers = plain(model.answers(prompts, observe=_observe, drawing=drawing, **how))
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        summary = {"rows": len(answers), "out": out, "wall_s": time.monotonic() - began}
        if schema is not None and (short := sum(each["shortened"] for each in answers)):
            options.tell([f"{count(short, 'answer')}: {_SHORTENED}"])
        if not out:
            return Result({**summary, "answers": answers}, lines)
        write_new(out, "".join(line + "\n" for line in lines).encode())
        return Result(summary, [f"{out}: {count(len(answers), 'answer')}"])

    how.pop("batch_size")
    pieces = model.stream(prompts[0], drawing=drawing, **how)
    _print(pieces, as_json)
    answer = pieces.whole(began)
    if answer.shortened:
        options.tell([_SHORTENED])
    return Result(answer, [""])


def _schema(path: Path | None) -> dict[str, Any] | None:
    from mlx_itune.dataset.schema import read_schema

    return read_schema(path) if path else None


def _print(pieces: Iterable[str], as_json: bool) -> None:
    """Show an answer while it comes; with --json it is only waited for."""
    for piece in pieces:
        if not as_json:
            print(piece, end="", flush=True)


def _stdin() -> str:
    if sys.stdin.isatty():
        raise UsageError("there is no prompt", hint="give PROMPT, --file, or words on stdin")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(_NO_TEXT) from error


def _observe(done: int) -> None:
    if sys.stderr.isatty():
        print(f"answered {done:,}", file=sys.stderr)


@options.command("chat")
@options.opening
@options.flags("stop max-tokens schema")
@options.drawing
def chat(
    opening: Opening, stops: tuple[str, ...], schema: Path | None, as_json: bool, **how: Any
) -> Result:
    """Talk to a model, one line per turn.

    /reset starts again, /system TEXT too, with that system prompt; /exit or Ctrl-D ends; Ctrl-C
    stops an answer. With --json the conversation is printed as one object when it ends.
    """
    from mlx_itune.inference.generate import ChatSession
    from mlx_itune.inference.opening import open_model

    held_to = _schema(schema)
    loaded, tokenizer = open_model(opening)
    options.tell(tokenizer.notes)
    session = ChatSession(loaded, tokenizer, stops, schema=held_to, **how)
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
            _print(pieces, as_json)
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
            raise UsageError(_NO_TEXT) from error
        except KeyboardInterrupt:
            click.echo(_HELP, err=True)


@options.command("serve")
@options.based
@options.flags("model adapters host port concurrency cached-prompts kv-bits allow-origin")
@options.flags("template compute allow-other-base template-option system")
def serve(as_json: bool, **settings: Any) -> None:
    """Serve a base and its adapters over OpenAI's API: chat, completions, models, health.

    With --json the address is printed as one object once requests are answered.
    """
    from mlx_itune.inference import serve as server

    # A shell that starts it in the background has it ignore Ctrl-C's signal.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def announce(listening: server.Listening) -> None:
        if not listening.is_local:
            click.echo(
                "warning: other machines can reach this address, and whoever does can use the "
                "model: there is no password",
                err=True,
            )
        for name, notes in listening.notes.items():
            options.tell(f"{name}: {note}" for note in notes)
        facts = [("url", listening.url), ("models", ", ".join(listening.models))]
        about = pairs([*facts, ("page", listening.url.removesuffix("v1"))])
        Result(listening, about).print(as_json)
        sys.stdout.flush()
        if not as_json:
            click.echo("Ctrl-C stops it", err=True)

    signum = server.serve(server.ServeSettings(**settings), announce=announce)
    # What is left is to leave: one more Ctrl-C has nothing to interrupt.
    for each in (signal.SIGINT, signal.SIGTERM):
        atexit.register(signal.signal, each, signal.SIG_IGN)
    raise click.exceptions.Exit(128 + signum)
