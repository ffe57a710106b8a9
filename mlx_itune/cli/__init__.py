"""The command line: one file per command, imported only when that command runs.

``mlx-itune --help`` reads the table below and imports nothing else, so it answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click

from mlx_itune import __version__
from mlx_itune.cli.boundary import guarded
from mlx_itune.cli.lazy import LazyGroup

COMMANDS = {
    "quickstart": ("quickstart", "The whole job on the embedded starter model, offline."),
    "data": ("data", "Import, check, clean, show and trace data sets."),
    "plan": ("plan", "Predicted peak memory and time of a run, and what to change."),
    "train": ("train", "Tune a model on a data set; writes a LoRA adapter."),
    "resume": ("resume", "Go on with a run that was stopped or killed, bit for bit."),
    "runs": ("runs", "What was trained: list, show, verify, prune."),
    "eval": ("evaluate", "Exact loss, exact match and token-F1 on all rows, base against tuned."),
    "compare": (
        "compare",
        "Base, tuned, fused and exported models side by side: loss, scores, KL.",
    ),
    "generate": ("generate", "One answer, streamed, or the answers to a file of prompts."),
    "chat": ("chat", "A conversation in the terminal."),
    "serve": ("serve", "An OpenAI-compatible server: a base and its adapters, by name."),
    "fuse": ("fuse", "Merge an adapter into one model directory; measures what the merge lost."),
    "export": ("export", "Write a model for another runtime, read it back and verify it."),
    "verify": ("verify", "Whether a bundle's files are those that were made."),
    "import": ("import_adapter", "A PEFT adapter as one of ours."),
    "doctor": ("doctor", "What this machine can do, and what is missing."),
}

EPILOG = """\b
Start here:   mlx-itune quickstart
Your data:    mlx-itune data check rows.jsonl
Your model:   mlx-itune train --model mlx-community/Qwen3-0.6B-4bit --data rows.jsonl --out adapter
"""


@click.group(
    cls=LazyGroup,
    commands_table={
        name: (f"mlx_itune.cli.{module}", "command", help_line)
        for name, (module, help_line) in COMMANDS.items()
    },
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mlx-itune")
def cli() -> None:
    """Instruction tuning on a Mac: raw rows in; adapter, fused and exported model out.

    Every command takes --json (one object on stdout) and --offline (no socket is opened).
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; leaves the process with the documented exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text; what is printed of it then is, in escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(guarded(cli, list(sys.argv[1:] if argv is None else argv)))
