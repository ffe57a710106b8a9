"""``generate``: one prompt answered as a stream, or a file of prompts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options, sampling
from mlx_itune.kit.errors import UsageError


@options.command(
    "generate", 'mlx-itune generate --model starter --adapter adapter "List the drugs."'
)
@click.argument("words", required=False, metavar="[PROMPT]")
@options.model
@options.adapter
@click.option("--prompt", help="The same as PROMPT; '-', or no prompt at all, reads stdin.")
@click.option(
    "--file",
    type=options.ANY_PATH,
    metavar="FILE",
    help="Many prompts: .jsonl with 'prompt' or 'messages', else one a line. Answers are JSONL.",
)
@click.option(
    "--out", type=options.ANY_PATH, metavar="FILE", help="Where the answers to --file go."
)
@click.option("--system", help="A system prompt.")
@click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Text that ends an answer.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Prompts of --file at once; the answers do not depend on it.",
)
@sampling.options
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    words: str | None,
    prompt: str | None,
    file: Path | None,
    out: Path | None,
    system: str | None,
    raw: bool,
    stops: tuple[str, ...],
    batch_size: int,
    max_tokens: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
    **drawing: Any,
) -> None:
    """Answers of a base, adapted or fused model to PROMPT, or to each prompt of --file."""
    from mlx_itune.cli.opening import open_model
    from mlx_itune.inference.prompts import read_prompts, said
    from mlx_itune.kit.files import refuse_taken

    if raw and system:
        raise UsageError("--raw takes no --system", hint="put it into the prompt")
    if sum(given is not None for given in (words, prompt, file)) > 1:
        raise UsageError("PROMPT, --prompt and --file exclude each other")
    if out and not file:
        raise UsageError("--out takes the answers to --file")
    if file and out:
        refuse_taken(out)
    if file:
        prompts = read_prompts(file, raw=raw, system=system)
    else:
        prompts = [said(_words(words if prompt is None else prompt), raw=raw, system=system)]
    opened = open_model(model, adapter, template=template, compute=compute, offline=offline)
    how = {"max_tokens": max_tokens, "drawing": sampling.of(drawing), "stops": stops}
    if file:
        _answer_file(opened, prompts, {**how, "batch_size": batch_size}, out, as_json)
    else:
        _stream(opened, prompts[0], how, as_json)


def _words(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", hint="give PROMPT, --file, or words on stdin")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("what stdin holds is not UTF-8 text") from error


def _stream(opened: Any, prompt: Any, how: dict[str, Any], as_json: bool) -> None:
    from mlx_itune.cli import report
    from mlx_itune.inference.generate import Generator
    from mlx_itune.inference.prompts import room_tokens

    loaded, tokenizer = opened
    ids = prompt.ids(tokenizer)
    room = room_tokens(len(ids), loaded.config, how["max_tokens"])
    began = time.monotonic()
    answer = Generator(loaded, tokenizer, how["stops"]).stream(
        ids, max_tokens=room, drawing=how["drawing"]
    )
    for piece in answer:
        if not as_json:
            print(piece, end="", flush=True)
    if not as_json:
        print()
        return
    report.emit(
        {
            "text": answer.text,
            "prompt_tokens": len(ids),
            "completion_tokens": answer.completion_tokens,
            "finish_reason": answer.finish_reason,
            "wall_s": time.monotonic() - began,
        }
    )


def _answer_file(
    opened: Any, prompts: Any, how: dict[str, Any], out: Path | None, as_json: bool
) -> None:
    from mlx_itune.cli import report
    from mlx_itune.inference.answering import answer_all
    from mlx_itune.kit.files import staged_file, write_durably

    def observe(done: int) -> None:
        if sys.stderr.isatty():
            print(f"answered {done} of {len(prompts)}", file=sys.stderr)

    loaded, tokenizer = opened
    began = time.monotonic()
    found = answer_all(loaded, tokenizer, prompts, observe=observe, **how)
    answers = [report.plain(answer) for answer in found]
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if out:
        with staged_file(out) as staged:
            write_durably(staged, lines.encode())
    summary = {"rows": len(answers), "out": out, "wall_s": time.monotonic() - began}
    if as_json:
        report.emit(summary if out else {**summary, "answers": answers})
    elif out:
        print(f"{out}: {len(answers):,} answers")
    else:
        print(lines, end="")
