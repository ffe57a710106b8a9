"""Progress on stderr: a live bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, duration, listing, size

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


# What the shown train loss is the mean of, as in the run's record.
_LAST_STEPS = 20
_SPELLED_OUT = 5
_GAP = "   "


@dataclass
class TrainingView:
    """The state of a run after each event it was told of; `last` is the last step's event.

    loss: the mean over the last steps, each as much as it had tokens to learn: comparable to the
    validation loss, and the train loss that the run reports at its end.
    """

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

    def add(self, event: dict[str, Any]) -> list[str]:
        """Take in an event; the lasting lines it deserves, if any."""
        kind = event.get("event")
        if kind in ("start", "resume", "step"):
            self.step = int(event.get("step") or 0)
            self.steps = int(event.get("steps") or self.steps)
        if kind == "step":
            self._step(event)
            return []
        if kind == "checkpoint":
            self.saved = str(event.get("path") or "")
            return []
        tellers: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
            "start": self._start,
            "resume": self._resume,
            "valid": self._valid,
            "incident": self._incident,
            "warning": self._warning,
            "early_stop": self._early_stop,
            "stopped": self._stopped,
        }
        teller = tellers.get(str(kind))
        return [one_line(line) for line in teller(event)] if teller else []

    @property
    def epoch(self) -> int:
        """The one that is learned, from 1."""
        return int(self.last.get("epoch") or 0) + 1

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left, if known."""
        return self.last.get("eta_s") if self.step < self.steps else None

    def line(self) -> str:
        """Where the run is, on one line for a log."""
        left = [] if self.eta_s is None else [f"{duration(self.eta_s)} left"]
        position = [f"step {self.step:,} of {self.steps:,}", f"epoch {self.epoch}", *left]
        return ", ".join([*position, *self._facts()])

    def panel(self, width: int) -> list[str]:
        """The same on as few lines as fit `width`, with validation, without the bar."""
        facts = list(self._facts())
        if self.valid_loss is not None:
            best = f" (best {self.best_loss:.4f} at {self.best_step:,})"
            facts.insert(1, f"validation {self.valid_loss:.4f}{best}")
        return wrapped([*facts, *([f"saved {self.saved}"] if self.saved else [])], width)

    def _facts(self) -> Iterator[str]:
        last = self.last
        yield "loss -" if self.loss is None else f"loss {self.loss:.4f}"
        if last.get("learning_rate") is not None:
            yield f"lr {last['learning_rate']:.2e}"
        if last.get("supervised_tokens_per_second") is not None:
            yield f"{last['supervised_tokens_per_second']:,.0f} learned tokens/s"
        if last.get("peak_memory_bytes") is not None:
            now = last.get("memory_bytes")
            yield f"{f'{size(now)}, ' if now else ''}peak {size(last['peak_memory_bytes'])}"
        if self.skipped:
            yield f"{self.skipped:,} skipped"

    def _step(self, event: dict[str, Any]) -> None:
        self.last, loss = event, event.get("loss")
        if event.get("skipped") or loss is None or loss != loss:
            self.skipped += 1
            return
        self._recent.append((loss, float(event.get("supervised_tokens") or 1)))
        learned = sum(weight for _, weight in self._recent)
        self.loss = sum(loss * weight for loss, weight in self._recent) / learned

    def _start(self, event: dict[str, Any]) -> Iterator[str]:
        self.run = str(event.get("run") or self.run)
        about = [count(self.steps, "step")]
        for name, what in (
            ("examples", "row to learn/rows to learn"),
            ("valid_examples", "to validate/to validate"),
            ("trainable_parameters", "trainable parameter/trainable parameters"),
        ):
            if event.get(name):
                about.append(count(event[name], *what.split("/")))
        yield f"run {self.run}: {', '.join(about)}"
        if unused := event.get("rows_not_used"):
            rows = f"{unused:,} of {unused + event['rows_used']:,} rows are not used"
            limit = event.get("max_length_tokens", "--max-length")
            yield f"warning: {rows}: longer than {limit} tokens, or nothing to learn in them"
        if event.get("note"):
            yield f"note: {event['note']}"

    def _resume(self, event: dict[str, Any]) -> Iterator[str]:
        self.saved = str(event.get("checkpoint") or "")
        yield f"resumed after step {self.step:,}"
        if event.get("damaged"):
            yield f"passed over, as damaged: {listing(event['damaged'])}"
        if event.get("changed"):
            changed = "; ".join(map(str, event["changed"]))
            yield f"note: not as the run began: {changed}; last bits may differ"

    def _valid(self, event: dict[str, Any]) -> Iterator[str]:
        loss, step = event.get("loss"), event.get("step", self.step)
        if loss is None or loss != loss:
            yield f"step {step:,}: the validation loss is not finite"
            return
        self.valid_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            best = ", the best so far" if step else ", before training"
        else:
            best = f" (best {self.best_loss:.4f} at step {self.best_step:,})"
        trained = "" if self.loss is None else f", train loss {self.loss:.4f}"
        yield f"step {step:,}: validation loss {loss:.4f}{best}{trained}"

    def _incident(self, event: dict[str, Any]) -> Iterator[str]:
        self.incidents += 1
        if self.incidents <= _SPELLED_OUT:
            rows = listing(event.get("suspects") or event.get("rows") or ())
            what = "not learned, loss or gradient is not finite"
            yield f"step {event.get('step')}: {what}" + (f" ({rows})" if rows else "")
        if self.incidents == _SPELLED_OUT:
            yield f"further ones: {self.run}/incidents.jsonl"

    def _warning(self, event: dict[str, Any]) -> Iterator[str]:
        yield f"warning: {event.get('message')}"

    def _stopped(self, event: dict[str, Any]) -> Iterator[str]:
        kept = f", sealed in checkpoints/{self.saved}" if self.saved else ""
        resume = f"; continue with: {event['resume']}" if event.get("resume") else ""
        yield f"stopped after step {event.get('step', self.step):,}{kept}{resume}"

    def _early_stop(self, event: dict[str, Any]) -> Iterator[str]:
        patience = f"{event.get('patience')} validations brought no better loss"
        where = f"step {event.get('step', self.step):,}"
        yield f"{where}: stops here, {patience} than step {event.get('best_step')}"


def wrapped(facts: Sequence[str], width: int) -> list[str]:
    """`facts` side by side on lines of at most `width` columns; a longer fact is cut."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(_GAP) + len(fact) <= width:
            lines[-1] += _GAP + fact
        else:
            lines.append(fact[: max(1, width)])
    return lines
