"""Prompts: token ids of what a user says or a file holds, and whether the model can read them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import RowFault, Turn
from mlx_itune.dataset.formats.chat import turns_of
from mlx_itune.dataset.formats.fields import tools_of
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError, UsageError, located
from mlx_itune.kit.json_files import parse_object, read_bytes

# Names of the known answer beside a `prompt`.
_ANSWERS = ("reference", "completion", "response", "answer", "output", "target")


@dataclass(frozen=True)
class Prompt:
    """What one answer is asked for: turns with the tools they may call, or plain text. origin:
    "file:line"; id and reference (the known answer): the row's own, if it has one."""

    turns: tuple[Turn, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    text: str | None = None
    origin: str = ""
    id: Any = None
    reference: str | None = None

    def asked(self) -> dict[str, Any]:
        """What is asked, as the keys of a row."""
        return asked_row(self.turns) if self.text is None else {"prompt": self.text}

    def ids(self, tokenizer: ChatTokenizer) -> list[int]:
        """Token ids as the model reads them. Raises DataError where the template refuses."""
        if self.text is not None:
            return text_ids(tokenizer, self.text)
        return chat_ids(tokenizer, self.turns, self.tools)


def chat_ids(
    tokenizer: ChatTokenizer, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Token ids of turns, up to where the answer begins. Raises DataError."""
    _require_text([[turn.message() for turn in turns], list(tools)])
    return tokenizer.prompt_ids(turns, tools)


def asked_words(turns: Sequence[Turn]) -> str:
    """Turns as text; with their roles where there are several."""
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def asked_row(turns: Sequence[Turn]) -> dict[str, Any]:
    """Turns that ask something as the keys of a row which `data import` reads: `prompt`, a text
    where one turn says it all, else a list of messages; `system` beside a text."""
    said = turns[1:] if turns[0].role == "system" else turns
    if [turn.role for turn in said] != ["user"]:
        return {"prompt": [turn.message() for turn in turns]}
    system = {} if said is turns else {"system": turns[0].content}
    return {**system, "prompt": said[0].content}


def text_ids(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Token ids of plain text to go on with, after whatever the tokenizer begins a text with.
    Raises DataError."""
    _require_text(text)
    start = tokenizer.text_start
    return tokenizer.encode_ids(text if text.startswith(start) else start + text)


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model reads and writes in all, by its config.json; None if it says none."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        value = place.get("max_position_embeddings")
        if type(value) is int and value > 0:
            return value
    return None


def room_tokens(prompt_tokens: int, config: Mapping[str, Any], max_tokens: int) -> int:
    """How long an answer may get after a prompt, at most `max_tokens`. Raises DataError for a
    prompt that leaves no room at all."""
    context = context_tokens(config)
    if context is None:
        return max_tokens
    if prompt_tokens >= context:
        what = f"the prompt is {prompt_tokens:,} tokens, and the model's context is {context:,}"
        raise DataError(what)
    return min(max_tokens, context - prompt_tokens)


def turns_and_tools(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[dict[str, Any], ...]]:
    """The turns of `messages` and the tools of a row or request, read as training reads them.
    Raises DataError."""
    try:
        return turns_of(row, "messages", Reading()), tools_of(row)
    except RowFault as fault:
        raise DataError(fault.message) from fault


@dataclass(frozen=True)
class Asked:
    """What `generate` is asked: one prompt, as `words` or `prompt`, or a file of them. raw: a text
    is continued as it is, without the chat template."""

    words: str | None = None
    prompt: str | None = None
    file: Path | None = None
    raw: bool = False

    def prompts(self, stdin: Callable[[], str]) -> list[Prompt]:
        """The prompts, of which `stdin` gives one that is not told otherwise. Raises UsageError,
        DataError naming the first broken line of a file, StorageError."""
        if sum(given is not None for given in (self.words, self.prompt, self.file)) > 1:
            raise UsageError("PROMPT, --prompt and --file exclude each other")
        if self.file is not None:
            return self._of_file(self.file)
        words = self.prompt if self.words is None else self.words
        return [self._said(stdin() if words in (None, "-") else str(words))]

    def _of_file(self, path: Path) -> list[Prompt]:
        try:
            # Not splitlines: it breaks rows at characters that JSON allows inside a text.
            text = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=None)
        except UnicodeDecodeError as error:
            raise DataError("is not UTF-8 text", where=str(path)) from error
        is_rows = path.suffix.lower() in (".jsonl", ".ndjson")
        found = []
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            with located(where):
                prompt = self._of_row(line) if is_rows else self._said(line.removesuffix("\n"))
            found.append(dataclasses.replace(prompt, origin=where))
        if not found:
            raise DataError("holds no prompts", where=str(path))
        return found

    def _said(self, text: str) -> Prompt:
        """The prompt of a user's words. Raises UsageError for an empty one."""
        if not text.strip():
            raise UsageError("the prompt is empty", hint="give it some words")
        return Prompt(text=text) if self.raw else Prompt((Turn("user", text),))

    def _of_row(self, line: str) -> Prompt:
        """`prompt` (text) or `messages` (and `tools`), whose last reply is the known answer."""
        row = parse_object(line, where=None, error=DataError)
        text = row.get("prompt")
        if isinstance(text, str) and text.strip():
            known = next((row[key] for key in _ANSWERS if isinstance(row.get(key), str)), None)
            said, system = self._said(text), row.get("system")
            if said.turns and isinstance(system, str) and system.strip():
                said = Prompt((Turn("system", system), *said.turns))
            return dataclasses.replace(said, id=row.get("id"), reference=known)
        if "messages" not in row:
            raise DataError("has neither a 'prompt' with words nor 'messages'")
        if self.raw:
            raise DataError("has messages, which --raw cannot continue", hint="leave out --raw")
        turns, tools = turns_and_tools(row)
        known = None
        if turns and turns[-1].role == "assistant":
            known, turns = turns[-1].content, turns[:-1]
        if not turns:
            raise DataError("asks nothing")
        return Prompt(turns, tools, id=row.get("id"), reference=known)


def _require_text(value: Any) -> None:
    """Half a surrogate pair, or bytes that are not UTF-8, are no text to any tokenizer."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError("the prompt holds characters that are not Unicode text") from error
