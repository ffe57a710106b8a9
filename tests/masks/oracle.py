"""Which tokens are learned, from a family's own text: the answer the renderer has to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from masks.family import Refused, is_last
from masks.vocabularies import Coder
from mlx_itune.dataset.conversation import Conversation

Example = tuple[tuple[int, ...], tuple[float, ...]]
# What is learned where: the tokens before a learned run, the run, and its weights.
Run = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Learned:
    """A learned turn: its number, weight, prompt and reply."""

    n: int
    weight: float
    prompt: str
    reply: str
    kept: bool
    open_ended: bool


@dataclass
class Expected:
    """What the renderer has to give for one conversation; prompts by turn number."""

    examples: list[Example] = field(default_factory=list)
    prompts: dict[int, list[int]] = field(default_factory=dict)
    # Prompt and reply under the coder's names, by turn.
    named: dict[int, str] = field(default_factory=dict)


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """The turns as templates get them, put together here once more."""
    found = []
    for turn in conversation.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        calls = [dict(call) for call in turn.tool_calls] or None
        extras = {"tool_calls": calls, "name": turn.name, "tool_call_id": turn.tool_call_id}
        extras["reasoning_content"] = turn.reasoning
        message |= {key: value for key, value in extras.items() if value is not None}
        if turn.input is not None:
            message["input"] = turn.input
            message["instruction"] = turn.content[: len(turn.content) - len(turn.input) - 2]
        found.append(message)
    return found


def weights_of(conversation: Conversation, learn: str) -> dict[int, float]:
    """Learned turns and how much."""
    replies = [n for n, t in enumerate(conversation.turns) if t.role == "assistant"]
    if learn == "last":
        replies = replies[-1:]
    unmarked = 0.0 if learn == "marked" else 1.0
    weights = {n: conversation.turns[n].weight for n in replies}
    return {
        n: unmarked if w is None else w for n, w in weights.items() if w or (w is None and unmarked)
    }


def text_of(coder: Coder, messages: Any, tools: Any, *, prompt: bool) -> str:
    """A conversation as transformers writes it, under the coder's names. Raises Refused."""
    template = coder.family.template
    if isinstance(template, dict):
        template = template["tool_use" if tools else "default"]
    try:
        text = coder.hf.apply_chat_template(
            [coder.family.shape(message) for message in messages],
            tools=tools or None,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
            **dict(coder.family.options),
        )
    except (TemplateError, TypeError) as reason:
        raise Refused(str(reason)) from reason
    return coder.named(text)


def learned_turns(
    coder: Coder, conversation: Conversation, learn: str
) -> tuple[str, list[Learned]]:
    """The whole text and the learned turns in it. Raises Refused where the template does."""
    family, weights = coder.family, weights_of(conversation, learn)
    if not weights:
        return "", []
    messages = [
        {
            key: value
            if key == "role"
            else coder.hidden(value, reply=message["role"] == "assistant" and key == "content")
            for key, value in message.items()
        }
        for message in messages_of(conversation)
    ]
    tools = coder.hidden(list(conversation.tools))
    if tools and not family.tools and not family.calls:
        raise Refused("the template shows no tools")
    whole = text_of(coder, messages, tools, prompt=False)
    found = []
    for n, weight in weights.items():
        prompt = text_of(coder, messages[:n], tools, prompt=True)
        reply, ends = coder.named(family.reply(messages, n)), family.open_ended(messages[n])
        if family.kept is None:
            kept = whole.startswith(prompt + reply) and (not ends or is_last(messages, n, tools))
        else:
            kept = family.kept(messages, n, tools)
        found.append(Learned(n, weight, prompt, reply, kept, ends))
    return whole, found


def expect(coder: Coder, conversation: Conversation, learn: str) -> Expected:
    """The examples and prompts of a conversation. Raises Refused."""
    whole, turns = learned_turns(coder, conversation, learn)
    if not turns:
        return Expected()
    end = max((len(t.prompt) + len(t.reply) for t in turns if t.kept), default=0)
    alone = [turn.prompt + turn.reply for turn in turns if not turn.kept]
    before = coder.ids_of([turn.prompt for turn in turns])
    (shared_ids, shared_ranges), *rest = coder.encode([whole[:end], *alone])
    others = iter(rest)
    closing = coder.ids[coder.family.eos]
    result = Expected()
    spans: list[tuple[int, int, float, bool]] = []
    for turn, ids in zip(turns, before, strict=True):
        result.prompts[turn.n] = ids
        result.named[turn.n] = turn.prompt + turn.reply
        whole_ids, ranges = (shared_ids, shared_ranges) if turn.kept else next(others)
        stop = _stop(ranges, len(turn.prompt) + len(turn.reply))
        tail = [closing] if turn.open_ended else []
        if _is_border(coder, whole_ids, ranges, ids, len(turn.prompt)):
            if turn.kept:
                spans.append((len(ids), stop, turn.weight, turn.open_ended))
            else:
                result.examples.append(_one(ids, [*whole_ids[len(ids) : stop], *tail], turn.weight))
        else:
            said = coder.continuation(turn.reply)
            result.examples.append(_one(ids, [*said, *tail], turn.weight))
    if spans:
        _, last, weight, open_ended = spans[-1]
        kept_ids = [*shared_ids[:last], *([closing] if open_ended else [])]
        weights = [0.0] * len(kept_ids)
        for first, stop, weight, opened in spans:
            for k in range(first, stop + opened):
                weights[k] = weight
        result.examples.append((tuple(kept_ids), tuple(weights)))
    result.examples.sort()
    return result


def _is_border(
    coder: Coder,
    whole: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    prompt: Sequence[int],
    border: int,
) -> bool:
    """Whether the prompt's own tokens stand in front, and none of them reaches past the border.

    A special token that swallows the white space after it is the prompt's, whatever it swallowed.
    """
    count = len(prompt)
    if list(whole[:count]) != list(prompt):
        return False
    return not count or ranges[count - 1][1] <= border or prompt[-1] in coder.specials


def runs_of(examples: Sequence[Example]) -> list[Run]:
    """Every learned run of the examples with all that stands before it."""
    runs: list[Run] = []
    for ids, weights in examples:
        edges = [n for n in range(1, len(ids)) if (weights[n] > 0) != (weights[n - 1] > 0)]
        if ids and weights[0] > 0:
            edges.insert(0, 0)
        edges.append(len(ids))
        # Learned and not learned take turns from the first learned token on.
        for start, end in zip(edges[::2], edges[1::2], strict=False):
            runs.append((ids[:start], ids[start:end], weights[start:end]))
    return sorted(runs)


def _stop(ranges: Sequence[tuple[int, int]], end: int) -> int:
    count = len(ranges)
    while count and ranges[count - 1][0] >= end:
        count -= 1
    return count


def _one(prompt: Sequence[int], reply: Sequence[int], weight: float) -> Example:
    return (*prompt, *reply), (*(0.0 for _ in prompt), *(weight for _ in reply))


def controls_of(coder: Coder, named: str) -> list[int]:
    """The special tokens of a text, in order, as the template means them."""
    return [i for char in named if (i := coder.id_of_name.get(char)) in coder.specials]
