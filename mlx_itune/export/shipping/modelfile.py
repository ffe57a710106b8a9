"""Ollama's Modelfile, which prompts a GGUF model as it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.json_files import read_object

MODELFILE = "Modelfile"
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


def modelfile(
    model: str,
    *,
    adapter: str | None = None,
    template: str | None = None,
    system: str | None = None,
    stops: Sequence[str] = (),
    parameters: Mapping[str, float | int] = MappingProxyType({}),
    licence: str | None = None,
) -> str:
    """The text of a Modelfile (ollama/ollama, docs/modelfile.md and parser/parser.go).

    Raises UsageError for a text that its quotes cannot hold.
    """
    lines = [f"FROM ./{model}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines += [f"TEMPLATE {_quoted('the template', template)}"] if template else []
    lines += [f"SYSTEM {_quoted('the system prompt', system)}"] if system else []
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {_quoted('a stop text', stop)}" for stop in stops]
    lines += [f"LICENSE {_quoted('the licence', licence)}"] if licence else []
    return "\n".join(lines) + "\n"


def stop_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Texts that end a reply: every token that ends a turn, and ends that are plain text."""
    tokens = [tokenizer.hf.convert_ids_to_tokens(i) for i in sorted(tokenizer.eos_ids)]
    return (*tokens, *tokenizer.stop_strings)


def common_system(rows: Iterable[Conversation]) -> str | None:
    """The system prompt that all conversations begin with, if it is one and the same."""
    first = (row.turns[0] for row in rows if row.turns)
    found = {turn.content if turn.role == "system" else None for turn in first}
    return found.pop() if len(found) == 1 else None


def parameters_of(folder: Path) -> dict[str, float | int]:
    """Context and sampling of a model directory, under Ollama's names. Raises ModelError."""
    config = read_object(folder / "config.json", error=ModelError)
    longest = config.get("max_position_embeddings")
    context = longest if isinstance(longest, int) else _MOST_CONTEXT_TOKENS
    return {"num_ctx": min(context, _MOST_CONTEXT_TOKENS), **_sampling(folder)}


def _sampling(folder: Path) -> dict[str, float | int]:
    file = folder / "generation_config.json"
    generation = read_object(file, error=ModelError) if file.is_file() else {}
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
