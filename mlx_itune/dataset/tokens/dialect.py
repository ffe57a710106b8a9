"""What a chat template reads and writes, found out by rendering words that occur nowhere else.

Names of one and the same thing differ: reasoning is `reasoning_content` here and `thinking` there,
arguments are an object or JSON text. Nobody is asked what the template's source looks like.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlx_itune.kit.errors import DataError, UsageError

Message = Mapping[str, Any]
# Renders messages; `tools` and `add_generation_prompt` as the template knows them.
Render = Callable[..., str]
# How a last turn's reasoning gets to be learned: the template shows it, it is put where the prompt
# opens it or where the template would show it, or there is no place for it.
Way = Literal["shown", "built", "none"]

# A content no template rewrites: used to see what a template puts around an assistant's words.
PROBE = "qzvxqzvx"
_THOUGHT = "kzwjkzwj"

# What opens and closes a thought, for templates whose prompt does so and whose turns never show it.
MARKS = (
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"), ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip
_ASKED: Message = {"role": "user", "content": "a"}
_PARAMETERS = {"type": "object", "properties": {"b": {"type": "string"}}}
_TOOL: Message = {
    "type": "function",
    "function": {"name": PROBE, "description": "d", "parameters": _PARAMETERS},
}


def _calling(arguments: Any) -> Message:
    call = {
        "type": "function",
        "id": "call00000",
        "function": {"name": "f", "arguments": arguments},
    }
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _inline(message: Message, thought: str) -> Message:
    return {**message, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}


def _parts(message: Message, thought: str) -> Message:
    words = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {**message, "content": [{"type": "thinking", "thinking": thought}, *words]}


# Where a template may look for an assistant's reasoning.
_PLACES: dict[str, Callable[[Message, str], Message]] = {
    "reasoning_content": lambda message, thought: {**message, "reasoning_content": thought},
    "thinking": lambda message, thought: {**message, "thinking": thought},
    "reasoning": lambda message, thought: {**message, "reasoning": thought},
    "parts": _parts,
    "inline": _inline,
}


def template_options(given: Iterable[str]) -> dict[str, Any]:
    """The options of a template from NAME=VALUE: true, false, null, numbers and quoted texts as in
    JSON, anything else a text. Raises UsageError."""
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise UsageError(f"--template-option {pair!r} is not NAME=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


@dataclass(frozen=True)
class Dialect:
    """What a template reads and writes.

    thought_at: the name under which it reads reasoning, if it does. thought_form: what it writes
    before and after. thoughts: how it is learned in a turn of words and in one that calls tools.
    arguments_as_text: calls have their arguments as JSON text. empty_as_none: a turn of calls alone
    has none, instead of an empty content. own_words: the system prompt that it puts in for none.
    """

    thought_at: str | None
    thought_form: tuple[str, str] | None
    thoughts: tuple[Way, Way]
    arguments_as_text: bool
    empty_as_none: bool
    shows_tools: bool
    shows_calls: bool
    shows_words_of_calls: bool
    own_words: str | None

    def message(self, message: Message) -> Message:
        """A message in canonical form as the template reads it."""
        if calls := message.get("tool_calls"):
            message = {**message, "tool_calls": [self._called(call) for call in calls]}
            if self.empty_as_none and not message["content"]:
                message["content"] = None
        if "reasoning_content" not in message or self.thought_at == "reasoning_content":
            return message
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        if self.thought_at is None:
            return rest
        return _PLACES[self.thought_at](rest, message["reasoning_content"])

    def _called(self, call: Message) -> Message:
        function = call["function"]
        if not self.arguments_as_text or isinstance(function["arguments"], str):
            return call
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    def opened(self, prompt: str) -> str:
        """The thought that a prompt ends with and does not close, such as `<think>\\n`."""
        marks = (mark for mark, _ in MARKS if prompt.rstrip().endswith(mark))
        return next((prompt[prompt.rindex(mark) :] for mark in marks), "")

    def closes(self, prompt: str) -> bool:
        """Whether a prompt ends with a thought that is closed."""
        return prompt.rstrip().endswith(tuple(close for _, close in MARKS))

    def apart(self, answer: str) -> tuple[str | None, str]:
        """What a model thought in an answer, if it did, and its words."""
        for mark, close in MARKS:
            thought, found, words = answer.partition(close)
            if found and words.strip():
                thought = thought.strip().removeprefix(mark).strip()
                return thought or None, words.lstrip("\n")
        return None, answer

    def after_thought(self, opened: str, turn: str) -> str:
        """A finished turn from where its thought ends, after a prompt that `opened` one: `turn` is
        what stands after the turn's header, with a closed and empty thought or with none."""
        mark = opened.rstrip()
        close = dict(MARKS)[mark]
        if turn.startswith(opened) and close in turn:
            return turn[len(opened) :]
        before, found, rest = turn.partition(close)
        if found and before.strip() in ("", mark):
            return close + rest
        # As DeepSeek R1 and its kin close theirs.
        return f"\n{close}\n\n{turn}" if opened.endswith("\n") else close + turn


def dialect_of(render: Render, *, knows_think: bool) -> Dialect:
    """What the template behind `render` reads and writes.

    `knows_think`: `</think>` means something to tokenizer or template.
    """

    def rendered(*messages: Message, prompt: bool = False, tools: tuple[Message, ...] = ()) -> str:
        try:
            return render(list(messages), tools=tools, add_generation_prompt=prompt)
        except DataError:
            return ""

    says: Message = {"role": "assistant", "content": PROBE}
    forms = (_calling({PROBE: "c"}), _calling(json.dumps({PROBE: "c"})))
    as_object, as_text = (rendered(_ASKED, form) for form in forms)
    # Python's way of writing an object is nobody's.
    by_object = PROBE in as_object.replace(f"'{PROBE}': 'c'", "")
    arguments_as_text = not by_object and PROBE in as_text
    calls = forms[arguments_as_text]
    silent = rendered(_ASKED, {**calls, "content": None})
    empty_as_none = 0 < len(silent) < len(rendered(_ASKED, calls))
    calls = {**calls, "content": None if empty_as_none else ""}
    turns = {"words": says, "calls": calls}

    thinking: dict[str, str] = {}
    place = None
    for place, put in _PLACES.items():
        for kind, turn in turns.items():
            text = rendered(_ASKED, put(turn, _THOUGHT))
            # A list that is printed as one shows no reasoning.
            printed = place == "parts" and "'type'" in text.replace('"', "'")
            if _THOUGHT in text and not printed:
                thinking[kind] = text
        # What any template prints is no thought to it.
        if place == "inline" and not (knows_think and "words" in thinking):
            thinking = {}
        if thinking:
            break
    form = next(filter(None, map(_form, thinking.values())), None)
    dialect = Dialect(
        thought_at=place if thinking else None,
        thought_form=form,
        thoughts=("none", "none"),
        arguments_as_text=arguments_as_text,
        empty_as_none=empty_as_none,
        shows_tools=any(
            PROBE in rendered(*before, _ASKED, prompt=True, tools=(_TOOL,))
            for before in ((), ({"role": "system", "content": "b"},))
        ),
        shows_calls=PROBE in as_object or PROBE in as_text,
        shows_words_of_calls=_THOUGHT in rendered(_ASKED, {**calls, "content": _THOUGHT}),
        own_words=_own_words(rendered),
    )
    prompt = rendered(_ASKED, prompt=True)

    def way(kind: str, turn: Message) -> Way:
        if dialect.closes(prompt):
            return "none"
        opened, text = dialect.opened(prompt), thinking.get(kind, "")
        # Behind a prompt that opens a thought it has to come first.
        if text.startswith(f"{prompt}{_THOUGHT}" if opened else prompt):
            return "shown"
        if text and not opened and not rendered(_ASKED, turn).startswith(prompt):
            return "shown"
        return "built" if opened or form else "none"

    return replace(dialect, thoughts=(way("words", says), way("calls", calls)))


def _form(text: str) -> tuple[str, str] | None:
    """What a text has before and after a thought, from its opening mark to its closing one."""
    before, _, after = text.partition(_THOUGHT)
    for mark, close in MARKS:
        if mark in before and close in after:
            return before[before.rindex(mark) :], after[: after.index(close) + len(close)]
    return None


def _own_words(rendered: Callable[..., str]) -> str | None:
    """The words that a template puts in where there is no system prompt."""
    asked = {"role": "user", "content": PROBE}
    bare = rendered(asked).partition(PROBE)[0]
    told = rendered({"role": "system", "content": _THOUGHT}, asked).partition(PROBE)[0]
    before, found, after = told.partition(_THOUGHT)
    words = bare[len(before) : len(bare) - len(after)]
    # Between what stands around a system prompt.
    return words.strip() or None if found and bare == before + words + after else None
