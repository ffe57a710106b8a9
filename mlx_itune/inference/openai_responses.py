"""OpenAI's Responses API: its request as the chat request that it is, its answer as items."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from mlx_itune.inference.openai_answer import Answer, event, refusal_of
from mlx_itune.inference.openai_request import NOT_DONE, Asked, Desk, Refusal
from mlx_itune.model.serving.engine import Engine

_LOGPROBS = "message.output_text.logprobs"
# Fields that would change the answer; what is listed changes none. `store` changes none: nothing is
# kept, and every response says so.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,), "conversation": (), "prompt": (), "truncation": ("disabled",),
    "max_tool_calls": (), "context_management": ([],), "n": (1,), "messages": (),
}  # fmt: skip
# What chat completions call other names.
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text"}
_TEXTS = ("input_text", "output_text", "text")
# Told again with every response, with what they are where nobody says.
_ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "model": "default_model",
    "parallel_tool_calls": True, "temperature": None, "text": {"format": {"type": "text"}},
    "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": None,
}  # fmt: skip


def read(desk: Desk, data: bytes) -> Asked:
    """What a request for a response asks for. Raises Refusal."""
    try:
        return desk.read(data, True, _chat_body)
    except Refusal as refusal:
        told: dict[str, Any] = refusal.body["error"]
        told["param"] = _NAMES.get(told["param"], told["param"])
        raise


def _chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body of the Responses API as one of chat completions. Raises Refusal."""
    if body.get("previous_response_id") is not None:
        told = "this server keeps no responses: send the whole conversation as input"
        raise Refusal(400, told, param="previous_response_id", code=NOT_DONE)
    for key, neutral in _NEUTRAL.items():
        if key in body and body[key] not in neutral:
            raise _not_done(key, body[key])
    chat = {key: value for key, value in body.items() if key not in (*_NEUTRAL, "input", "text")}
    chat["messages"] = _messages(body.get("input"), body.get("instructions"))
    if "max_output_tokens" in body:
        chat["max_tokens"] = chat.pop("max_output_tokens")
    if tools := body.get("tools"):
        chat["tools"] = [_tool(tool) for tool in _objects(tools, "tools")]
    include = body.get("include", [])
    if not isinstance(include, list) or any(name != _LOGPROBS for name in include):
        raise _not_done("include", include)
    # As OpenAI, without `include` nothing of them is told.
    chat["logprobs"] = bool(include)
    if not include:
        chat.pop("top_logprobs", None)
    if effort := body.get("reasoning"):
        if not isinstance(effort, dict) or set(effort) - {"effort"}:
            raise _not_done("reasoning", effort)
        told = chat.get("chat_template_kwargs", {})
        chat["chat_template_kwargs"] = {**told, "reasoning_effort": effort["effort"]}
    text = body.get("text", {})
    if not isinstance(text, dict):
        raise _not_done("text", text)
    if (form := text.get("format")) is not None:
        if not isinstance(form, dict):
            raise _not_done("text.format", form)
        kind = form.get("type")
        schema = {key: value for key, value in form.items() if key != "type"}
        chat["response_format"] = {"type": kind, **({kind: schema} if schema else {})}
    return chat


def _not_done(key: str, value: Any) -> Refusal:
    return Refusal(400, f"{key}={value!r}"[:100] + " is not supported", param=key, code=NOT_DONE)


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refusal(400, f"{name} is not a list of objects", param=name)
    return value


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise _not_done("tools", tool.get("type"))
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _messages(given: Any, instructions: Any) -> list[dict[str, Any]]:
    """Messages of chat completions: items of one turn of the model come together."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thought = ""

    def turn() -> dict[str, Any]:
        """The turn of the model that an item belongs to."""
        nonlocal thought
        if thought or not messages or messages[-1]["role"] != "assistant":
            more = {"reasoning_content": thought} if thought else {}
            messages.append({"role": "assistant", "content": "", **more})
            thought = ""
        return messages[-1]

    for item in _objects(given, "input"):
        kind = item.get("type", "message")
        if kind == "message" and item.get("role") == "assistant":
            message = turn()
            message["content"] += _text(item.get("content"))
        elif kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role")
            messages.append({"role": role, "content": _text(item.get("content"))})
        elif kind == "reasoning":
            thought += _text(item.get("content") or item.get("summary") or "")
        elif kind == "function_call":
            called = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"type": "function", "id": item.get("call_id"), "function": called}
            turn().setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            told = {"tool_call_id": item.get("call_id"), "content": _text(item.get("output"))}
            messages.append({"role": "tool", **told})
        else:
            raise _not_done("input", kind)
    if instructions is not None:
        if messages and messages[0]["role"] == "system":
            instructions = f"{instructions}\n\n{messages.pop(0)['content']}"
        messages.insert(0, {"role": "system", "content": instructions})
    return messages


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in _objects(content, "input"):
        if part.get("type") not in (*_TEXTS, "reasoning_text", "summary_text"):
            raise _not_done("input", part.get("type"))
        if not isinstance(part.get("text"), str):
            raise Refusal(400, f"input: a {part['type']} has no text", param="input")
        texts.append(part["text"])
    return "".join(texts)


class ResponseAnswer(Answer):
    """A response, whole or as events."""

    def __init__(self, asked: Asked, engine: Engine) -> None:
        super().__init__(asked, engine)
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._output: list[dict[str, Any]] = []
        # Which kind of item is being told, with the log-probabilities of its text.
        self._open, self._scored = "", list[dict[str, Any]]()
        self._number = self._thought_tokens = 0

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        told = [each async for each in self._told()]
        return dict(told[-1]["response"])

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        try:
            async for told in self._told():
                yield event(told, told["type"])
        except Exception as error:
            what = {"code": "server_error", "message": str(refusal_of(error))}
            told = self._event("response.failed", response=self._response("failed", what))
            yield event(told, told["type"])

    async def _told(self) -> AsyncIterator[dict[str, Any]]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))
        finish = None
        async for part in self.parts():
            finish = part.finish
            self._scored += part.scored
            for name, value in part.said.items():
                for told in self._add(name, value):
                    yield told
            self._thought_tokens += self._open == "reasoning_content"
        status = "incomplete" if finish == "length" else "completed"
        # There is a message, though it be empty.
        for told in (*(() if self._output else self._add("content", "")), *self._close(status)):
            yield told
        yield self._event(f"response.{status}", response=self._response(status))

    def _add(self, name: str, value: Any) -> Iterator[dict[str, Any]]:
        if name == "tool_calls":
            yield from self._close()
            for call in value:
                yield from self._called(call)
            return
        if self._open != name:
            yield from self._close()
            yield from self._begin(name)
        item = self._output[-1]
        item["content"][0]["text"] += value
        if name == "content":
            scored = [_plain(one) for one in self._scored]
            self._scored = []
            item["content"][0]["logprobs"] += scored
            yield self._within("output_text.delta", delta=value, logprobs=scored)
        else:
            self._scored = []
            yield self._within("reasoning_text.delta", delta=value)

    def _begin(self, name: str) -> Iterator[dict[str, Any]]:
        self._open = name
        kind, prefix = ("message", "msg") if name == "content" else ("reasoning", "rs")
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"}
        more: dict[str, Any] = {"summary": []}
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if name == "content":
            more = {"role": "assistant"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output.append({**item, **more, "content": [part]})
        yield self._at("output_item.added", item={**item, **more, "content": []})
        yield self._within("content_part.added", part={**part})

    def _close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        name, self._open = self._open, ""
        if not name:
            return
        item = self._output[-1]
        item["status"] = status
        part = item["content"][0]
        if name == "content":
            part["logprobs"] += [_plain(one) for one in self._scored]
            self._scored = []
            yield self._within("output_text.done", text=part["text"], logprobs=part["logprobs"])
        else:
            yield self._within("reasoning_text.done", text=part["text"])
        yield self._within("content_part.done", part=part)
        yield self._at("output_item.done", item=item)

    def _called(self, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call["id"]}
        item |= {"name": call["function"]["name"], "arguments": "", "status": "in_progress"}
        self._output.append(item)
        yield self._at("output_item.added", item={**item})
        text = call["function"]["arguments"]
        item |= {"arguments": text, "status": "completed"}
        told = {"item_id": item["id"]}
        yield self._at("function_call_arguments.delta", delta=text, **told)
        yield self._at("function_call_arguments.done", arguments=text, name=item["name"], **told)
        yield self._at("output_item.done", item=item)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _at(self, kind: str, **more: Any) -> dict[str, Any]:
        """About the last item of the output."""
        return self._event(f"response.{kind}", output_index=len(self._output) - 1, **more)

    def _within(self, kind: str, **more: Any) -> dict[str, Any]:
        """About its content."""
        return self._at(kind, item_id=self._output[-1]["id"], content_index=0, **more)

    def _response(self, status: str, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
        asked, is_over, is_cut = self.asked.body, status != "in_progress", status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            **{key: asked.get(key, value) for key, value in _ECHOED.items()},
            "output": list(self._output) if is_over else [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
            "store": False,
            "truncation": "disabled",
            "usage": self._usage() if is_over else None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = len(self.asked.prompt_ids)
        cached = {"cached_tokens": self.order.cached_tokens, "cache_write_tokens": 0}
        return {
            "input_tokens": prompt,
            "input_tokens_details": cached,
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": self._thought_tokens},
            "total_tokens": prompt + self.tokens,
            **self.notes,
        }


def _plain(scored: Mapping[str, Any]) -> dict[str, Any]:
    """A token's log-probability as responses have it."""
    kept = {key: scored[key] for key in ("token", "bytes", "logprob")}
    tops: Sequence[Mapping[str, Any]] = scored.get("top_logprobs", ())
    return {**kept, **({"top_logprobs": [_plain(top) for top in tops]} if "at" in scored else {})}
