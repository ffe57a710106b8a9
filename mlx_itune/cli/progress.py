"""Progress on stderr: a live bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from mlx_itune.cli.report import console

_LINE_EVERY_S = 10.0


class Progress:
    """One stage at a time, each with a count and a note; used as a context manager."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._printed_s = 0.0
        self._checkpoint = ""

    def __enter__(self) -> Progress:
        if self._live:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` in this stage; a new stage name starts a new bar."""
        if self._live:
            if stage != self._stage:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(stage, total=total, note=note)
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif done == total or time.monotonic() - self._printed_s >= _LINE_EVERY_S:
            self._printed_s = time.monotonic()
            print(f"{stage} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)
        self._stage = stage

    def say(self, text: str) -> None:
        """One lasting line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def training(self, event: dict[str, Any]) -> None:
        """Show one event of a training run."""
        kind = event["event"]
        if kind == "start":
            if event.get("note"):
                self.say(f"note: {event['note']}")
        elif kind == "step":
            self.update("train", event["step"], event["steps"], _step_note(event))
        elif kind == "valid" and event.get("loss") is not None:
            self.say(f"step {event['step']}: validation loss {event['loss']:.4f}")
        elif kind == "checkpoint":
            self._checkpoint = event["path"]
        elif kind == "stopped":
            kept = f"; sealed in checkpoints/{self._checkpoint}" if self._checkpoint else ""
            self.say(f"stopped after step {event['step']}{kept}")


def _step_note(event: dict[str, Any]) -> str:
    loss = event["loss"]
    shown = "skipped" if event["skipped"] or loss is None else f"loss {loss:.4f}"
    return (
        f"{shown}  {event['tokens_per_second']:,.0f} tokens/s  "
        f"{event['eta_s']:.0f} s left  {event['peak_memory_bytes'] / 1e9:.2f} GB"
    )
