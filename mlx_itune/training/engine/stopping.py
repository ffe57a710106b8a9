"""Ctrl-C, SIGTERM and a closed terminal: asked once, a run ends after its step; twice, at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_WANTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Signals wait in the yielded list; a second one goes at once to whoever handled it before.

    When the block is done, the first is delivered. A signal that is ignored (nohup) stays ignored.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            restore()
            signal.raise_signal(signal.Signals(number))

    try:
        for number in _WANTED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are the caller's.
        yield received
        return
    try:
        yield received
    finally:
        restore()
    if received:
        signal.raise_signal(signal.Signals(received[0]))
