"""``chat``: a conversation in the terminal; nothing of it is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlx_itune.cli import options


@options.command("chat", "mlx-itune chat --model starter --adapter adapter")
@options.model
@options.adapter
@click.option("--system", help="A system prompt.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0)
@click.option("--seed", type=click.IntRange(0), default=0)
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Talk to a model: one line per turn; /reset starts again, /quit or Ctrl-D ends.

    With --json the conversation is printed as one object when it ends.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import open_model
    from mlx_itune.dataset.conversation import Turn
    from mlx_itune.inference.generate import Generator
    from mlx_itune.inference.sampling import Sampling

    loaded, tokenizer = open_model(
        model, adapter, template=template, compute=compute, offline=offline
    )
    generator = Generator(loaded, tokenizer)
    start = [Turn("system", system)] if system else []
    turns = list(start)
    while True:
        said = _ask()
        if said is None or said == "/quit":
            break
        if said == "/reset":
            turns = list(start)
            continue
        if not said:
            continue
        turns.append(Turn("user", said))
        pieces = []
        for piece in generator.stream(
            tokenizer.prompt_ids(turns),
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_p, seed=seed + len(turns)),
        ):
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
        if not as_json:
            print()
        turns.append(Turn("assistant", "".join(pieces)))
    if as_json:
        report.emit({"messages": [turn.message() for turn in turns]})


def _ask() -> str | None:
    """The next line of the user, None at the end of input; the prompt sign goes to stderr."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
