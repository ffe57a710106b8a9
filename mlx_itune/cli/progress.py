"""Progress on stderr: a live bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, duration, listing, size

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 10.0
# Often enough to look alive; each refresh takes a few milliseconds from the work.
_REFRESH_PER_S = 4
_BAR_COLUMNS = 24
_TRAIN = "train"
# What the shown train loss is the mean of, as in the run's record.
_LAST_STEPS = 20
_INCIDENTS_TOLD = 5


class Progress:
    """One stage at a time, each with a count and a note; used as a context manager. On a terminal
    it is redrawn in place; elsewhere a line every 10 s, at each end and validation."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._display: Any = None
        self._stage, self._done, self._total, self._amount = "", 0, 0, ""
        self._began_s = self._printed_s = time.monotonic()
        self._last_lines: dict[str, str] = {}
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self._stopped:
            # Said already, with the way to go on: the boundary has nothing to add.
            error.args = (self._stopped,)
        if self._display is not None:
            # What is drawn last would be a finished bar: leave nothing.
            self._stage = ""
            with contextlib.suppress(OSError):
                self._display.stop()
            self._display = None

    def update(
        self, stage: str, done: int, total: int, told: Callable[[int], str] = "{:,}".format
    ) -> None:
        """`done` of `total` in this stage, told in words; a new stage name starts a new one."""
        if stage != self._stage:
            self._began_s = time.monotonic()
        self._stage, self._done, self._total = stage, done, total
        self._amount = f"{told(done)} of {told(total)}"
        self._log(stage, f"{stage} {self._amount}", done >= total)

    def bytes(self, stage: str, done: int, total: int) -> None:
        """`update`, of bytes."""
        self.update(stage, done, total, size)

    def bytes_of(self, stage: str, total: int) -> Callable[[int], None]:
        """What a reader tells of each further stretch of `total` bytes."""
        from mlx_itune.api.rows import told_bytes

        return told_bytes(self.bytes, stage, total)

    def say(self, text: str) -> None:
        """One lasting line, above the bar."""
        # Hours of work do not end because the terminal was closed, or the reader of a pipe left.
        with contextlib.suppress(OSError):
            if self._display is not None:
                from rich.text import Text

                self._display.console.print(Text(one_line(text)), soft_wrap=True)
            else:
                print(one_line(text), file=sys.stderr, flush=True)

    def training(self, event: dict[str, Any]) -> None:
        """Show one event of a training run."""
        kind = event["event"]
        if kind == "progress":
            self.update(event["stage"], event["done"], event["total"])
            return
        if kind == "start" or self._run is None:
            self._run = TrainingView()
        view = self._run
        lines = [*view.told(event)]
        for line in lines:
            self.say(line)
        if kind in ("start", "resume", "step"):
            self._stage, self._done, self._total = _TRAIN, view.step, view.steps
        if kind == "step":
            self._log(_TRAIN, view.line(), view.step == view.steps)
        if kind == "stopped":
            self._stopped = lines[-1]
        if kind in ("stopped", "failed", "end"):
            self._run, self._stage = None, ""

    def _log(self, stage: str, line: str, ends: bool) -> None:
        is_due = ends or time.monotonic() - self._printed_s >= _LINE_EVERY_S
        if is_due and not self._live:
            self._printed_s = time.monotonic()
            if self._last_lines.get(stage) != line:
                self._last_lines[stage] = line
                self.say(line)

    def _drawing(self) -> RenderableType:
        """What stands below the lasting lines now; called by the display's own thread."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        stage, done, total = self._stage, self._done, self._total
        view = self._run if stage == _TRAIN else None
        if not stage:
            return Text("")
        share = min(1.0, done / total) if total > 0 else 0.0
        left_s = (time.monotonic() - self._began_s) * (1 / share - 1) if share else None
        if view:
            left_s = view.eta_s
        facts = [one_line(stage), f"{done:,} of {total:,}" if view else self._amount]
        facts += [f"{duration(left_s)} left"] if left_s is not None and share < 1 else []
        facts += [f"{100 * share:.0f} %", *([f"epoch {view.epoch}"] if view else [])]
        # On a narrow terminal epoch and percent go first, then the bar, then the time left.
        room = (self._display.console.width if self._display is not None else 80) - 1
        while len(facts) > 2 and len("  ".join(facts)) + (6 if len(facts) > 3 else 0) > room:
            facts.pop()
        cells: list[RenderableType] = [Text(fact, no_wrap=True, overflow="crop") for fact in facts]
        bar = min(_BAR_COLUMNS, room - len("  ".join(facts)) - 2)
        if bar >= 4:
            cells.insert(1, ProgressBar(total=max(total, 1), completed=done, width=bar))
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(*cells)
        below = [Text(fact, style="dim") for fact in view.panel()] if view else []
        return Group(row, Columns(below, padding=(0, 3, 0, 0)))


@dataclass
class TrainingView:
    """The state of a run after each event it was told of; `last` is the last step's event; loss:
    the mean over the last steps by tokens, as the run reports it."""

    run: str = ""
    step: int = 0
    steps: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    loss: float | None = None
    valid_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    skipped: int = 0
    incidents: int = 0
    saved: str = ""
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LAST_STEPS))

    @property
    def epoch(self) -> int:
        """The one that is learned, from 1."""
        return int(self.last.get("epoch", 0)) + 1

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left, if known."""
        return self.last.get("eta_s") if self.step < self.steps else None

    def line(self) -> str:
        """Where the run is, on one line for a log."""
        left = [] if self.eta_s is None else [f"{duration(self.eta_s)} left"]
        position = [f"step {self.step:,} of {self.steps:,}", f"epoch {self.epoch}", *left]
        return ", ".join([*position, *self._facts()])

    def panel(self) -> list[str]:
        """The same without the bar's facts, with validation and checkpoint."""
        facts = list(self._facts())
        if self.valid_loss is not None:
            best = f" (best {self.best_loss:.4f} at {self.best_step:,})"
            facts.insert(1, f"validation {self.valid_loss:.4f}{best}")
        return [*facts, *([f"saved {self.saved}"] if self.saved else [])]

    def _facts(self) -> Iterator[str]:
        yield "loss -" if self.loss is None else f"loss {self.loss:.4f}"
        if last := self.last:
            yield f"lr {last['learning_rate']:.2e}"
            yield f"{last['supervised_tokens_per_second']:,.0f} learned tokens/s"
            yield f"{size(last['memory_bytes'])}, peak {size(last['peak_memory_bytes'])}"
        if self.skipped:
            yield f"{self.skipped:,} skipped"

    def told(self, event: dict[str, Any]) -> Iterator[str]:
        """Take in an event; the lasting lines it deserves, if any."""
        if event["event"] in ("start", "resume", "step"):
            self.step = event.get("step", 0)
            self.steps = event.get("steps", self.steps)
        kind, step = event["event"], event.get("step", self.step)
        if kind == "start":
            yield from self._start(event)
        elif kind == "rate":
            loss = event["loss"]
            yield f"learning rate {event['learning_rate']:g}: loss {loss:.4f} on the next rows"
        elif kind == "step":
            self._step(event)
        elif kind == "valid":
            yield self._valid(event["loss"], step)
        elif kind == "checkpoint":
            self.saved = event["path"]
        elif kind == "resume":
            self.saved = event.get("checkpoint") or ""
            yield f"resumed after step {step:,}"
            if event.get("damaged"):
                yield f"passed over, as damaged: {listing(event['damaged'])}"
            if event.get("changed"):
                changed = "; ".join(map(str, event["changed"]))
                yield f"note: not as the run began: {changed}; last bits may differ"
        elif kind == "incident":
            self.incidents += 1
            if self.incidents <= _INCIDENTS_TOLD:
                rows = listing(event["suspects"] or event["rows"])
                yield f"step {step}: not learned, loss or gradient is not finite ({rows})"
            if self.incidents == _INCIDENTS_TOLD:
                yield f"further ones: {self.run}/incidents.jsonl"
        elif kind == "warning":
            yield f"warning: {event['message']}"
        elif kind == "early_stop":
            patience = f"{event['patience']} validations brought no better loss"
            yield f"step {step:,}: stops here, {patience} than step {event['best_step']}"
        elif kind == "stopped":
            kept = f", sealed in checkpoints/{self.saved}" if self.saved else ""
            resume = f"; continue with: {event['resume']}" if event.get("resume") else ""
            yield f"stopped after step {step:,}{kept}{resume}"

    def _start(self, event: dict[str, Any]) -> Iterator[str]:
        self.run = event["run"]
        about = [count(self.steps, "step")]
        for name, one, many in (
            ("examples", "row to learn", "rows to learn"),
            ("valid_examples", "to validate", "to validate"),
            ("trainable_parameters", "trainable parameter", "trainable parameters"),
        ):
            about += [count(event[name], one, many)] if event.get(name) else []
        if event.get("eval_every"):
            about[2] += (
                f" ({event['valid_rows']} of them every {count(event['eval_every'], 'step')})"
            )
        planned = event.get("planned_examples") or 0
        if 0 < planned < event["examples"]:
            about[1] = f"{planned:,} of {about[1]}"
        yield f"run {self.run}: {', '.join(about)}"
        if unused := event.get("rows_not_used"):
            rows = f"{unused:,} of {unused + event['rows_used']:,} rows are not used"
            limit = event["max_length_tokens"]
            yield f"warning: {rows}: longer than {limit} tokens, or nothing to learn in them"
        for note in (*event.get("notes", ()), *([event["note"]] if event.get("note") else [])):
            yield f"note: {note}"
        if event.get("paths", {}).get("backward") == "dequantized":
            yield "quantized layers go back through copies of their weights: faster on this GPU"

    def _step(self, event: dict[str, Any]) -> None:
        self.last, loss = event, event["loss"]
        if event["skipped"] or loss is None or loss != loss:
            self.skipped += 1
            return
        from mlx_itune.training.run.run import train_loss

        self._recent.append((loss, float(event.get("weight") or 1)))
        self.loss = train_loss(self._recent)

    def _valid(self, loss: float | None, step: int) -> str:
        if loss is None or loss != loss:
            return f"step {step:,}: the validation loss is not finite"
        self.valid_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            best = ", the best so far" if step else ", before training"
        else:
            best = f" (best {self.best_loss:.4f} at step {self.best_step:,})"
        trained = "" if self.loss is None else f", train loss {self.loss:.4f}"
        return f"step {step:,}: validation loss {loss:.4f}{best}{trained}"
