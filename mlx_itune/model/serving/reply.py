"""What the text of an answer is: words, thoughts and calls of tools, told apart by their marks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import load

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief

# What make_text_state_machine asks a tokenizer for.
_TRAITS = (
    "has_thinking", "think_start", "think_end", "has_tool_calling", "tool_call_start",
    "tool_call_end", "structural_markers", "response_transitions",
)  # fmt: skip
# Before a call that nothing else marks: Llama 3 writes it where it was trained on built-in tools.
_BARE_MARK = "<|python_tag|>"
Parse = Callable[[str, Sequence[Mapping[str, Any]]], Any]


@dataclass(frozen=True)
class Form:
    """How the answers behind one chat template are read. marks: around calls; "" before them: an
    answer that is JSON is a call. note: what is not understood of it."""

    traits: Any
    marks: tuple[str, str] = ("", "")
    parse: Parse | None = None
    initial: str = "normal"
    note: str = ""

    @property
    def is_bare(self) -> bool:
        """Whether nothing marks a call."""
        return self.parse is not None and not self.marks[0]


def family_form(path: Path, template: str) -> Form:
    """How answers of a model directory with a template are read, as mlx-lm knows its family. Raises
    ModelError."""
    settings = {"trust_remote_code": False, "local_files_only": True, "chat_template": template}
    try:
        family = load(path, settings)
    # transformers and mlx-lm raise whatever they met first.
    except Exception as error:
        raise ModelError(
            f"mlx-lm cannot load the tokenizer: {brief(error)}", where=str(path)
        ) from error
    traits = SimpleNamespace(**{name: getattr(family, name) for name in _TRAITS})
    marks = (family.tool_call_start or "", family.tool_call_end or "")
    return Form(traits, marks, family.tool_parser, family.response_initial_state or "normal")


class Reply:
    """Settled text in; `content`, `reasoning_content` and `tool_calls`, as OpenAI has them, out.
    opened: whether the prompt ends within a thought."""

    def __init__(
        self, form: Form, tools: Sequence[Mapping[str, Any]] = (), *, opened: bool = False
    ) -> None:
        self._form, self._tools = form, list(tools)
        begins = "reasoning" if opened and form.traits.has_thinking else form.initial
        self._state = make_text_state_machine(form.traits).make_state(begins)
        self._names = {tool.get("function", {}).get("name") for tool in tools}
        self._call = ""
        # An answer that may be a call as a whole.
        self._bare: str | None = "" if form.is_bare and tools else None
        # Empty lines are none of the words behind a thought or before a call.
        self._is_behind, self._has_words, self._blank = begins == "reasoning", False, ""
        self.calls = 0

    def push(self, text: str, *, is_last: bool = False) -> dict[str, Any]:
        """What `text` adds, by name; a call is there once it is whole."""
        said: dict[str, Any] = {}
        if self._bare is not None:
            whole = self._bare + text
            begin = whole.lstrip()
            may_be = begin.startswith(("{", "[", _BARE_MARK)) or _BARE_MARK.startswith(begin)
            if is_last and may_be and begin:
                self._take_call(whole.replace(_BARE_MARK, ""), whole, said)
            self._bare = whole if may_be else None
            text = "" if may_be and (begin or not is_last) else whole
        self._state, parts = TextStateMachine.split(self._state, text)
        if is_last:
            self._state, rest, state = TextStateMachine.flush(self._state)
            parts.append((state, rest))
        for state, piece in parts:
            if state == "tool":
                self._call += piece
                continue
            self._end_call(said, is_closed=True)
            if piece and state == "reasoning":
                said["reasoning_content"] = said.get("reasoning_content", "") + piece
                self._is_behind, self._has_words = True, False
            elif piece:
                self._say(piece, said)
        if is_last:
            self._end_call(said, is_closed=False)
            if self._blank and not self._is_behind:
                said["content"] = self._blank
        return said

    def _say(self, piece: str, said: dict[str, Any]) -> None:
        if not self._has_words:
            self._blank += piece
            if not self._blank.strip():
                return
            piece, self._blank = self._blank.lstrip("\n" if self._is_behind else ""), ""
        self._has_words = True
        said["content"] = said.get("content", "") + piece

    def _end_call(self, said: dict[str, Any], *, is_closed: bool) -> None:
        text, self._call = self._call, ""
        start, end = self._form.marks
        if text:
            self._take_call(text, start + text + (end if is_closed else ""), said)

    def _take_call(self, text: str, whole: str, said: dict[str, Any]) -> None:
        try:
            calls = list(self._read(text))
        # Whatever a model wrote between the marks: what is no call is told as it stands.
        except Exception:
            self._say(whole, said)
            return
        said["tool_calls"] = said.get("tool_calls", []) + calls
        self.calls += len(calls)
        self._is_behind, self._has_words, self._blank = True, False, ""

    def _read(self, text: str) -> Iterator[dict[str, Any]]:
        found: Any = self._form.parse(text, self._tools) if self._form.parse else ()
        for n, call in enumerate(found if isinstance(found, list) else [found]):
            name, given = call["name"], call["arguments"]
            given = json.loads(given) if isinstance(given, str) else given
            if not (name and isinstance(name, str) and isinstance(given, dict)):
                raise ValueError("no call")
            if self._form.is_bare and name not in self._names:
                raise ValueError("no tool")
            yield {
                "index": self.calls + n,
                "id": call.get("id") or f"call_{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(given, ensure_ascii=False)},
            }
