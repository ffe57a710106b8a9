"""Progress on stderr: a live bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlx_itune.cli.training_view import TrainingView
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 10.0
# Often enough to look alive; each refresh takes a few milliseconds from the work.
_REFRESH_PER_S = 4
_BAR_COLUMNS = 24
_BYTES = "bytes"
_TRAIN = "train"


class Progress:
    """One stage at a time, each with a count and a note; used as a context manager.

    On a terminal the stage is redrawn in place. Elsewhere a line is printed every 10 s, one at the
    end of a stage, one at every validation, and none twice.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._display: Any = None
        self._stage, self._done, self._total, self._note = "", 0, 0, ""
        self._began_s = time.monotonic()
        self._printed_s = time.monotonic()
        self._last_lines: dict[str, str] = {}
        self._finished = False
        self._run: TrainingView | None = None
        self._stopped = ""

    def __enter__(self) -> Progress:
        if self._live:
            from rich.live import Live

            from mlx_itune.cli.result import console

            self._display = Live(
                get_renderable=self._drawing,
                console=console(stderr=True),
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
                # Results on the same screen go above the bar; in a file they stay theirs.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._stopped:
            # Said already, with the way to go on: the boundary has nothing to add.
            error.args = (self._stopped,)
        if self._display is not None:
            # What is drawn last would be a finished bar: leave nothing.
            self._stage, self._run = "", None
            with _terminal_may_go():
                self._display.stop()
            self._display = None

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` in this stage; a new stage name starts a new one.

        The note "bytes" says what is counted, and the numbers are shown in megabytes.
        """
        if stage != self._stage:
            self._began_s, self._finished = time.monotonic(), False
        self._stage, self._done, self._total, self._note = stage, done, total, note
        ends = done >= total and not self._finished
        if not self._live and (ends or self._is_due()):
            # What is told again after its end, or goes on after it, is not worth a line each time.
            self._finished = self._finished or ends
            self._print(stage, f"{stage} {_amount(done, total, note)}")

    def labelled(self, label: str) -> Callable[[str, int, int], None]:
        """`update`, with a label before the name of each stage."""
        return lambda stage, done, total: self.update(f"{label} {stage}", done, total)

    def say(self, text: str) -> None:
        """One lasting line, above the bar."""
        text = one_line(text)
        if self._display is not None:
            from rich.text import Text

            with _terminal_may_go():
                self._display.console.print(Text(text), soft_wrap=True)
        else:
            _write(text)

    def training(self, event: dict[str, Any]) -> None:
        """Show one event of a training run."""
        if event.get("event") == "start" or self._run is None:
            self._run = TrainingView()
        view = self._run
        lines = view.add(event)
        for line in lines:
            self.say(line)
        kind = event.get("event")
        if kind == "stopped":
            self._stopped = lines[-1]
        if kind in ("start", "resume", "step"):
            self._stage, self._done, self._total = _TRAIN, view.step, view.steps
        if kind == "step" and not self._live and (view.step == view.steps or self._is_due()):
            self._print(_TRAIN, view.line())
        if kind in ("stopped", "failed", "end"):
            self._run, self._stage = None, ""

    def _is_due(self) -> bool:
        return time.monotonic() - self._printed_s >= _LINE_EVERY_S

    def _print(self, stage: str, line: str) -> None:
        self._printed_s = time.monotonic()
        if self._last_lines.get(stage) != line:
            self._last_lines[stage] = line
            _write(one_line(line))

    def _drawing(self) -> RenderableType:
        """What stands below the lasting lines now; called by the display's own thread."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        stage, done, total = self._stage, self._done, self._total
        view = self._run if stage == _TRAIN else None
        if not stage:
            return Text("")
        width = self._display.console.width if self._display is not None else 80
        share = min(1.0, done / total) if total > 0 else 0.0
        amount = f"{done:,} of {total:,}" if view is not None else _amount(done, total, self._note)
        facts = [one_line(stage), amount]
        if view is not None:
            left_s = view.eta_s
        else:
            left_s = (time.monotonic() - self._began_s) * (1 / share - 1) if share else None
        if left_s is not None and share < 1:
            facts.append(f"{duration(left_s)} left")
        facts.append(f"{100 * share:.0f} %")
        if view is not None:
            facts.append(f"epoch {view.epoch}")
        # On a narrow terminal epoch and percent go first, then the bar, then the time left.
        room = width - 1
        while (len(facts) > 3 and _columns(facts) + 6 > room) or (
            len(facts) > 2 and _columns(facts) > room
        ):
            facts.pop()
        bar = min(_BAR_COLUMNS, room - _columns(facts) - 2)
        row = Table.grid(padding=(0, 2, 0, 0))
        cells: list[RenderableType] = [Text(facts[0], no_wrap=True, overflow="crop")]
        if bar >= 4:
            cells.append(ProgressBar(total=max(total, 1), completed=done, width=bar))
        cells += [Text(fact, no_wrap=True, overflow="crop") for fact in facts[1:]]
        row.add_row(*cells)
        lines = view.panel(room) if view is not None else []
        return Group(row, *(Text(line, style="dim", no_wrap=True) for line in lines))


def _columns(facts: Sequence[str]) -> int:
    return sum(map(len, facts)) + 2 * (len(facts) - 1)


def _amount(done: int, total: int, note: str) -> str:
    if note != _BYTES:
        return f"{done:,} of {total:,} {note}".rstrip()
    return f"{size(done)} of {size(total)}"


def _write(line: str) -> None:
    with _terminal_may_go():
        print(line, file=sys.stderr, flush=True)


def _terminal_may_go() -> contextlib.AbstractContextManager[None]:
    """Hours of work do not end because the terminal was closed, or the reader of a pipe left."""
    return contextlib.suppress(OSError)
