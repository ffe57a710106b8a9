"""A server in a process of its own, and what its answers have to be."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model
from tests.export.shipped_models import write_adapter

KINDS = ("lora", "grid", "qalora", "dora")
QUESTIONS = (
    "Hello, who are you?",
    "List the medications: metformin 500 mg twice daily, zolpidem 5 mg at night.",
    "What is the triage level of this note? Triage: urgent.",
    "Give the patient's name and age.",
)


def starter_adapters(folder: Path) -> dict[str, Path]:
    """One of each kind, and one of another template."""
    how: dict[str, Any] = {"strength": 0.18}
    made = {
        kind: write_adapter(folder / kind, "starter", kind=kind, seed=n, **how)
        for n, kind in enumerate(KINDS, 1)
    }
    return made | {"chatml": write_adapter(folder / "c", "starter", template="chatml", **how)}


def expected(adapters: Mapping[str, Path], max_tokens: int) -> dict[str, list[str]]:
    """What `generate` answers to each question on its own, by the name of the model."""
    found = {}
    named: dict[str, Path | None] = {"mlx-itune/starter": None, **adapters}
    for name, adapter in named.items():
        loaded, tokenizer = open_model(Opening("starter", adapter))
        generator = Generator(loaded, tokenizer)
        prompts = [tokenizer.prompt_ids([Turn("user", text)]) for text in QUESTIONS]
        found[name] = ["".join(generator.stream(ids, max_tokens=max_tokens)) for ids in prompts]
    for texts in zip(*found.values(), strict=True):
        assert len(set(texts)) == len(found)
    return found


class Client:
    """The few requests that the tests make, with the standard library."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url, self.process = url, process
        self.port = int(url.rsplit(":", 1)[1].split("/")[0])

    def answer(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, bytes, Any]:
        """Status, body, headers."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def request(self, *asked: Any) -> tuple[int, bytes]:
        return self.answer(*asked)[:2]

    def get(self, path: str) -> tuple[int, Any]:
        status, body = self.request("GET", path)
        return status, json.loads(body)

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        status, body = self.request("POST", path, json.dumps(fields).encode())
        return status, json.loads(body)

    def chat(self, text: str, **fields: Any) -> tuple[int, Any]:
        fields.setdefault("messages", [{"role": "user", "content": text}])
        return self.post("/v1/chat/completions", **fields)

    def text(self, text: str, **fields: Any) -> str:
        status, body = self.chat(text, **fields)
        assert status == 200, body
        return body["choices"][0]["message"]["content"] or ""

    def events(self, text: str, **fields: Any) -> list[Any]:
        """The chunks of a stream, without its keep-alives and its end, which has to be there."""
        message = {"messages": [{"role": "user", "content": text}], "stream": True, **fields}
        status, raw = self.request("POST", "/v1/chat/completions", json.dumps(message).encode())
        assert status == 200, raw
        lines = [part for part in raw.decode().split("\n\n") if part.startswith("data: ")]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextmanager
def serving(*flags: str) -> Iterator[Client]:
    """`mlx-itune serve FLAGS` on a free port, stopped with SIGTERM at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_itune", "serve", "--port", "0", "--offline", "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield Client(json.loads(line)["url"], process)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.communicate()
