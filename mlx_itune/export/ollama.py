"""Ollama's Modelfile, which prompts a GGUF model as it was trained.

Ollama renders templates of Go's text/template. Most chat templates write a constant text between
two contents, which depends on the two roles alone; it is read off rendered conversations. A
template that does more gives two texts for one pair of roles, and is not translated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gguf.tokenizer import adds_bos
from mlx_itune.kit.errors import DataError, ModelError, UsageError
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
# What stands before the first content, and after the last.
START, REPLY = "", "reply"
_ROLES = ("system", "user", "assistant")
_MOST_TURNS = 5
# Contents, by place: several lines, markup, digits, other scripts.
_WORDS = (
    "q\u0001{}z",
    "Hello {}",
    "{}. a\n\n  b",
    "<b>{}</b> {{% x %}}",
    "été {} 世界 {{}}",
    "### {}:",
)


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
    """The text of a Modelfile (ollama/ollama, docs/modelfile.md and parser/parser.go). Raises
    UsageError for a text that its quotes cannot hold."""
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
    longest = read_object(folder / "config.json", error=ModelError).get("max_position_embeddings")
    context = longest if isinstance(longest, int) else _MOST_CONTEXT_TOKENS
    found: dict[str, float | int] = {"num_ctx": min(context, _MOST_CONTEXT_TOKENS)}
    file = folder / "generation_config.json"
    generation = read_object(file, error=ModelError) if file.is_file() else {}
    if generation.get("do_sample") is False:
        return found | {"temperature": 0}
    said = {name: generation.get(key) for key, name in _SAMPLING.items()}
    return found | {name: n for name, n in said.items() if isinstance(n, (int, float))}


def _quoted(what: str, text: str) -> str:
    """``text`` in quotes as Ollama's parser reads them: it knows no escapes. A quoted text ends at
    the first line that ends with the closing quotes."""
    lost = next((c for c in text if c not in "\n\t " and not c.isprintable()), None)
    if lost is not None:
        raise UsageError(f"{what} has the character U+{ord(lost):04X}, which a Modelfile drops")
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    early = any(line.rstrip().endswith('"""') for line in text.split("\n")[:-1])
    if early:
        raise UsageError(f'{what} has a line that ends in """, where a Modelfile would end it')
    return f'"""{text}"""'


def between(tokenizer: ChatTokenizer) -> dict[tuple[str, str], str]:
    """What the chat template writes between a content of role a and one of role b, by (a, b). a is
    START before everything; b is REPLY where the model is to write. Read off conversations of 1 to
    5 turns. Raises ModelError, with the reason, for a template that is not of this kind."""
    if "strftime_now" in tokenizer.template_text:
        raise ModelError("the chat template writes today's date, which Ollama cannot")
    texts: dict[tuple[str, str], str] = {}
    for system, turns, words in itertools.product((False, True), range(1, _MOST_TURNS + 1), _WORDS):
        roles = [*(["system"] * system), *(["user", "assistant"] * turns)[: 2 * turns - 1]]
        messages = [{"role": r, "content": words.format(n)} for n, r in enumerate(roles)]
        try:
            rendered = tokenizer.render_text(messages, add_generation_prompt=True)
        except DataError as error:
            if system and turns == 1:
                # It has no system turns.
                break
            raise ModelError(f"the chat template refuses a conversation: {error}") from None
        _read(rendered, messages, texts)
    return texts


def _read(
    rendered: str, messages: Sequence[Mapping[str, str]], texts: dict[tuple[str, str], str]
) -> None:
    """Cut ``rendered`` at the contents; what stands between them is what stood there before."""
    found, rest = [], rendered
    for message in messages:
        text, content, rest = rest.partition(message["content"])
        if not content:
            raise ModelError("the chat template leaves a turn out, or moves it")
        found.append(text)
    roles = [START, *(message["role"] for message in messages), REPLY]
    for (before, role), text in zip(itertools.pairwise(roles), [*found, rest], strict=True):
        if texts.setdefault((before, role), text) != text:
            raise ModelError(
                f"what the chat template writes between {before or 'the start'} and {role} "
                "depends on more than the two"
            )


def go_template(tokenizer: ChatTokenizer) -> str:
    """Ollama's TEMPLATE: the prompt that was trained, less a BOS that the runtime puts itself.
    Raises ModelError where the chat template cannot be translated."""
    texts = between(tokenizer)
    bos = tokenizer.hf.bos_token or ""
    starts = {key: text for key, text in texts.items() if key[0] == START}
    if not bos or not all(text.startswith(bos) for text in starts.values()):
        return _written(texts)
    written = _written(texts | {key: text.removeprefix(bos) for key, text in starts.items()})
    return written if adds_bos(tokenizer) else f"{_literal(bos)}\n{written}"


def _written(texts: Mapping[tuple[str, str], str]) -> str:
    """The Go template: a turn opens by what came before it, and closes on its own."""
    to_user = [text for (_, role), text in texts.items() if role == "user"]
    opening = _shared([text[::-1] for text in to_user])[::-1]
    closing = {a: texts.get((a, "user"), "").removesuffix(opening) for a in ("system", "assistant")}
    closing["user"] = _shared([text for (a, _), text in texts.items() if a == "user"])
    body: list[str] = []
    for role in [role for role in _ROLES if any(b == role for _, b in texts)]:
        opened = {
            a: text.removeprefix(closing.get(a, "")) for (a, b), text in texts.items() if b == role
        }
        body.append(f'{{{{- {"else if" if body else "if"} eq .Role "{role}" }}}}')
        body += [*_opening(opened), "{{- .Content }}"]
        if closing[role]:
            # A reply that was begun is to be continued.
            end = [_literal(closing[role])]
            body += ["{{- if not $last }}", *end, "{{- end }}"] if role == "assistant" else end
    replies = {a: t.removeprefix(closing[a]) for (a, b), t in texts.items() if b == REPLY}
    return "\n".join(
        [
            '{{- $before := "" }}',
            "{{- range $i, $message := .Messages }}",
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
            *body,
            "{{- end }}",
            "{{- $before = .Role }}",
            "{{- end }}",
            '{{- if ne $before "assistant" }}',
            *_opening(replies),
            "{{- end }}",
        ]
    )


def _opening(by_before: Mapping[str, str]) -> list[str]:
    texts = list(dict.fromkeys(by_before.values()))
    if len(texts) == 1:
        return [_literal(texts[0])] if texts[0] else []
    lines: list[str] = []
    for text in filter(None, texts):
        asked = [f'eq $before "{a}"' for a, t in by_before.items() if t == text]
        condition = asked[0] if len(asked) == 1 else "or " + " ".join(f"({a})" for a in asked)
        lines += [f"{{{{- {'else if' if lines else 'if'} {condition} }}}}", _literal(text)]
    return [*lines, "{{- end }}"]


def _literal(text: str) -> str:
    """An action that writes ``text``: no layout around it can change it, nor can quotes in it."""
    # JSON's escapes are Go's too, but for characters beyond 16 bits.
    shown = ""
    for char in json.dumps(text, ensure_ascii=False):
        code = f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
        shown += char if char == " " or char.isprintable() else code
    return "{{- " + shown + " }}"


def _shared(texts: Sequence[str]) -> str:
    alike = itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*texts, strict=False))
    return "".join(chars[0] for chars in alike)
