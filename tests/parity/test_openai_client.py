"""The `openai` client against `serve`; greedy text as `generate` and mlx-lm's own generate it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_tiny_model
from tests.export.shipped_models import write_adapter
from tests.inference.served import QUESTIONS, expected, serving

pytestmark = pytest.mark.parity

TOKENS = 24
BASE = "mlx-itune/starter"
KINDS = ("lora", "grid", "qalora")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("openai")
    return {
        kind: write_adapter(folder / kind, "starter", kind=kind, seed=n, strength=0.18)
        for n, kind in enumerate(KINDS, 1)
    }


@pytest.fixture(scope="module")
def url(adapters: dict[str, Path]) -> Iterator[str]:
    flags = [f"--adapter={name}={path}" for name, path in adapters.items()]
    with serving("--model", "starter", *flags) as client:
        yield client.url


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(client: Any, text: str, **fields: Any) -> str:
    answer = client.chat.completions.create(
        messages=asked(text), max_tokens=TOKENS, temperature=0, **fields
    )
    return answer.choices[0].message.content or ""


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [*KINDS, BASE]
    assert client.models.retrieve("grid").id == "grid"


def test_greedy_text_is_that_of_mlx_lm_in_float32(tmp_path: Path) -> None:
    """The same arithmetic, the same text."""
    import openai
    from mlx_lm import generate, load

    plain = write_tiny_model(tmp_path / "plain")
    model, tokenizer = load(str(plain))[:2]
    with serving("--model", str(plain)) as server:
        served = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        for text in QUESTIONS:
            prompt = tokenizer.apply_chat_template(asked(text), add_generation_prompt=True)
            theirs = generate(model, tokenizer, prompt, max_tokens=TOKENS)
            assert said(served, text, model="plain").removeprefix(" ") == theirs.removeprefix(" ")


def test_usage_and_stop_in_stream_and_whole(client: Any) -> None:
    fields: Any = {"model": "lora", "messages": asked(QUESTIONS[0]), "max_tokens": TOKENS}
    whole = client.chat.completions.create(**fields)
    text = whole.choices[0].message.content
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", TOKENS)
    for stop, wanted in (([], text), ([text[6:9]], text[: text.index(text[6:9])])):
        whole = client.chat.completions.create(**fields, stop=stop)
        told = {"include_usage": True}
        *chunks, last = client.chat.completions.create(
            **fields, stop=stop, stream=True, stream_options=told
        )
        assert whole.choices[0].message.content == wanted
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_two_hundred_at_once(url: str, adapters: dict[str, Path]) -> None:
    import openai

    wanted = {
        name: expected("starter", path, QUESTIONS, TOKENS)
        for name, path in {BASE: None, **adapters}.items()
    }
    asked_for = [
        (name, n, k % 2) for k in range(13) for n in range(len(QUESTIONS)) for name in wanted
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

            return list(await asyncio.gather(*(one(*each) for each in asked_for)))

    assert len(asked_for) >= 200
    assert asyncio.run(every()) == [wanted[name][n] for name, n, _ in asked_for]


def test_errors_are_the_clients_own(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="does not exist"):
        said(client, "Hi", model="gpt-4o")
    with pytest.raises(openai.BadRequestError, match="context"):
        said(client, "word " * 3000, model=BASE)
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    fields: Any
    for fields in ({"n": 3}, {"response_format": {"type": "json_object"}}, {"tools": [tool]}):
        with pytest.raises(openai.BadRequestError):
            said(client, "Hi", model=BASE, **fields)


def test_completions_and_logprobs(client: Any) -> None:
    done = client.completions.create(model=BASE, prompt="The patient", max_tokens=6)
    assert done.choices[0].text and done.usage.completion_tokens == 6
    answer = client.chat.completions.create(
        model=BASE, messages=asked("Hi"), max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5 and all(len(token.top_logprobs) == 3 for token in content)
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    chunks = client.chat.completions.create(
        model=BASE, messages=asked("Hi"), max_tokens=5, logprobs=True, stream=True
    )
    told = [t.token for chunk in chunks for t in chunk.choices[0].logprobs.content]
    assert told == [token.token for token in content]
    done = client.completions.create(model=BASE, prompt="The patient", max_tokens=3, logprobs=2)
    assert "".join(done.choices[0].logprobs.tokens) == done.choices[0].text
    assert [len(best) for best in done.choices[0].logprobs.top_logprobs] == [2, 2, 2]
