"""What a run came to, in a sentence or two, by its events: what its numbers mean, what to try."""

from __future__ import annotations

from mlx_itune.kit.errors import DivergedError
from mlx_itune.training.run.story import Story

# Relative to the loss: below, two validations are the same; over the last quarter of a run, a fall
# that more steps would go on with.
_SAME, _FALLING = 0.01, 0.03


def verdict(story: Story) -> str:
    """The sentence that a run's page opens with."""
    last = story.steps[-1] if story.steps else 0
    of = f" of {story.planned_steps:,}" if story.planned_steps not in (None, last) else ""
    if story.ending == "failed":
        if story.end.get("exit_code") == DivergedError.exit_code:
            return (
                f"Diverged at step {last:,}{of}: loss or gradient was no longer finite, and no "
                "adapter was written. Lower --learning-rate or --alpha; incidents name the rows."
            )
        return f"Ended by an error after step {last:,}{of}; {_resumable(story)}"
    if story.ending == "stopped":
        return f"Stopped after step {last:,}{of}; {_resumable(story)} {_so_far(story)}".strip()
    if story.ending != "end":
        return f"Not finished: step {last:,}{of}. {_so_far(story)}".strip()
    return " ".join(filter(None, (_learned(story), _shipped(story, last))))


def _resumable(story: Story) -> str:
    if not story.checkpoints:
        return "no checkpoint was sealed before."
    return "`mlx-itune resume` goes on from its last checkpoint."


def _so_far(story: Story) -> str:
    losses = _finite(story)
    if len(losses) < 2 or story.best is None:
        return ""
    first, now = losses[0][1], losses[-1][1]
    return f"Validation loss {first:.4g} → {now:.4g}, the best at step {story.best[0]:,}."


def _learned(story: Story) -> str:
    """What the validations of a finished run say."""
    losses = _finite(story)
    before, after = dict(losses).get(0), [item for item in losses if item[0]]
    if not after:
        return "No row was set aside for validation: nothing tells how it does on others."
    best_at, best = min(after, key=lambda item: item[1])
    last_at, last = after[-1]
    if before is not None and best > before * (1 - _SAME):
        return (
            f"Nothing was learned that helps on other rows: validation loss {before:.4g} before, "
            f"{best:.4g} at best. Look at the rows (data show), or at a lower or higher "
            "--learning-rate."
        )
    if last > best * (1 + _SAME):
        return (
            f"Best at step {best_at:,}: later steps overfit (validation loss {best:.4g}, then "
            f"{last:.4g} at step {last_at:,}). More rows help more than more steps."
        )
    gain = f"from {before:.4g} to {last:.4g}" if before is not None else f"to {last:.4g}"
    if len(after) < 3:
        return f"Validation loss went {gain}; measured too rarely to tell whether more steps help."
    earlier = [item for item in after if item[0] <= 0.75 * last_at]
    if earlier and last < earlier[-1][1] * (1 - _FALLING):
        return (
            f"Still falling: validation loss {earlier[-1][1]:.4g} at step {earlier[-1][0]:,}, "
            f"{last:.4g} at the end. More steps (--steps, --epochs) may help."
        )
    return f"Levelled off: validation loss went {gain}, little of it in the last quarter."


def _shipped(story: Story, last: int) -> str:
    step = story.end.get("adapter_step")
    if not isinstance(step, int):
        return ""
    best = story.best_learned
    if step == last and best is not None and best[0] != last and best[1] < _finite(story)[-1][1]:
        return f"The last step, {step:,}, ships all the same (--keep last)."
    return f"Step {step:,} ships."


def _finite(story: Story) -> list[tuple[int, float]]:
    """(step, loss) of the validations that gave a number, in order."""
    return sorted(item for item in story.validations.items() if item[1] == item[1])
