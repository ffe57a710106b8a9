"""The server gives, by name and under load, the answers of `generate`; it refuses the rest."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_itune import __version__
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.model.loading.base import resolve
from tests.conftest import write_tiny_model
from tests.inference.served import KINDS, QUESTIONS, Client, expected, serving, starter_adapters

TOKENS = 16


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return starter_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def client(adapters: dict[str, Path]) -> Iterator[Client]:
    flags = [f"--adapter={name}={path}" for name, path in adapters.items()]
    with serving("--model", "starter", "--allow-origin", "http://good.example", *flags) as client:
        yield client


def test_models_and_health(client: Client) -> None:
    status, listed = client.get("/v1/models")
    names = [model["id"] for model in listed["data"]]
    assert (status, names) == (200, [*KINDS, "chatml", "mlx-itune/starter"])
    about = {"status": "ok", "models": names, "version": __version__}
    assert client.get("/health") == (200, about)
    for path in ("/v1/models/grid", "/v1/models/mlx-itune%2Fstarter"):
        assert client.get(path)[0] == 200
    status, body = client.get("/v1/models/other")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert client.get("/other")[0] == 404


def test_the_page_offers_every_model_and_asks_this_server_only(client: Client) -> None:
    status, page, headers = client.answer("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = page.decode()
    assert "connect-src 'self'" in text and "http://" not in text and "https://" not in text
    for side, chosen in (("left", "mlx-itune/starter"), ("right", KINDS[0])):
        pane = text.partition(f'id="{side}-model"')[2].partition("</select>")[0]
        assert f'<option value="{chosen}" selected>' in pane
        assert pane.count("<option") == len(KINDS) + 2 + (side == "right")
    for name in ("prompt", "send", "stop", "clear", "system", "temperature", "max-tokens"):
        assert f'id="{name}"' in text


def streamed(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_interleaved_requests_get_what_generate_says_with_their_adapter(
    client: Client, adapters: dict[str, Path]
) -> None:
    answers = expected(adapters, TOKENS)
    asked = [(name, n) for n in range(len(QUESTIONS)) for name in answers] * 2

    def ask(which: tuple[str, int]) -> str:
        name, n = which
        if n % 2:
            return client.text(QUESTIONS[n], model=name, max_tokens=TOKENS)
        return streamed(client.events(QUESTIONS[n], model=name, max_tokens=TOKENS))

    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(ask, asked))
    assert got == [answers[name][n] for name, n in asked]
    for fields, name in (
        ({}, "lora"),
        ({"model": "default_model"}, "lora"),
        ({"model": "starter"}, "mlx-itune/starter"),
        ({"model": "starter", "adapters": "grid"}, "grid"),
    ):
        assert client.text(QUESTIONS[0], max_tokens=TOKENS, **fields) == answers[name][0]


def test_streams_stops_seeds_and_penalties(client: Client) -> None:
    def drawn(seed: int | None) -> str:
        return client.text(QUESTIONS[2], max_tokens=TOKENS, temperature=1.2, top_p=0.9, seed=seed)

    assert drawn(5) == drawn(5)
    assert len({drawn(seed) for seed in range(4)}) > 1
    assert drawn(-7) == drawn(-7)
    plain = client.text(QUESTIONS[2], max_tokens=TOKENS)
    assert client.text(QUESTIONS[2], max_tokens=TOKENS, repetition_penalty=5.0) != plain
    assert client.text(QUESTIONS[2], max_tokens=TOKENS, top_k=10**6, temperature=0) == plain
    stop = plain[4:7]
    for stops, text, finish in (
        ([], plain, "length"),
        ([stop, "never"], plain[: plain.index(stop)], "stop"),
    ):
        fields: dict[str, Any] = {"max_tokens": TOKENS, "stop": stops}
        whole = client.chat(QUESTIONS[2], **fields)[1]
        told = {"include_usage": True}
        *chunks, last = client.events(QUESTIONS[2], stream_options=told, **fields)
        assert whole["choices"][0]["message"]["content"] == streamed(chunks) == text
        for choice in (whole["choices"][0], chunks[-1]["choices"][0]):
            assert choice["finish_reason"] == finish
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert whole["usage"][key] == last["usage"][key]
        assert (last["usage"]["completion_tokens"] == TOKENS) == (finish == "length")
        assert {c["object"] for c in [*chunks, last]} == {"chat.completion.chunk"}


def test_logprobs_are_of_the_text(client: Client) -> None:
    """Whole and streamed alike; a token that divides a character has its bytes."""
    fields: dict[str, Any] = {"max_tokens": 6, "logprobs": True, "top_logprobs": 20}
    # The first bytes of an emoji, whichever the model likes.
    halves = load_tokenizer(resolve("starter"), template="alpaca").encode_ids("🙂")[:1]
    for bias in ({}, {str(token): 1000 for token in halves}):
        told = [{**fields, "logit_bias": bias, "stop": stop} for stop in ([], ["t"])]
        for asked in told:
            choice = client.chat(QUESTIONS[0], **asked)[1]["choices"][0]
            content = choice["logprobs"]["content"]
            raw = b"".join(bytes(token["bytes"]) for token in content)
            text = choice["message"]["content"] or ""
            assert raw.decode(errors="replace").startswith(text)
            assert asked["stop"] or raw.decode(errors="replace") == text
            assert not bias or content[0]["token"].startswith("\\x")
            for token in content:
                assert len(token["top_logprobs"]) == 20
                escaped = bytes(token["bytes"]).decode(errors="backslashreplace")
                assert token["token"] == escaped
            chunks = client.events(QUESTIONS[0], **asked)
            parts = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks]
            assert [token for part in parts for token in part] == content
    asked = {"model": "starter", "prompt": "The patient", "max_tokens": 4, "logprobs": 2}
    choice = client.post("/v1/completions", **asked)[1]["choices"][0]
    told = choice["logprobs"]
    for token, at, best in zip(
        told["tokens"], told["text_offset"], told["top_logprobs"], strict=True
    ):
        assert choice["text"][at:].startswith(token) and token in best and len(best) == 2


def test_completions_continue_plain_text(client: Client) -> None:
    def told(prompt: str, max_tokens: int) -> tuple[str, int]:
        asked = {"model": "starter", "prompt": prompt, "max_tokens": max_tokens}
        body = client.post("/v1/completions", **asked)[1]
        return body["choices"][0]["text"], body["usage"]["prompt_tokens"]

    first, _ = told("The patient", 8)
    # A prompt that ends just where a cached one does: one token at least is computed again.
    second, prompt_tokens = told("The patient" + first, 8)
    assert (first + second, prompt_tokens) == (told("The patient", 16)[0], 8 + 2)


VITALS = {
    "type": "object",
    "properties": {"bp": {"type": "string"}, "hr": {"type": "integer"}},
    "required": ["bp", "hr"],
    "additionalProperties": False,
}
LEVELS = {"type": "array", "items": {"enum": ["urgent", "naïve"]}, "minItems": 1, "maxItems": 3}


def test_answers_are_held_to_their_schemas_beside_free_ones(client: Client) -> None:
    def ask(schema: Any, is_streamed: bool) -> str:
        told = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        form = {"type": "text"} if schema is None else told if schema else {"type": "json_object"}
        fields = {"model": "chatml", "max_tokens": 48, "response_format": form}
        if is_streamed:
            return streamed(client.events(QUESTIONS[0], **fields))
        return client.text(QUESTIONS[0], **fields)

    free = ask(None, False)
    wanted = [(schema, flag) for schema in (VITALS, LEVELS, {}, None) for flag in (False, True)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda each: ask(*each), wanted))
    assert got[0::2] == got[1::2]
    assert got[-1] == free
    vitals, levels, anything = (json.loads(text) for text in got[0:6:2])
    assert list(vitals) == ["bp", "hr"] and isinstance(vitals["hr"], int)
    assert set(levels) <= {"urgent", "naïve"} and 1 <= len(levels) <= 3
    assert isinstance(anything, dict)


IMAGE = {"type": "image_url", "image_url": {"url": "http://203.0.113.1/a"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def says(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


REFUSED: list[tuple[str | None, dict[str, Any]]] = [
    ("model", {"model": ["a"], "adapters": "lora"}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hi"}),
    ("messages", says("hi", "king")),
    ("messages", says([IMAGE])),
    ("messages", says("word " * 3000)),
    ("messages", says("x" * 40_000)),
    (None, says("\ud800")),
    ("max_tokens", {"max_tokens": 0}),
    ("temperature", {"temperature": "hot"}),
    ("tools", {"tools": [TOOL]}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("top_k", {"top_k": 1.5}),
    ("n", {"n": 2}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    (
        "response_format",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
    ),
    ("stop", {"stop": 7}),
    ("seed", {"seed": "x"}),
    *(("logit_bias", {"logit_bias": bias}) for bias in ({"9" * 8: 1}, {"9" * 5000: 1})),
    ("logit_bias", {"logit_bias": {"1": 1e308}}),
    ("xtc_probability", {"xtc_probability": 1}),
    ("stream_options", {"stream_options": 3}),
]


def test_refusals_are_openai_errors(client: Client) -> None:
    unknown = [("model", name) for name in ("mlx-community/Qwen3-0.6B-4bit", "../../etc")]
    missing = [(key, {key: name}) for key, name in [*unknown, ("adapters", "/etc")]]
    for status, cases in ((400, REFUSED), (404, missing)):
        for param, fields in cases:
            got, body = client.chat("Hi", **fields)
            assert (got, body["error"]["param"]) == (status, param), (fields, body)
            assert body["error"]["type"] == "invalid_request_error"


def test_numbers_out_of_all_proportion_stop_nobody(client: Client) -> None:
    numbers = (0, 10**6, 10**19, 1e308, 1e-320)
    kinds = ("repetition", "presence", "frequency")
    fields: list[dict[str, Any]] = [{"temperature": number} for number in numbers]
    fields += [{f"{kind}_penalty": number} for kind in kinds for number in numbers]
    fields += [
        {f"{k}_context_size": size, f"{k}_penalty": 1.5} for k in kinds for size in numbers[:3]
    ]
    assert {client.chat("Hi", max_tokens=2, **each)[0] for each in fields} == {200, 400}
    assert client.text("Hi", max_tokens=2)


def test_requests_that_are_no_requests(client: Client) -> None:
    path = "/v1/chat/completions"
    numbers = (b'{"temperature": NaN}', b'{"top_p": 1e999}', b'{"n": %d}' % 10**400)
    for body in (b"{", b"[]", b"\xff\xfe", b"[" * 5000, *numbers):
        status, answer = client.request("POST", path, body)
        assert (status, "error" in json.loads(answer)) == (400, True)
    assert client.request("POST", "/v1/embeddings", b"{}")[0] == 404
    for length, status in (("-5", 400), (str(1 << 40), 413), ("9" * 5000, 400)):
        assert client.request("POST", path, None, {"Content-Length": length})[0] == status
    for head in (
        f"GET /health HTTP/1.1\r\nHost: localhost:{client.port}\r\nHost: evil.example",
        f"POST / HTTP/1.1\r\nHost: localhost:{client.port}\r\nContent-Length: -5",
        "nonsense",
    ):
        with socket.create_connection(("127.0.0.1", client.port)) as raw:
            raw.sendall(f"{head}\r\n\r\n".encode())
            raw.settimeout(20)
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
    assert client.get("/health")[0] == 200


def test_other_names_pages_and_verbs_are_refused(client: Client) -> None:
    evil, good = {"Origin": "http://evil.example"}, {"Origin": "http://good.example"}
    names = ("localhost", "localhost:1", "evil.local:PORT", "127.0.0.1.evil.example:PORT")
    cases: list[tuple[str, dict[str, str], int]] = [
        *(("GET", {"Host": name}, 200) for name in ("localhost:PORT", "[::1]:PORT")),
        ("GET", {"Host": "LOCALHOST:PORT", **good}, 200),
        *(("GET", {"Host": name}, 403) for name in (*names, "[::1", "")),
        ("GET", evil, 403),
        ("GET", {"Origin": "null"}, 403),
        ("POST", {**evil, "Content-Type": "text/plain"}, 403),
        ("OPTIONS", evil, 403),
        # The page that the server itself shows.
        ("GET", {"Origin": "http://127.0.0.1:PORT"}, 200),
        ("GET", {"Origin": "http://127.0.0.1:1"}, 403),
        ("GET", {"Origin": "https://127.0.0.1:PORT"}, 403),
        *((verb, {}, 405) for verb in ("PUT", "DELETE")),
        ("OPTIONS", good, 405),
    ]
    for method, headers, status in cases:
        named = {key: value.replace("PORT", str(client.port)) for key, value in headers.items()}
        path = "/v1/chat/completions" if method == "POST" else "/v1/models"
        body = json.dumps({**says("Hi"), "max_tokens": 2}).encode() if method == "POST" else None
        got, answer = client.request(method, path, body, named)
        assert got == status, (method, headers)
        if status != 200:
            error = json.loads(answer)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert ("--allow-origin" in error["message"]) == (got == 403 and "Origin" in headers)
    # A page that is allowed gets what its browser asks for.
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    status, _, told = client.answer("OPTIONS", "/v1/chat/completions", None, {**good, **asks})
    assert (status, told["access-control-allow-headers"]) == (200, "content-type")
    assert told["access-control-allow-origin"] == "http://good.example"
    status, _, told = client.answer("GET", "/v1/models", None, good)
    assert (status, told["access-control-allow-origin"]) == (200, "http://good.example")


def test_a_huge_prompt_keeps_nobody_waiting(client: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        huge = [pool.submit(client.chat, "word " * 2_400_000) for _ in range(3)]
        began = time.monotonic()
        assert client.text("Hi", max_tokens=2)
        assert time.monotonic() - began < 10
        for each in huge:
            status, body = each.result()
            assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


def test_clients_that_go_away_free_their_places(tiny_model_dir: Path) -> None:
    with serving("--model", str(tiny_model_dir), "--concurrency", "1") as client:
        for is_stream in (True, False) * 5:
            fields = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000}
            body = json.dumps({**fields, "stream": is_stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{client.port}\r\n"
            with socket.create_connection(("127.0.0.1", client.port)) as gone:
                gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                if is_stream:
                    gone.recv(64)
        began = time.monotonic()
        assert client.text("Hi", max_tokens=4)
        # Each of the ten takes some seconds by itself.
        assert time.monotonic() - began < 5


def test_a_second_turn_goes_on_from_the_first(client: Client) -> None:
    """What two turns share is computed once, for each adapter, and rounded where asked for."""
    first = {"role": "user", "content": "word " * 200}
    again = [first, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]

    def cached(server: Client, **fields: Any) -> list[int]:
        asked = [server.chat("", max_tokens=2, messages=m, **fields)[1] for m in ([first], again)]
        return [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in asked]

    for model in ("lora", "starter"):
        none, most = cached(client, model=model)
        assert none < 40 and most > 200
    with serving("--model", "starter", "--kv-bits", "8") as rounded:
        near = rounded.text(QUESTIONS[1], max_tokens=4)
        assert near == client.text(QUESTIONS[1], model="starter", max_tokens=4)
        assert cached(rounded)[1] > 200


def test_a_tokenizer_that_panics_fails_its_answers_only(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "hostile")
    whole = json.loads((model / "tokenizer.json").read_text())
    whole["decoder"] = {"type": "Strip", "content": "e", "start": 5, "stop": 5}
    (model / "tokenizer.json").write_text(json.dumps(whole))
    fields: dict[str, Any] = {"logit_bias": {str(whole["model"]["vocab"]["e"]): 1000}}
    with serving("--model", str(model)) as client:
        status, body = client.chat("Hi", max_tokens=2, **fields)
        assert (status, body["error"]["type"]) == (500, "server_error")
        assert "error" in client.events("Hi", max_tokens=2, **fields)[0]
        assert client.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130)],
)
def test_signals_end_it_cleanly(tiny_model_dir: Path, sent: list[int], code: int) -> None:
    with serving("--model", str(tiny_model_dir)) as client:
        assert client.text(QUESTIONS[0], max_tokens=4, temperature=1.0)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.text, QUESTIONS[0], max_tokens=300, temperature=1.0, seed=1)
            time.sleep(0.3)
            for each in sent:
                client.process.send_signal(each)
            if len(sent) == 1:
                # An answer under way may end.
                assert len(asked.result()) > 20
            else:
                asked.exception()
        assert client.process.wait(20) == code
        assert client.process.stderr is not None and client.process.stdout is not None
        # What it said once it answered was the one object of --json.
        assert (client.process.stdout.read(), client.process.stderr.read()) == ("", "")


def test_what_cannot_be_served_is_one_line(
    cli: Any, tmp_path: Path, adapters: dict[str, Path]
) -> None:
    lora = f"--adapter={adapters['lora']}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for code, told, *flags in (
            (4, "was trained on", write_tiny_model(tmp_path / "tiny", bits=4), "--port=0", lora),
            (2, "'lora' is taken", "starter", lora, lora),
            (2, "cannot listen on", "starter", f"--port={taken.getsockname()[1]}"),
            (4, "not in the local Hub cache", "no/such", "--port=0"),
        ):
            err = cli("serve", "--offline", "--model", *flags, code=code).err
            assert told in err and err.count("\n") == 1
