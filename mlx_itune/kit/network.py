"""Offline means offline: no library of ours may open a socket."""

from __future__ import annotations

import os

_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")


def go_offline() -> None:
    """Stay off the network from here on, the Hugging Face libraries included. They read these
    variables when they are imported, so call this first."""
    for name in _VARIABLES:
        os.environ[name] = "1"


def offline() -> bool:
    """Whether this process was told to stay off the network (`--offline`, or HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
