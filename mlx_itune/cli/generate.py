"""``generate``: one prompt answered as a stream, or a file of prompts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import count

if TYPE_CHECKING:
    from mlx_itune.inference.opening import Opening
    from mlx_itune.inference.prompts import Asked
    from mlx_itune.model.serving.engine import Drawing


@options.command(
    "generate", 'mlx-itune generate --model starter --adapter adapter "List the drugs."'
)
@options.opening
@options.as_record(
    "asked",
    "mlx_itune.inference.prompts:Asked",
    click.argument("words", required=False, metavar="[PROMPT]"),
    click.option("--prompt", help="The same as PROMPT; '-', or no prompt at all, reads stdin."),
    click.option(
        "--file",
        type=options.ANY_PATH,
        metavar="FILE",
        help="Many prompts: .jsonl with 'prompt' or 'messages', else one a line. Answers are "
        "JSONL.",
    ),
    click.option("--system", help="A system prompt."),
    click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is."),
)
@click.option(
    "--out", type=options.ANY_PATH, metavar="FILE", help="Where the answers to --file go."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Prompts of --file at once; the answers do not depend on it.",
)
@options.stops
@options.max_tokens
@options.drawing
def command(
    opening: Opening, asked: Asked, drawing: Drawing, out: Path | None, as_json: bool, **how: Any
) -> Result:
    """Answers of a base, adapted or fused model to PROMPT, or to each prompt of --file."""
    from mlx_itune.inference.generate import Generator, answer_all
    from mlx_itune.inference.opening import open_model
    from mlx_itune.inference.prompts import room_tokens
    from mlx_itune.kit.files import refuse_taken, write_new
    from mlx_itune.kit.json_files import plain

    if out and not asked.file:
        raise UsageError("--out takes the answers to --file")
    if out:
        refuse_taken(out)
    prompts = asked.prompts(_stdin)
    loaded, tokenizer = open_model(opening)
    began = time.monotonic()
    if asked.file:
        found = answer_all(loaded, tokenizer, prompts, drawing=drawing, observe=_observe, **how)
        answers = plain(found)
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        summary = {"rows": len(answers), "out": out, "wall_s": time.monotonic() - began}
        if out:
            write_new(out, "".join(line + "\n" for line in lines).encode())
            return Result(summary, [f"{out}: {count(len(answers), 'answer')}"])
        return Result({**summary, "answers": answers}, lines)

    ids = prompts[0].ids(tokenizer)
    room = room_tokens(len(ids), loaded.config, how["max_tokens"])
    answer = Generator(loaded, tokenizer, how["stops"]).stream(
        ids, max_tokens=room, drawing=drawing
    )
    for piece in answer:
        if not as_json:
            print(piece, end="", flush=True)
    whole = {
        "text": answer.text,
        "prompt_tokens": len(ids),
        "completion_tokens": answer.completion_tokens,
        "finish_reason": answer.finish_reason,
        "wall_s": time.monotonic() - began,
    }
    return Result(whole, [""])


def _stdin() -> str:
    if sys.stdin.isatty():
        raise UsageError("there is no prompt", hint="give PROMPT, --file, or words on stdin")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("what stdin holds is not UTF-8 text") from error


def _observe(done: int) -> None:
    if sys.stderr.isatty():
        print(f"answered {done:,}", file=sys.stderr)
