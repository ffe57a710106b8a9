"""Offline means offline: no library of ours may open a socket."""

from __future__ import annotations

import os


def go_offline() -> None:
    """Tell the Hugging Face libraries to stay off the network.

    They read these variables when they are imported, so call this first.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
