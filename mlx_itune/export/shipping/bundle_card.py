"""The model card of a bundle: what it is, how close, under which licences, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_itune.export.shipping.bundle_scripts import model_name
from mlx_itune.kit.errors import one_line

_PYTHON = """\
```python
from mlx_lm import generate, load

model, tokenizer = load("{path}")
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello"}}], add_generation_prompt=True
)
print(generate(model, tokenizer, prompt))
```
"""
_SWIFT = """\
```swift
import HuggingFace
import MLXHuggingFace
import MLXLLM
import MLXLMCommon
import Tokenizers

let folder = Bundle.main.url(forResource: "{path}", withExtension: nil)!
let model = try await loadModelContainer(from: folder, using: #huggingFaceTokenizerLoader())
let session = ChatSession(model)
print(try await session.respond(to: "Hello"))
```
"""
_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello"}}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```
"""
_PEFT = """\
```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{path}")  # fetches the base it names
```
"""
_LLAMA_CPP = """\
```sh
llama-cli -m {path} --jinja -cnv
```
"""
_LLAMA_CPP_LORA = """\
```sh
llama-cli -m BASE.gguf --lora {path} --jinja -cnv
```
"""
_OLLAMA = """\
```sh
sh install-ollama.sh
ollama run {name}
```
"""
_LMSTUDIO = """\
```sh
sh install-lmstudio.sh
```
"""
_ADAPTER = """\
```sh
mlx_lm.generate --model BASE --adapter-path {path} --prompt 'Hello'
```
"""
# Format -> (heading, snippet).
_SNIPPETS: dict[str, tuple[tuple[str, str], ...]] = {
    "mlx": (
        ("Python (mlx-lm)", _PYTHON),
        ("Swift (mlx-swift-lm 3)", _SWIFT),
        ("LM Studio", _LMSTUDIO),
    ),
    "gguf": (("llama.cpp", _LLAMA_CPP), ("LM Studio", _LMSTUDIO)),
    "gguf-lora": (("llama.cpp, base and adapter", _LLAMA_CPP_LORA),),
    "hf": (("transformers", _TRANSFORMERS),),
    "peft": (("PEFT", _PEFT),),
    "ollama": (("Ollama", _OLLAMA),),
    "lmstudio": (("LM Studio", _LMSTUDIO),),
    "adapter": (("mlx-lm, base and adapter", _ADAPTER),),
}


def bundle_card(head: Mapping[str, Any]) -> str:
    """README.md of a bundle; ``head`` is its manifest without the files."""
    base = head["base"]["id"] or "unknown"
    lines = ["---", f"base_model: {one_line(base)}", "pipeline_tag: text-generation", "---", ""]
    lines += [f"# {one_line(head['name'])}", ""]
    lines += [f"Made from {one_line(base)} by {head['made_by']}."]
    if head["base"].get("fingerprint"):
        lines += [f"Fingerprint of the base's weights: `{head['base']['fingerprint']}`."]
    lines += ["", "## How close it is to what was trained", "", *_fidelity(head["fidelity"]), ""]
    lines += ["## Licences", "", "| of | licence |", "|---|---|"]
    for of, licence in head["licences"].items():
        lines.append(f"| {_cell(of)} | {_cell(licence)} |")
    lines += ["", "## How to run it", ""]
    model = model_name(head["name"])
    for part in head["parts"]:
        for title, snippet in _SNIPPETS[part["format"]]:
            lines += [f"### {title}", "", snippet.format(path=part["path"], name=model)]
    lines += [
        "## How to check it",
        "",
        "`manifest.json` has the SHA-256 of every file; the install scripts check them first.",
        "",
    ]
    return "\n".join(lines)


def _fidelity(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None or measured.get("kl_mean") is None:
        return ["Not measured: no adapter was merged into these files."]
    return [
        f"Merged: {measured['method']}. On {measured['tokens']:,} learned tokens of held-out rows,",
        f"against base + adapter: mean KL {measured['kl_mean']:.3g} nats per token,",
        f"99th percentile {measured['kl_p99']:.3g}, same first choice on "
        f"{measured['top1_agreement']:.2%}.",
    ]


def _cell(text: str) -> str:
    return one_line(str(text)).replace("|", "\\|")
