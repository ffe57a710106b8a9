"""Personal data: found by offline rules, replaced by typed placeholders.

docs/decisions/0010-pii.md says what each kind covers; a `Detector` may know names of people.
"""

from __future__ import annotations

from mlx_itune.dataset.cleaning.pii.find import Detector, Hit, find, known_kinds
from mlx_itune.dataset.cleaning.pii.kinds import KINDS
from mlx_itune.dataset.cleaning.pii.redact import redact, redact_conversation

__all__ = [
    "KINDS",
    "Detector",
    "Hit",
    "find",
    "known_kinds",
    "redact",
    "redact_conversation",
]
