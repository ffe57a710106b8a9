"""Requests and answers of OpenAI's Responses API; thoughts and calls in both of its APIs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mlx_itune.inference import openai_responses
from mlx_itune.inference.openai_answer import Completion
from mlx_itune.inference.openai_request import Asked, Desk, Refusal
from mlx_itune.inference.openai_responses import ResponseAnswer
from tests.inference.scripted import ADD, Scripted, desk_of

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TEXT = f"<think>\nHm.\n</think>\n\nIt is:\n{CALL}\n{CALL}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Any]:
    return desk_of("qwen3", tmp_path_factory.mktemp("qwen3"))


def asked_for(desk: Desk, **body: Any) -> Asked:
    return openai_responses.read(desk, json.dumps({"input": "Hi", **body}).encode())


def events_of(answer: Any) -> list[dict[str, Any]]:
    async def every() -> list[str]:
        return [event async for event in answer().events()]

    found = []
    for event in asyncio.run(every()):
        name, _, data = event.partition("data: ")
        if not data.startswith("[DONE]"):
            found.append(json.loads(data))
            assert name in ("", f"event: {found[-1].get('type')}\n")
    return found


def whole_of(answer: Any) -> dict[str, Any]:
    async def one() -> Any:
        return await answer().whole()

    return asyncio.run(one())  # type: ignore[no-any-return]


ITEMS = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
    {"type": "reasoning", "id": "r", "summary": [], "content": [
        {"type": "reasoning_text", "text": "Add."}]},
    {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c1", "output": "2"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "2"}]},
    {"role": "user", "content": "And?"},
]  # fmt: skip


def test_items_are_the_messages_that_they_stand_for(served: tuple[Desk, Any]) -> None:
    desk, chat = served
    body = {"input": ITEMS, "instructions": "Add.", "tools": [ADD]}
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Add.\n\nBe brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "reasoning_content": "Add.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And?"},
    ]
    function = {key: value for key, value in ADD.items() if key != "type"}
    tools = [{"type": "function", "function": function}]
    same = desk.read(json.dumps({"messages": messages, "tools": tools}).encode(), True)
    assert asked_for(desk, **body).prompt_ids == same.prompt_ids
    assert "Be brief" in chat.decode(same.prompt_ids)


@pytest.mark.parametrize("has_scores", [False, True])
def test_events_tell_the_whole_response(served: tuple[Desk, Any], has_scores: bool) -> None:
    desk, chat = served
    include = ["message.output_text.logprobs"] if has_scores else []
    asked = asked_for(desk, tools=[ADD], include=include, metadata={"a": "b"}, store=True)
    engine: Any = Scripted(chat, TEXT)
    events = events_of(lambda: ResponseAnswer(asked, engine))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    names = list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
        "output_text.delta", "output_text.done", "function_call_arguments.delta",
        "function_call_arguments.done", "completed",
    ]  # fmt: skip
    response = events[-1]["response"]
    thought, message, *calls = response["output"]
    assert thought["content"][0]["text"] == "\nHm.\n"
    assert message["content"][0]["text"] == "It is:\n"
    assert [call["arguments"] for call in calls] == ['{"a": 1}'] * 2
    assert len({item["id"] for item in response["output"]}) == 4
    # What deltas say comes to the items, and each item is told as it ends.
    for index, item in enumerate(response["output"]):
        own = [event for event in events if event.get("output_index") == index]
        deltas = "".join(event["delta"] for event in own if "delta" in event)
        assert deltas == (item.get("arguments") or item["content"][0]["text"])
        assert own[-1]["item"] == item and item["status"] == "completed"
    assert response["metadata"] == {"a": "b"} and response["store"] is False
    usage = response["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    scored = message["content"][0]["logprobs"]
    assert bool(scored) == has_scores
    assert not scored or "It is" in "".join(one["token"] for one in scored)
    whole = whole_of(lambda: ResponseAnswer(asked, engine))
    assert [item["type"] for item in whole["output"]] == [i["type"] for i in response["output"]]


def test_how_a_response_ends(served: tuple[Desk, Any]) -> None:
    desk, chat = served
    asked = asked_for(desk)
    for text, ends, status, said in (
        ("Yes.", True, "completed", "Yes."),
        ("", True, "completed", ""),
        ("Yes and", False, "incomplete", "Yes and"),
    ):
        engine: Any = Scripted(chat, text, ends)
        response = whole_of(lambda engine=engine: ResponseAnswer(asked, engine))
        assert (response["status"], response["output"][0]["content"][0]["text"]) == (status, said)
        reason = response["incomplete_details"]
        assert reason == (None if ends else {"reason": "max_output_tokens"})
    engine = Scripted(chat, "Yes", error=RuntimeError("out of memory"))
    last = events_of(lambda: ResponseAnswer(asked, engine))[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("input", {"input": 3}),
        ("input", {"input": []}),
        ("input", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("include", {"include": ["file_search_call.results"]}),
        ("reasoning", {"reasoning": {"summary": "auto"}}),
        ("text", {"text": 3}),
        ("tool_choice", {"tool_choice": "required"}),
        ("max_output_tokens", {"max_output_tokens": 0}),
    ],
)
def test_what_is_refused_is_named(served: tuple[Desk, Any], param: str, body: Any) -> None:
    with pytest.raises(Refusal) as refused:
        asked_for(served[0], **body)
    assert (refused.value.status, refused.value.body["error"]["param"]) == (400, param)


def test_chat_completions_tell_thoughts_and_calls(served: tuple[Desk, Any]) -> None:
    desk, chat = served
    function = {key: value for key, value in ADD.items() if key != "type"}
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": function}],
    }
    asked = desk.read(json.dumps(body).encode(), True)
    engine: Any = Scripted(chat, TEXT)
    (choice,) = whole_of(lambda: Completion(asked, engine))["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message["reasoning_content"], message["content"]) == ("\nHm.\n", "It is:\n")
    called = [call["function"] for call in message["tool_calls"]]
    assert called == [{"name": "add", "arguments": '{"a": 1}'}] * 2
    parts = [event["choices"][0] for event in events_of(lambda: Completion(asked, engine))]
    assert parts[-1]["finish_reason"] == "tool_calls"
    calls = [call for part in parts for call in part["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["function"] for call in calls] == called
