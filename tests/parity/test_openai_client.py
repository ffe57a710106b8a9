"""The `openai` client against `serve`; greedy text as `generate` and mlx-lm's own generate it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import write_tiny_model
from tests.inference.served import QUESTIONS, expected, serving, starter_adapters

pytestmark = pytest.mark.parity
openai = pytest.importorskip("openai")

TOKENS = 24
BASE = "mlx-itune/starter"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return starter_adapters(tmp_path_factory.mktemp("openai"))


@pytest.fixture(scope="module")
def url(adapters: dict[str, Path]) -> Iterator[str]:
    flags = [f"--adapter={name}={path}" for name, path in adapters.items()]
    with serving("--model", "starter", *flags) as client:
        yield client.url


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(client: Any, text: str, **fields: Any) -> str:
    answer = client.chat.completions.create(
        messages=asked(text), max_tokens=TOKENS, temperature=0, **fields
    )
    return answer.choices[0].message.content or ""


def test_greedy_text_is_that_of_mlx_lm_in_float32(tmp_path: Path) -> None:
    """The same arithmetic, the same text."""
    from mlx_lm import generate, load

    plain = write_tiny_model(tmp_path / "plain")
    model, tokenizer = load(str(plain))[:2]
    with serving("--model", str(plain)) as server:
        served = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        for text in QUESTIONS:
            prompt = tokenizer.apply_chat_template(asked(text), add_generation_prompt=True)
            theirs = generate(model, tokenizer, prompt, max_tokens=TOKENS)
            assert said(served, text, model="plain").removeprefix(" ") == theirs.removeprefix(" ")


def test_two_hundred_at_once(url: str, adapters: dict[str, Path]) -> None:
    wanted = expected(adapters, TOKENS)
    asked_for = [
        (name, n, k % 2) for k in range(9) for n in range(len(QUESTIONS)) for name in wanted
    ]

    async def every() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def one(name: str, n: int, is_stream: int) -> str:
                fields: Any = {"messages": asked(QUESTIONS[n]), "max_tokens": TOKENS}
                if is_stream:
                    chunks = await client.chat.completions.create(model=name, stream=True, **fields)
                    parts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
                    return "".join(parts)
                answer = await client.chat.completions.create(model=name, **fields)
                return answer.choices[0].message.content or ""

            assert {model.id async for model in client.models.list()} == set(wanted)
            return list(await asyncio.gather(*(one(*each) for each in asked_for)))

    assert len(asked_for) >= 200
    assert asyncio.run(every()) == [wanted[name][n] for name, n, _ in asked_for]


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        said(client, "Hi", model="gpt-4o")
    with pytest.raises(openai.BadRequestError, match="context"):
        said(client, "word " * 3000, model=BASE)


def test_completions_and_logprobs(client: Any) -> None:
    fields: Any = {"model": BASE, "messages": asked("Hi"), "max_tokens": 5, "logprobs": True}
    answer = client.chat.completions.create(**fields, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5 and all(len(token.top_logprobs) == 3 for token in content)
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    chunks = client.chat.completions.create(**fields, stream=True)
    told = [t.token for chunk in chunks for t in chunk.choices[0].logprobs.content]
    assert told == [token.token for token in content]
    done = client.completions.create(model=BASE, prompt="The patient", max_tokens=3, logprobs=2)
    assert "".join(done.choices[0].logprobs.tokens) == done.choices[0].text
    assert [len(best) for best in done.choices[0].logprobs.top_logprobs] == [2, 2, 2]


def test_responses(client: Any) -> None:
    fields: Any = {"model": BASE, "max_output_tokens": TOKENS, "temperature": 0}
    wanted = said(client, QUESTIONS[0], model=BASE)
    whole = client.responses.create(input=QUESTIONS[0], **fields)
    assert (whole.output_text, whole.store) == (wanted, False)
    is_cut = whole.usage.output_tokens == TOKENS
    assert whole.status == ("incomplete" if is_cut else "completed")
    parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTIONS[0]}]}]
    with client.responses.stream(input=parts, **fields) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == wanted
    scored = client.responses.create(
        input="Hi", include=["message.output_text.logprobs"], top_logprobs=2, **fields
    )
    content = scored.output[0].content[0]
    assert "".join(token.token for token in content.logprobs) == content.text
    assert {len(token.top_logprobs) for token in content.logprobs} == {2}
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    held = client.responses.create(input="Hi", text={"format": form}, **fields)
    assert json.loads(held.output_text) == {"a": 1} and held.text.format.name == "n"
    for wrong in ({"previous_response_id": "resp_1"}, {"tools": [{"type": "web_search"}]}):
        with pytest.raises(openai.BadRequestError, match=r"keeps no|not supported"):
            client.responses.create(input="Hi", **{**fields, **wrong})


def test_the_client_reads_thoughts_and_calls(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    from mlx_itune.inference.openai_server import application
    from tests.inference.scripted import ADD, Scripted, desk_of

    desk, chat = desk_of("qwen3", tmp_path)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    engine: Any = Scripted(chat, f"<think>\nHm.\n</think>\n\nIt is:\n{call}\n{call}")
    app = application(desk, engine, hosts=None, origins=())
    function = {"type": "function", "function": {k: v for k, v in ADD.items() if k != "type"}}

    async def talk() -> None:
        transport = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
        where: Any = {"base_url": "http://127.0.0.1/v1", "api_key": "none"}
        async with openai.AsyncOpenAI(http_client=transport, **where) as client:
            fields: Any = {"model": "m", "messages": asked("Hi"), "tools": [function]}
            answer = await client.chat.completions.create(**fields)
            async with client.chat.completions.stream(**fields) as chat_stream:
                streamed = await chat_stream.get_final_completion()
            for each in (answer, streamed):
                choice = each.choices[0]
                assert choice.finish_reason == "tool_calls"
                called = [c.function for c in choice.message.tool_calls]
                assert [(c.name, c.arguments) for c in called] == [("add", '{"a": 1}')] * 2
            whole = await client.responses.create(model="m", input="Hi", tools=[ADD])
            async with client.responses.stream(model="m", input="Hi", tools=[ADD]) as stream:
                last = await stream.get_final_response()
            for response in (whole, last):
                kinds = [item.type for item in response.output]
                assert kinds == ["reasoning", "message", "function_call", "function_call"]
                assert response.output_text == "It is:\n" and response.status == "completed"
                assert response.output[-1].arguments == '{"a": 1}'

    asyncio.run(talk())


def test_answers_parse_into_the_clients_own_models(client: Any) -> None:
    from pydantic import BaseModel

    class Node(BaseModel):
        größe: float
        kind: Literal["naïve", "日本"]
        tags: list[str]
        inner: Node | None

    for name in ("lora", BASE):
        for n, text in enumerate(QUESTIONS):
            answer = client.chat.completions.parse(
                model=name,
                messages=asked(text),
                response_format=Node,
                max_tokens=96,
                temperature=n % 2,
            )
            assert answer.choices[0].finish_reason == "stop"
            assert isinstance(answer.choices[0].message.parsed, Node)
    with pytest.raises(openai.BadRequestError) as raised:
        told = {"name": "a", "schema": {"properties": {"a": {"not": {}}}}}
        said(client, "Hi", model=BASE, response_format={"type": "json_schema", "json_schema": told})
    assert raised.value.param == "response_format" and "#/properties/a" in str(raised.value)
