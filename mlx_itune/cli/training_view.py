"""What a person wants to see of a run while it runs; text only, drawn by `progress`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_itune.kit.errors import one_line

# The shown train loss looks back over some so many steps.
_SMOOTHED_STEPS = 20
_SPELLED_OUT = 5
_GAP = "   "


@dataclass
class TrainingView:
    """The state of a run after each event it was told of."""

    run: str = ""
    step: int = 0
    steps: int = 0
    epoch: int = 0
    loss: float | None = None
    valid_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    learning_rate: float | None = None
    speed: float | None = None
    eta_s: float | None = None
    memory_bytes: int | None = None
    peak_bytes: int | None = None
    skipped: int = 0
    saved: str = ""
    incidents: int = 0
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, event: dict[str, Any]) -> list[str]:
        """Take in an event; the lasting lines it deserves, if any."""
        kind = event.get("event")
        told = getattr(self, f"_{kind}")(event) if kind in _KINDS else []
        return [one_line(line) for line in told]

    def line(self) -> str:
        """Where the run is, on one line for a log."""
        return ", ".join(self._facts())

    def panel(self, width: int) -> list[str]:
        """The same as few lines as fit `width`, without the bar; the most wanted facts first."""
        return wrapped(self._facts(position=False), width)

    def _facts(self, *, position: bool = True) -> list[str]:
        facts = []
        if position:
            facts += [f"step {self.step:,} of {self.steps:,}", f"epoch {self.epoch + 1}"]
            if self.eta_s is not None and self.step < self.steps:
                facts.append(f"{duration(self.eta_s)} left")
        facts.append("loss -" if self.loss is None else f"loss {self.loss:.4f}")
        if not position and self.valid_loss is not None:
            best = f" (best {self.best_loss:.4f} at {self.best_step:,})"
            facts.append(f"validation {self.valid_loss:.4f}{best}")
        if self.learning_rate is not None:
            facts.append(f"lr {self.learning_rate:.2e}")
        if self.speed is not None:
            facts.append(f"{self.speed:,.0f} learned tokens/s")
        facts += self._memory()
        if self.skipped:
            facts.append(f"{self.skipped:,} skipped")
        if not position and self.saved:
            facts.append(f"saved {self.saved}")
        return facts

    def _memory(self) -> list[str]:
        if self.peak_bytes is None:
            return []
        now = "" if self.memory_bytes is None else f"{size(self.memory_bytes)}, "
        return [f"{now}peak {size(self.peak_bytes)}"]

    def _start(self, event: dict[str, Any]) -> list[str]:
        self.run, self.steps = str(event.get("run") or self.run), int(event.get("steps") or 0)
        rows, valid = event.get("examples"), event.get("valid_examples")
        about = [f"{self.steps:,} steps"]
        if rows is not None:
            about.append(f"{rows:,} rows to learn")
        if valid:
            about.append(f"{valid:,} to validate")
        if event.get("trainable_parameters"):
            about.append(f"{event['trainable_parameters']:,} trainable parameters")
        lines = [f"run {self.run}: {', '.join(about)}"]
        if event.get("rows_not_used"):
            rows = f"{event['rows_not_used']:,} of {event['rows_not_used'] + event['rows_used']:,}"
            limit = event.get("max_length_tokens", "--max-length")
            lines.append(
                f"warning: {rows} rows are not used: longer than {limit} tokens, "
                "or nothing to learn in them"
            )
        if event.get("note"):
            lines.append(f"note: {event['note']}")
        return lines

    def _resume(self, event: dict[str, Any]) -> list[str]:
        self.step, self.saved = int(event.get("step") or 0), str(event.get("checkpoint") or "")
        lines = [f"resumed after step {self.step:,}"]
        if event.get("damaged"):
            lines.append(f"passed over, as damaged: {', '.join(map(str, event['damaged']))}")
        if event.get("changed"):
            changed = "; ".join(map(str, event["changed"]))
            lines.append(f"note: not as the run began: {changed}; last bits may differ")
        return lines

    def _step(self, event: dict[str, Any]) -> list[str]:
        self.step, self.steps = event["step"], event["steps"]
        self.epoch = int(event.get("epoch") or 0)
        self.learning_rate, self.eta_s = event.get("learning_rate"), event.get("eta_s")
        self.speed = event.get("supervised_tokens_per_second")
        self.memory_bytes = event.get("memory_bytes")
        self.peak_bytes = event.get("peak_memory_bytes")
        loss = event.get("loss")
        if event.get("skipped") or loss is None or loss != loss:
            self.skipped += 1
            return []
        # The exponential mean, each step as much as it had tokens to learn: comparable to the
        # validation loss, and to the loss that the run reports at its end.
        keep = 1 - 1 / _SMOOTHED_STEPS
        weight = float(event.get("supervised_tokens") or 1)
        self._sum = keep * self._sum + weight * loss
        self._weight = keep * self._weight + weight
        self.loss = self._sum / self._weight
        return []

    def _valid(self, event: dict[str, Any]) -> list[str]:
        loss, step = event.get("loss"), event.get("step", self.step)
        if loss is None or loss != loss:
            return [f"step {step:,}: the validation loss is not finite"]
        self.valid_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            best = ", the best so far" if step else ", before training"
        else:
            best = f" (best {self.best_loss:.4f} at step {self.best_step:,})"
        trained = "" if self.loss is None else f", train loss {self.loss:.4f}"
        return [f"step {step:,}: validation loss {loss:.4f}{best}{trained}"]

    def _checkpoint(self, event: dict[str, Any]) -> list[str]:
        self.saved = str(event.get("path") or "")
        return []

    def _incident(self, event: dict[str, Any]) -> list[str]:
        self.incidents += 1
        if self.incidents > _SPELLED_OUT:
            return []
        rows = event.get("suspects") or event.get("rows") or []
        named = f" ({', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''})"
        lines = [
            f"step {event.get('step')}: not learned, loss or gradient is not finite"
            + (named if rows else "")
        ]
        if self.incidents == _SPELLED_OUT:
            lines.append(f"further ones: {self.run}/incidents.jsonl")
        return lines

    def _stopped(self, event: dict[str, Any]) -> list[str]:
        kept = f", sealed in checkpoints/{self.saved}" if self.saved else ""
        line = f"stopped after step {event.get('step', self.step):,}{kept}"
        return [f"{line}; continue with: {event['resume']}" if event.get("resume") else line]

    def _warning(self, event: dict[str, Any]) -> list[str]:
        return [f"warning: {event.get('message')}"]

    def _early_stop(self, event: dict[str, Any]) -> list[str]:
        return [
            f"step {event.get('step', self.step):,}: stops here, "
            f"{event.get('patience')} validations brought no better loss "
            f"than step {event.get('best_step')}"
        ]


_KINDS = frozenset("start resume step valid checkpoint incident warning early_stop stopped".split())


def wrapped(facts: Sequence[str], width: int) -> list[str]:
    """`facts` side by side on lines of at most `width` columns; a longer fact is cut."""
    lines: list[str] = []
    for fact in facts:
        fits = lines and len(lines[-1]) + len(_GAP) + len(fact) <= width
        if fits:
            lines[-1] += _GAP + fact
        else:
            lines.append(fact[: max(1, width)])
    return lines


def duration(seconds: float) -> str:
    """A wait: "42 s", "3 min 05 s", "2 h 10 min"."""
    if not 0 <= seconds < 1e8:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count_bytes: float) -> str:
    """Memory: "125 MB", "2.31 GB"."""
    return f"{count_bytes / 1e9:.2f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.0f} MB"
