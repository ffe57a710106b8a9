"""When a run validates, saves and stops, as its settings say."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_itune.training.settings import TrainSettings


@dataclass(frozen=True)
class Policy:
    """When to validate, save and stop.

    patience: validations without a new best that end the run; 0 is no limit. keep_best: the adapter
    is the best step's, not the last one's.
    """

    save_every: int
    save_every_s: float
    eval_every: int
    keep: int
    patience: int
    keep_best: bool

    @classmethod
    def of(cls, settings: TrainSettings) -> Policy:
        """As the settings say."""
        return cls(
            save_every=settings.save_every,
            save_every_s=settings.save_every_s,
            eval_every=settings.eval_every,
            keep=settings.keep,
            patience=settings.early_stopping,
            keep_best=bool(getattr(settings, "keep_best", False)) or settings.early_stopping > 0,
        )

    @property
    def saves(self) -> bool:
        """Whether checkpoints are made without being asked for by a signal."""
        return self.save_every > 0 or self.save_every_s > 0 or self.keep_best
