"""How many answers of `serve` are JSON of their schema, and what that costs a token.

    python benchmarks/json_serving.py --model starter [--adapter DIR] [--max-tokens 256]

20 schemas x 20 prompts by the `openai` client where it is installed, else by plain HTTP. Every
answer is judged by jsonschema-rs. A token of free text and one held to a schema are timed on the
same prompts, one request at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlx_itune.dataset.schema import faults_by
from tests.inference.served import serving

Schema = dict[str, Any]


def record(**properties: Schema) -> Schema:
    """An object of exactly these."""
    closed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


def several(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}


def text(**how: Any) -> Schema:
    return {"type": "string", **how}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def of(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


ADDRESS = record(street=TEXT, city=TEXT, zip=text(pattern="^[0-9]{5}$"))
NODE = record(value=WHOLE, next=nullable(of("node")))
TREE = record(name=TEXT, children=several(of("tree")))
TERM: Schema = {
    "anyOf": [record(n=NUMBER), record(op=one_of("+", "*"), l=of("term"), r=of("term"))]
}
SCHEMAS: dict[str, Schema] = {
    "flat": record(name=TEXT, age=WHOLE, member=FLAG),
    "nested": record(person=record(name=TEXT, address=ADDRESS), note=nullable(TEXT)),
    "enum": record(label=one_of("bug", "wish", "question"), sure=one_of("low", "high")),
    "array": record(tags=several(TEXT, minItems=1, maxItems=5)),
    "open array": several(record(item=TEXT, count=WHOLE)),
    "unicode": record(größe=NUMBER, 名前=TEXT, art=one_of("naïve", "日本", "emoji 🙂")),
    "list": {**of("node"), "$defs": {"node": NODE}},
    "tree": {**of("tree"), "$defs": {"tree": TREE}},
    "expression": {**of("term"), "$defs": {"term": TERM}},
    "any of": record(id={"anyOf": [WHOLE, text(format="uuid")]}, kind={"type": ["string", "null"]}),
    "optional keys": {**record(a=TEXT, b=WHOLE, c=several(FLAG), d=record(e=TEXT)), "required": []},
    "patterns": record(code=text(pattern="^[A-Z]{3}-[0-9]{4}$"), tail=text(pattern="[0-9]{2}x")),
    "formats": record(
        day=text(format="date"), at=text(format="date-time"), mail=text(format="email"),
        ip=text(format="ipv4"), id=text(format="uuid"),
    ),
    "bounds": record(
        percent={"type": "integer", "minimum": 0, "maximum": 100},
        rate={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        short=text(minLength=2, maxLength=12),
    ),
    "map": {"type": "object", "additionalProperties": NUMBER},
    "tuple": {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
    "const": record(v={"const": 2}, payload=record(kind={"const": "a"}, lines=several(TEXT))),
    "deep": record(a=record(b=record(c=several(record(d=record(e=TEXT, f=several(WHOLE))))))),
    "wide": record(**{f"field_{n}": (TEXT, WHOLE, FLAG, NUMBER)[n % 4] for n in range(16)}),
    "all of": {"allOf": [record(name=TEXT) | {"additionalProperties": True},
                         {"type": "object", "properties": {"rank": WHOLE}, "required": ["rank"]}]},
}  # fmt: skip
PROMPTS = [
    f"{ask} {what}."
    for ask in ("Describe as JSON", "Extract the facts of", "Invent a record for", "Answer about")
    for what in ("a patient, Ann", "an order of 3 lamps", "the weather in Zürich", "a tree", "42")
]  # fmt: skip


def by_client(url: str, model: str) -> Callable[..., Any]:
    """Asks with OpenAI's own client."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=900)

    def ask(prompt: str, **fields: Any) -> Any:
        said = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(model=model, messages=said, **fields)  # type: ignore
        return answer.model_dump()

    return ask


def by_http(url: str, model: str) -> Callable[..., Any]:
    """Asks with the standard library."""

    def ask(prompt: str, **fields: Any) -> Any:
        said = [{"role": "user", "content": prompt}]
        body = json.dumps({"model": model, "messages": said, **fields}).encode()
        with urllib.request.urlopen(f"{url}/chat/completions", body, timeout=900) as answer:
            return json.load(answer)

    return ask


def form(schema: Schema) -> Schema:
    """A request's response_format."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


def fault_of(answer: Any, schema: Schema) -> str | None:
    """Why an answer is not JSON of its schema."""
    choice = answer["choices"][0]
    try:
        fault = faults_by(schema)(json.loads(choice["message"]["content"]))
    except ValueError as error:
        fault = f"no JSON: {error}"
    return fault and f"{fault} ({choice['finish_reason']}): {choice['message']['content'][:300]}"


def ms_a_token(ask: Callable[..., Any], max_tokens: int, **fields: Any) -> float:
    """The median over some prompts; each is asked twice, so that its past is computed."""
    times = []
    for prompt in PROMPTS[:5]:
        for is_timed in (False, True):
            began = time.monotonic()
            usage = ask(prompt, max_tokens=max_tokens, **fields)["usage"]
            if is_timed:
                times.append(1e3 * (time.monotonic() - began) / usage["completion_tokens"])
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--adapter")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--at-once", type=int, default=8)
    asked = parser.parse_args()
    flags = ["--adapter", asked.adapter] if asked.adapter else []
    with serving("--model", asked.model, *flags) as server:
        model = server.get("/v1/models")[1]["data"][0]["id"]
        try:
            ask, how = by_client(server.url, model), "the openai client"
        except ImportError:
            ask, how = by_http(server.url, model), "plain HTTP"
        right, total, short = 0, 0, 0
        with ThreadPoolExecutor(asked.at_once) as pool:
            for name, schema in SCHEMAS.items():
                fields = {"max_tokens": asked.max_tokens, "temperature": asked.temperature}
                answers = pool.map(
                    lambda prompt, s=schema, f=fields: ask(prompt, response_format=form(s), **f),
                    PROMPTS[: asked.prompts],
                )
                for answer in answers:
                    total += 1
                    short += "notes" in answer["usage"]
                    fault = fault_of(answer, schema)
                    right += fault is None
                    if fault:
                        print(f"{name}: {fault}")
        print(f"{right} valid of {total} ({short} shortened), by {how}")
        free = ms_a_token(ask, 96)
        held = ms_a_token(ask, 96, response_format=form(several(TEXT)))
        print(f"a token: {free:.1f} ms free, {held:.1f} ms held: {held / free:.2f}x")


if __name__ == "__main__":
    main()
