"""What a person wants to see of a run while it runs; text only, drawn by `progress`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, duration, listing, size

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
