"""Token ids in, text out as soon as it is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A character whose bytes are not all there yet.
_INCOMPLETE = "�"
# Tokens that are decoded again for every new one; longer answers start a new window.
_WINDOW_TOKENS = 128


class TextStream:
    """The text of a growing answer, up to the first of ``stops``.

    Held back, until it is settled: bytes of an unfinished character, and what may be the start of
    a stop string. All pieces together are ``decode`` of all tokens, cut at the stop.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._window: list[int] = []
        self._shown = 0

    def take(self, token: int, finish: str | None) -> tuple[str, str | None]:
        """(the text that a token settles, how the answer ends with it, if it does).

        finish: "stop" for a token that ends it and is none of its text, "length" for the last.
        """
        if finish != "stop":
            self._window.append(token)
        text = self._decode(self._window) if self._window else ""
        rest = text[self._shown :]
        found = [at for stop in self._stops if (at := rest.find(stop)) >= 0]
        if found:
            return rest[: min(found)], "stop"
        if finish:
            return rest, finish
        ready = rest[: len(rest) - self._unsettled(rest)]
        self._shown += len(ready)
        if len(self._window) >= _WINDOW_TOKENS and ready == rest:
            self._move_on(text)
        return ready, None

    def _move_on(self, text: str) -> None:
        """Begin a window at the last token, where that token alone reads as it does here."""
        last = self._window[-1:]
        alone = self._decode(last)
        if alone and _INCOMPLETE not in alone and text.endswith(alone):
            self._window, self._shown = last, len(alone)

    def _unsettled(self, rest: str) -> int:
        """How many characters at the end of ``rest`` may still change, or be cut."""
        # One unfinished character may show as several of them.
        settled = rest.rstrip(_INCOMPLETE)
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(settled)), 0, -1):
            if any(stop.startswith(settled[-length:]) for stop in self._stops):
                return len(rest) - len(settled) + length
        return len(rest) - len(settled)
