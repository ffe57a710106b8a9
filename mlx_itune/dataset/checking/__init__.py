"""Every fault of every row: broken, repeated, leaked, out of place."""

from __future__ import annotations

from mlx_itune.dataset.checking.check import Check, Tokens
from mlx_itune.dataset.checking.lints import Lint, load_lints

__all__ = ["Check", "Lint", "Tokens", "load_lints"]
