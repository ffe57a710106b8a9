"""``generate``: one prompt, one answer, streamed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError


@options.command(
    "generate", 'mlx-itune generate --model starter --adapter adapter --prompt "List the drugs."'
)
@options.model
@options.adapter
@click.option("--prompt", required=True, help="The user's words; '-' reads them from stdin.")
@click.option("--system", help="A system prompt.")
@click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0)
@click.option("--seed", type=click.IntRange(0), default=0)
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    prompt: str,
    system: str | None,
    raw: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """One answer of a base, adapted or fused model."""
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import open_model
    from mlx_itune.dataset.conversation import Turn
    from mlx_itune.inference.generate import Generator
    from mlx_itune.inference.sampling import Sampling

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise UsageError("the prompt is empty", hint="give --prompt some words")
    if raw and system:
        raise UsageError("--raw takes no --system", hint="put it into the prompt")
    loaded, tokenizer = open_model(
        model, adapter, template=template, compute=compute, offline=offline
    )
    turns = [Turn("system", system)] if system else []
    prompt_ids = (
        tokenizer.encode(text).ids.tolist()
        if raw
        else tokenizer.prompt_ids([*turns, Turn("user", text)])
    )
    began = time.monotonic()
    pieces = []
    for piece in Generator(loaded, tokenizer).stream(
        prompt_ids, max_tokens=max_tokens, sampling=Sampling(temperature, top_p, seed=seed)
    ):
        pieces.append(piece)
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        answer = "".join(pieces)
        elapsed_s = time.monotonic() - began
        report.emit({"text": answer, "prompt_tokens": len(prompt_ids), "wall_s": elapsed_s})
    else:
        print()
