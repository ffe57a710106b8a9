"""Export for Ollama: a folder with the GGUF file, and a Modelfile that prompts it as trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import Artifact, describe
from mlx_itune.export.consumers import consumer_warnings
from mlx_itune.export.gguf.tokenizer import tokenizer_limits
from mlx_itune.export.shipping.go_template import go_template
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.files import require_free_bytes, staged_directory, storage_errors

MODELFILE = "Modelfile"
_GGUF_MAGIC = b"GGUF"
# Ollama's own default is 4096; beyond this, memory for a long context is the user's choice.
_MOST_CONTEXT_TOKENS = 8192
# generation_config.json -> Ollama's parameters.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class OllamaExport:
    """The folder, what its Modelfile says, and what the user should know before shipping it.

    ``template``: whether the chat template could be translated.
    """

    artifact: Artifact
    modelfile: str
    template: bool
    notes: tuple[str, ...]


def export_ollama(
    gguf_file: Path,
    out: Path,
    *,
    tokenizer: ChatTokenizer,
    config: Mapping[str, Any],
    adapter_file: Path | None = None,
    generation: Mapping[str, Any] | None = None,
    system: str | None = None,
    num_ctx: int | None = None,
    parameters: Mapping[str, float | int] | None = None,
    licence: str | None = None,
    move: bool = False,
    overwrite: bool = False,
) -> OllamaExport:
    """Write ``out`` with the GGUF model, the GGUF LoRA of ``adapter_file`` if any, and Modelfile.

    ``config`` and ``generation`` are config.json and generation_config.json of the model;
    ``system`` is the system prompt of every conversation; ``num_ctx`` the context in tokens;
    ``parameters`` overrides generation_config.json. ``move`` takes the files instead of copying.
    Raises ModelError for a file that is no GGUF, UsageError for a text that a Modelfile cannot
    hold, StorageError.
    """
    files = [gguf_file] if adapter_file is None else [gguf_file, adapter_file]
    for file in files:
        require_gguf(file)
    if len({file.name for file in files}) != len(files):
        raise UsageError(f"model and adapter have the same file name {gguf_file.name}")
    template, notes = _translated(tokenizer)
    text = modelfile(
        gguf_file.name,
        adapter=None if adapter_file is None else adapter_file.name,
        template=template,
        system=system,
        stops=stop_texts(tokenizer),
        parameters={
            "num_ctx": num_ctx or _context(config),
            **_sampling(generation or {}),
            **(parameters or {}),
        },
        licence=licence,
    )
    with staged_directory(out, overwrite=overwrite) as stage:
        for file in files:
            place(file, stage / file.name, move=move)
        (stage / MODELFILE).write_text(text, encoding="utf-8")
    if move:
        with storage_errors(out):
            for file in files:
                file.unlink()
    kind = None if adapter_file is None else "lora"
    notes += (*tokenizer_limits(tokenizer), *consumer_warnings("ollama", {}, adapter_kind=kind))
    return OllamaExport(describe(out, "ollama"), text, template is not None, notes)


def modelfile(
    model: str,
    *,
    adapter: str | None = None,
    template: str | None = None,
    system: str | None = None,
    stops: Sequence[str] = (),
    parameters: Mapping[str, float | int] | None = None,
    licence: str | None = None,
) -> str:
    """The text of a Modelfile (ollama/ollama, docs/modelfile.md and parser/parser.go).

    Raises UsageError for a text that its quotes cannot hold.
    """
    lines = [f"FROM ./{model}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines += [f"TEMPLATE {_quoted('the template', template)}"] if template else []
    lines += [f"SYSTEM {_quoted('the system prompt', system)}"] if system else []
    lines += [f"PARAMETER {name} {value}" for name, value in (parameters or {}).items()]
    lines += [f"PARAMETER stop {_quoted('a stop text', stop)}" for stop in stops]
    lines += [f"LICENSE {_quoted('the licence', licence)}"] if licence else []
    return "\n".join(lines) + "\n"


def stop_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Texts that end a reply: every token that ends a turn, and ends that are plain text."""
    tokens = [tokenizer.hf.convert_ids_to_tokens(i) for i in sorted(tokenizer.eos_ids)]
    return (*tokens, *tokenizer.stop_strings)


def common_system(conversations: Iterable[Sequence[Turn]]) -> str | None:
    """The system prompt that all conversations begin with, if it is one and the same."""
    found: set[str | None] = set()
    for turns in conversations:
        found.add(turns[0].content if turns and turns[0].role == "system" else None)
        if len(found) > 1:
            return None
    return found.pop() if found else None


def require_gguf(file: Path) -> None:
    """Raise ModelError unless ``file`` begins as a GGUF file does, StorageError if unreadable."""
    with storage_errors(file), file.open("rb") as opened:
        magic = opened.read(4)
    if magic != _GGUF_MAGIC:
        raise ModelError("is not a GGUF file", where=str(file))


def place(source: Path, target: Path, *, move: bool) -> None:
    """Copy a file; where it is to be moved, share its bytes until the source is unlinked."""
    if move:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    with storage_errors(source):
        require_free_bytes(target, source.stat().st_size, source.name)
        shutil.copyfile(source, target)


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json of a model directory, empty where there is none."""
    try:
        value = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _translated(tokenizer: ChatTokenizer) -> tuple[str | None, tuple[str, ...]]:
    try:
        return go_template(tokenizer), ()
    except ModelError as error:
        return None, (
            f"no TEMPLATE was written: {error.message}; Ollama guesses one by the file's own, "
            "compare its answers before shipping",
        )


def _context(config: Mapping[str, Any]) -> int:
    longest = config.get("max_position_embeddings") or _MOST_CONTEXT_TOKENS
    return min(int(longest), _MOST_CONTEXT_TOKENS)


def _sampling(generation: Mapping[str, Any]) -> dict[str, float | int]:
    if generation.get("do_sample") is False:
        return {"temperature": 0}
    return {
        name: generation[key]
        for key, name in _SAMPLING.items()
        if isinstance(generation.get(key), (int, float))
    }


def _quoted(what: str, text: str) -> str:
    """``text`` in quotes as Ollama's parser reads them: it knows no escapes.

    A quoted text ends at the first line that ends with the closing quotes.
    """
    lost = next((c for c in text if c not in "\n\t " and not c.isprintable()), None)
    if lost is not None:
        raise UsageError(f"{what} has the character U+{ord(lost):04X}, which a Modelfile drops")
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    early = any(line.rstrip().endswith('"""') for line in text.split("\n")[:-1])
    if early:
        raise UsageError(f'{what} has a line that ends in """, where a Modelfile would end it')
    return f'"""{text}"""'
