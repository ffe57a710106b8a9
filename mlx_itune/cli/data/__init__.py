"""``data``: from any instruction file to rows that can be trusted."""

from __future__ import annotations

from mlx_itune.cli import COMMANDS, LazyGroup

command = LazyGroup("data", within="data", help=COMMANDS["data"]["about"])
