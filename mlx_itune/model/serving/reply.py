"""What the text of an answer is, as mlx-lm's tables of model families know it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import load

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief


def family(path: Path, template: str) -> Any:
    """mlx-lm's tokenizer of a model directory with a template: it knows the marks of its family.

    Raises ModelError.
    """
    settings = {"trust_remote_code": False, "local_files_only": True, "chat_template": template}
    try:
        return load(path, settings)
    # transformers and mlx-lm raise whatever they met first.
    except Exception as error:
        raise ModelError(
            f"mlx-lm cannot load the tokenizer: {brief(error)}", where=str(path)
        ) from error


class Reply:
    """Settled text in, told apart: `content`, `reasoning`, and `tool_calls` in OpenAI's form."""

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
                name = "reasoning" if state == "reasoning" else "content"
                said[name] = said.get(name, "") + piece
        if is_last:
            self._take_call(said)
        return said

    def _take_call(self, said: dict[str, Any]) -> None:
        text, self._call = self._call, ""
        if not text:
            return
        try:
            calls = self._family.tool_parser(text, self._tools)
            calls = [
                (str(call["name"]), json.dumps(call["arguments"], ensure_ascii=False), call)
                for call in (calls if isinstance(calls, list) else [calls])
            ]
        # Whatever a model wrote between the marks: what is no call is told as it stands.
        except Exception:
            said["content"] = said.get("content", "") + text
            return
        for name, arguments, call in calls:
            said.setdefault("tool_calls", []).append(
                {
                    "index": self.calls,
                    "id": call.get("id") or f"call_{uuid.uuid4().hex}",
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
            )
            self.calls += 1
