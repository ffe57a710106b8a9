"""How the answers behind a chat template are read: by what mlx-lm knows of the family, or by what
the template itself writes of thoughts and calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_itune.dataset.tokens.calls import PROBES, Call, CallForm, call_form, tools_for, written
from mlx_itune.dataset.tokens.dialect import MARKS
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.model.serving.reply import Form, Reply, family_form

# How a prompt ends says whether it opens a thought.
_TAIL_TOKENS = 32
# Where a template tells of them and shows none.
_LISTED = (
    ("<tool_call>", "</tool_call>"), ("<|tool_call|>", "<|/tool_call|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
)  # fmt: skip


def form_of(path: Path, chat: ChatTokenizer) -> Form:
    """How answers of a model directory with a chat template are read. What cannot read back what
    the template writes of two calls is not used. Raises ModelError."""
    known = family_form(path, chat.template_text)
    traits = SimpleNamespace(**vars(known.traits))
    if not traits.has_thinking and (marks := _thought_marks(chat)):
        traits.has_thinking, (traits.think_start, traits.think_end) = True, marks
    tried = []
    if "<|channel|>" in chat.template_text and "<|message|>" in chat.template_text:
        tried.append(_harmony(traits))
    if known.parse:
        tried.append(replace(known, traits=traits))
    if not any(written(chat, PROBES[:1])):
        # The template shows no calls, so that nothing can be tried.
        listed = (marks for marks in _LISTED if marks[0] in chat.template_text)
        tried += [_calling(traits, CallForm(*m, names=("name", "arguments"))) for m in listed]
        return tried[0] if tried else replace(known, traits=traits)
    if (form := call_form(chat)) is not None:
        tried.append(_calling(traits, form))
    unread = "calls of tools are not understood as this chat template writes them: they stay text"
    bare = SimpleNamespace(**{**vars(traits), "has_tool_calling": False})
    return next(filter(lambda each: _reads(each, chat), tried), Form(bare, note=unread))


def _calling(traits: Any, calls: CallForm) -> Form:
    has = {"has_tool_calling": bool(calls.start), "response_transitions": {}}
    marks = {"tool_call_start": calls.start, "tool_call_end": calls.end}
    named = SimpleNamespace(**{**vars(traits), **has, **marks})
    return Form(named, (calls.start, calls.end), lambda text, tools: calls.parse(text))


def _harmony(traits: Any) -> Form:
    """gpt-oss writes messages to channels; a header says to which, and whom it calls."""
    says = ["<|channel|>final<|message|>", "<|channel|>commentary<|message|>"]
    says += ["<|channel|>final <|constrain|>json<|message|>", "<|start|>assistant", "<|end|>"]
    calls = [f"{channel} to=functions." for channel in ("", "<|channel|>commentary")]
    edges = {
        "normal": [
            ("<|channel|>analysis<|message|>", "reasoning"),
            *((call, "tool") for call in calls),
            *((mark, "normal") for mark in says),
        ],
        "reasoning": [("<|end|>", "normal")],
        "tool": [("<|call|>", "normal"), ("<|end|>", "normal")],
    }
    has = {"has_thinking": False, "has_tool_calling": False, "response_transitions": edges}

    def parse(text: str, tools: Any) -> Call:
        name, _, arguments = text.partition("<|message|>")
        return {"name": re.split(r"[^\w.-]", name)[0], "arguments": json.loads(arguments)}

    traits = SimpleNamespace(**{**vars(traits), **has})
    return Form(traits, (" to=functions.", "<|call|>"), parse)


def _thought_marks(chat: ChatTokenizer) -> tuple[str, str] | None:
    form = chat.dialect.thought_form
    known = (marks for marks in MARKS if form and form[0].startswith(marks[0]))
    return next(known, None)


def _reads(form: Form, chat: ChatTokenizer) -> bool:
    """Whether what the template writes of calls reads back as those."""

    def read(text: str, calls: Sequence[Call]) -> bool:
        said = Reply(form, tools_for(calls)).push(text, is_last=True)
        made = [call["function"] for call in said.pop("tool_calls", [])]
        told = [{**call, "arguments": json.loads(call["arguments"])} for call in made]
        return not said and told == list(calls)

    # Some templates show one call at most.
    shown = [(calls, list(written(chat, calls))) for calls in (PROBES[:1], PROBES)]
    return all(any(read(text, calls) for text in texts) for calls, texts in shown if texts)


def reply_to(
    form: Form,
    chat: ChatTokenizer,
    prompt_ids: Sequence[int],
    tools: Sequence[Mapping[str, Any]] = (),
) -> Reply:
    """How the answer to a prompt is read."""
    tail = chat.decode(list(prompt_ids[-_TAIL_TOKENS:]))
    return Reply(form, tools, opened=bool(chat.dialect.opened(tail)))
