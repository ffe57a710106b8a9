"""Ollama's Modelfile, which prompts a GGUF model as it was trained.

Ollama renders templates of Go's text/template. Most chat templates write a constant text between
two contents, which depends on the two roles alone: from "system" to "user", from "user" to the
reply. Those texts are read off rendered conversations. A template that does more (dates, contents
looked into, turns treated by their place) gives two texts for one pair of roles, and is not
translated.
"""

from __future__ import annotations

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


def between(tokenizer: ChatTokenizer) -> dict[tuple[str, str], str]:
    """What the chat template writes between a content of role a and one of role b, by (a, b).

    a is START before everything; b is REPLY where the model is to write. Checked on conversations
    of 1 to 5 turns. Raises ModelError, with the reason, for a template that is not of this kind.
    """
    if "strftime_now" in tokenizer.template_text:
        raise ModelError("the chat template writes today's date, which Ollama cannot")
    texts: dict[tuple[str, str], str] = {}
    for system in (False, True):
        for turns in range(1, _MOST_TURNS + 1):
            messages = _conversation(turns, system=system)
            try:
                rendered = tokenizer.render_text(messages, add_generation_prompt=True)
            except DataError:
                if not system:
                    raise ModelError(
                        "the chat template refuses a plain conversation", hint="check it"
                    ) from None
                # No system turns, or none in a conversation this long.
                break
            _read(rendered, messages, texts)
    for messages in _checks(system=(START, "system") in texts):
        try:
            wanted = tokenizer.render_text(messages, add_generation_prompt=True)
        except DataError as error:
            raise ModelError(f"the chat template refuses a conversation: {error}") from None
        before, said = START, ""
        for message in messages:
            said += texts[before, message["role"]] + message["content"]
            before = message["role"]
        if said + texts[before, REPLY] != wanted:
            raise ModelError("what the chat template writes depends on what the turns say")
    return texts


def go_template(tokenizer: ChatTokenizer) -> str:
    """Ollama's TEMPLATE: the prompt that was trained, less a BOS that the runtime puts itself.

    Raises ModelError where the chat template cannot be translated.
    """
    texts = between(tokenizer)
    bos = tokenizer.hf.bos_token or ""
    starts = {key: text for key, text in texts.items() if key[0] == START}
    if not bos or not all(text.startswith(bos) for text in starts.values()):
        return _written(texts)
    written = _written(texts | {key: text.removeprefix(bos) for key, text in starts.items()})
    return written if adds_bos(tokenizer) else f"{_literal(bos)}\n{written}"


def _conversation(turns: int, *, system: bool, words: str = "q\u0001{}z") -> list[dict[str, str]]:
    roles = [*(["system"] if system else []), *(["user", "assistant"] * turns)[: 2 * turns - 1]]
    return [{"role": r, "content": words.format(n)} for n, r in enumerate(roles)]


def _checks(system: bool) -> Iterable[list[dict[str, str]]]:
    """Other words in the same places: several lines, markup, digits, other scripts."""
    words = (
        "Hello {}",
        "{}. a\n\n  b\n",
        "<b>{}</b> {{% x %}}",
        "été {} 世界 {{}}",
        "### {}:",
    )
    for turns in (1, 2, 3):
        for said in words:
            yield _conversation(turns, system=False, words=said.strip())
            if system:
                yield _conversation(turns, system=True, words=said.strip())


def _read(
    rendered: str, messages: Sequence[Mapping[str, str]], texts: dict[tuple[str, str], str]
) -> None:
    """Cut ``rendered`` at the contents and remember what stands between them."""
    before, rest = START, rendered
    for message in messages:
        text, found, rest = rest.partition(message["content"])
        if not found:
            raise ModelError("the chat template leaves a turn out, or moves it")
        _remember(texts, (before, message["role"]), text)
        before = message["role"]
    _remember(texts, (before, REPLY), rest)


def _remember(texts: dict[tuple[str, str], str], key: tuple[str, str], text: str) -> None:
    if texts.setdefault(key, text) != text:
        raise ModelError(
            f"what the chat template writes between {key[0] or 'the start'} and {key[1]} depends "
            "on more than the two"
        )


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
    body.append("{{- end }}")
    replies = {a: t.removeprefix(closing[a]) for (a, b), t in texts.items() if b == REPLY}
    tail = _opening(replies)
    if tail:
        tail = ['{{- if ne $before "assistant" }}', *tail, "{{- end }}"]
    head = ["{{- range $i, $message := .Messages }}"]
    if any("$last" in line for line in body):
        head.append("{{- $last := eq (len (slice $.Messages $i)) 1 }}")
    if any("$before" in line for line in (*body, *tail)):
        head.insert(0, '{{- $before := "" }}')
        body.append("{{- $before = .Role }}")
    return "\n".join([*head, *body, "{{- end }}", *tail])


def _opening(by_before: Mapping[str, str]) -> list[str]:
    """What opens a turn, by the role of the one before it where that matters."""
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
    # JSON's escapes are Go's too, but for characters beyond 16 bits, which stay as they are.
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    shown = (c if c == " " or c.isprintable() else _escaped(c) for c in quoted)
    return "{{- " + "".join(shown) + " }}"


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _shared(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len, default="")
    same = 0
    while same < len(shortest) and len({text[same] for text in texts}) == 1:
        same += 1
    return shortest[:same]
