"""Token ids in, text out as soon as it is settled; and what that text is, as mlx-lm knows it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import load

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief

# A character whose bytes are not all there yet.
_INCOMPLETE = "�"
# Tokens that are decoded again for every new one; longer answers start a new window.
_WINDOW_TOKENS = 128


def family(path: Path, template: str) -> Any:
    """mlx-lm's tokenizer of a model directory with a template: it knows the marks of its family.
    Raises ModelError."""
    settings = {"trust_remote_code": False, "local_files_only": True, "chat_template": template}
    try:
        return load(path, settings)
    # transformers and mlx-lm raise whatever they met first.
    except Exception as error:
        raise ModelError(
            f"mlx-lm cannot load the tokenizer: {brief(error)}", where=str(path)
        ) from error


class Reply:
    """Settled text in; `content`, `reasoning_content` and `tool_calls`, as OpenAI has them, out."""

    def __init__(
        self, family: Any, prompt_ids: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> None:
        self._family, self._tools = family, list(tools)
        begins = "normal"
        if family.has_thinking:
            ids = list(prompt_ids)
            opened = family.rfind_think_start(ids) > family.rfind_think_end(ids)
            begins = "reasoning" if opened else begins
        begins = family.response_initial_state or begins
        self._state = make_text_state_machine(family).make_state(begins)
        self._call = ""
        self.calls = 0

    def push(self, text: str, *, is_last: bool = False) -> dict[str, Any]:
        """What `text` adds, by name; a call is there once it is whole."""
        self._state, parts = TextStateMachine.split(self._state, text)
        if is_last:
            self._state, rest, state = TextStateMachine.flush(self._state)
            parts.append((state, rest))
        said: dict[str, Any] = {}
        for state, piece in parts:
            if state == "tool":
                self._call += piece
                continue
            self._take_call(said)
            if piece:
                name = "reasoning_content" if state == "reasoning" else "content"
                said[name] = said.get(name, "") + piece
        if is_last:
            self._take_call(said)
        return said

    def _take_call(self, said: dict[str, Any]) -> None:
        text, self._call = self._call, ""
        if not text:
            return
        try:
            found = self._family.tool_parser(text, self._tools)
            calls = [
                {
                    "index": self.calls + n,
                    "id": call.get("id") or f"call_{uuid.uuid4().hex}",
                    "type": "function",
                    "function": {
                        "name": str(call["name"]),
                        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                    },
                }
                for n, call in enumerate(found if isinstance(found, list) else [found])
            ]
        # Whatever a model wrote between the marks: what is no call is told as it stands.
        except Exception:
            said["content"] = said.get("content", "") + text
            return
        said["tool_calls"] = said.get("tool_calls", []) + calls
        self.calls += len(calls)


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
