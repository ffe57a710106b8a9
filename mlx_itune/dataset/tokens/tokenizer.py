"""Tokenizer and chat template as one thing: the same code path for training and inference."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.vocab import bytes_to_unicode
from jinja2 import TemplateSyntaxError
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.tokens.control_text import ControlText, Message
from mlx_itune.dataset.tokens.dialect import PROBE, Dialect, dialect_of
from mlx_itune.kit.errors import DataError, ItuneError, ModelError, UsageError, panics_as
from mlx_itune.kit.json_files import read_object, to_record
from mlx_itune.kit.wording import brief, known

if TYPE_CHECKING:
    from tokenizers import Encoding

# Templates for base models that bring none: `NAME.jinja` beside this file. They start with the BOS
# token exactly where the tokenizer itself would put one, because templates are tokenized without
# adding special tokens. `alpaca` is Stanford Alpaca's two prompt texts (train.py, PROMPT_DICT),
# byte for byte: nothing follows "### Response:"; a system turn replaces the opening sentence.
# `vicuna` is FastChat's v1.1 (conversation.py, ADD_COLON_TWO): one space between everything but
# after the end token.
BUILT_IN = ("alpaca", "chatml", "vicuna")

# Control strings as chat templates write them.
_MARKS = re.compile("<[|\uff5c][^<>\\s{}'\"]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>")
# What a template is given anyway, so that it is no option; and switches that have it show thoughts.
_GIVEN = frozenset(
    "messages tools documents chat_template add_generation_prompt bos_token eos_token".split()
)
_SWITCHES = ("enable_thinking", "thinking")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# GPT-2's letters for bytes.
_ALPHABET = {letter: byte for byte, letter in bytes_to_unicode().items()}


class ChatTokenizer:
    """A fast Hugging Face tokenizer with the chat template a run uses. `eos_ids`: every token that
    ends a turn; `control_ids`: all special tokens; `stop_strings`: the end of a turn where the
    template writes plain text. `control_text` keeps what turns say from being read as a control
    token. `options`: what the template is told besides (`enable_thinking`)."""

    def __init__(
        self,
        hf: Any,
        template: str | Mapping[str, str],
        *,
        name: str = "auto",
        eos_ids: Iterable[int] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not hf.is_fast:
            raise ModelError(
                "the tokenizer is a slow one and cannot tell which characters a token covers",
                hint="save it once as tokenizer.json",
            )
        templates = {"default": template} if isinstance(template, str) else dict(template)
        if "default" not in templates:
            raise ModelError(f"no template is named 'default' among {', '.join(sorted(templates))}")
        self.hf = hf
        self.options = dict(options or {})
        # The system prompt of turns that have none, and what is to be told of it all.
        self.system: str | None = None
        self.notes: tuple[str, ...] = ()
        self.name = name
        self.template_text = templates["default"]
        self.template_sha256 = hashlib.sha256(self.template_text.encode()).hexdigest()
        self._tool_template = templates.get("tool_use", self.template_text)

        special = {i for i, token in hf.added_tokens_decoder.items() if token.special}
        own_eos = [] if hf.eos_token_id is None else [hf.eos_token_id]
        eos = {i for i in (*own_eos, *eos_ids) if 0 <= i < len(hf)}
        if not eos:
            raise ModelError("the tokenizer names no end-of-sequence token")
        self.closing_id: int = own_eos[0] if own_eos else min(eos)
        self.control_ids = frozenset(special | eos)
        special_texts = {hf.convert_ids_to_tokens(i): i for i in sorted(self.control_ids)}
        if None in special_texts:
            raise ModelError(f"the tokenizer has no text for its token {special_texts[None]}")
        # Other added tokens that the template writes are part of its language.
        written = self.template_text + self._tool_template
        if wrong := [name for name in self.options if name in _GIVEN or name not in written]:
            raise UsageError(f"the chat template has no option {wrong[0]!r}")
        markup = {
            token.content: i
            for i, token in hf.added_tokens_decoder.items()
            if not token.special and not token.content.isspace() and token.content in written
        }
        self.control_text = ControlText(special_texts, markup)
        self._added = frozenset(hf.added_tokens_decoder)
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False

        # What the tokenizer itself puts before a plain text, which templates write for themselves.
        self.text_start: str = hf.bos_token if _adds_bos(hf) else ""

        after = self._after_a_reply()
        ends = [token for _, _, token in self.control_text.spans(after)]
        # The tokenizer's own end, if the template writes it there; else what it writes first.
        chosen = [token for token in ends if token in eos] or ends[:1]
        self.eos_ids = frozenset(eos | set(chosen))
        self.stop_strings = () if ends or not after.strip() else (after.strip(),)

    def with_options(self, options: Mapping[str, Any]) -> ChatTokenizer:
        """The same with other options. Raises UsageError for what is none."""
        templates = {"default": self.template_text, "tool_use": self._tool_template}
        other = ChatTokenizer(
            self.hf, templates, name=self.name, eos_ids=self.eos_ids, options=options
        )
        other.system = self.system
        return other

    def shipped(self, template: str) -> str:
        """A template whose own defaults are the options, where nobody says otherwise."""
        sets = (
            f"{{% set {name} = {name} if {name} is defined else "
            f"{'none' if value is None else json.dumps(value)} %}}"
            for name, value in self.options.items()
        )
        guard = "{{ '' }}" if self.options and template.startswith("\n") else ""
        return "".join(sets) + guard + template

    def fingerprint(self) -> str:
        """A hash of everything that tokens depend on: the tokenizer, its templates, its ends."""
        parts = (
            self.hf.backend_tokenizer.to_str(),
            self.template_text,
            self._tool_template,
            json.dumps([self.hf.special_tokens_map, sorted(self.eos_ids)], default=str),
            *([json.dumps(self.options, sort_keys=True)] if self.options else []),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode_many(self, texts: Sequence[str]) -> list[Encoding]:
        """Token `ids` and character ranges (`offsets`) of rendered texts, all in one call. Raises
        DataError where content cannot be kept from being read as a control token."""
        hidden = [self.control_text.is_hidden_in(text) for text in texts]
        plain = [text for text, hides in zip(texts, hidden, strict=True) if not hides]
        batch = iter(self._backend.encode_batch(plain, add_special_tokens=False))
        pairs = zip(texts, hidden, strict=True)
        return [self._encode_hidden(text) if hides else next(batch) for text, hides in pairs]

    def encode_ids(self, text: str) -> list[int]:
        """Token ids of a rendered `text`."""
        return list(self.encode_many([text])[0].ids)

    def _encode_hidden(self, text: str) -> Encoding:
        shown = self.control_text.shadow_text(text)
        encoding: Encoding = self._shadow.encode(shown, add_special_tokens=False)
        meant = len(self.control_text.spans(text))
        if sum(i in self.control_ids for i in encoding.ids) != meant:
            raise DataError(
                "the text spells out a control token, and the tokenizer reads it as one",
                hint="remove it, or let `mlx-itune data clean` do so",
            )
        return encoding

    @cached_property
    def _shadow(self) -> Any:
        return self.control_text.shadow_tokenizer(self._backend)

    @cached_property
    def broken_marks(self) -> list[str]:
        """Control strings in the template that are several tokens here, so none to learn."""
        ids = self._backend.encode
        marks = sorted({*_MARKS.findall(self.template_text)})
        return [m for m in marks if len(ids(m, add_special_tokens=False).ids) > 1]

    def continuation_ids(self, text: str) -> list[int]:
        """Token ids of a rendered text that goes on where another ended. SentencePiece puts a space
        before the first word of a text: not here. What follows an added token within it is
        tokenized as it always is."""
        usual = self._backend
        if self.control_text.is_hidden_in(text):
            text, usual = self.control_text.shadow_text(text), self._shadow
        encoding = usual.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        cut = next((start for i, (start, _) in pairs if i in self._added), len(text))
        ids = _without_border(usual).encode(text[:cut], add_special_tokens=False).ids
        return [*ids, *usual.encode(text[cut:], add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of token ids, special tokens included."""
        plain = [int(i) for i in ids]
        return str(self.hf.decode(plain, clean_up_tokenization_spaces=False))

    def token_bytes(self, token: int) -> bytes | None:
        """What a token stands for within a text, None where its vocabulary does not tell."""
        piece = self.hf.convert_ids_to_tokens(token)
        if piece is None or token in self._added:
            return piece if piece is None else str(piece).encode()
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if self._is_byte_level:
            if all(char in _ALPHABET for char in piece):
                return bytes(_ALPHABET[char] for char in piece)
            return str(piece).encode()
        return str(piece).replace("\u2581", " ").encode()

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._backend.decoder
        return decoder is not None and b"ByteLevel" in decoder.__getstate__()

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """`turns` as the template reads them, with the control strings that they spell out hidden.
        Raises DataError for text that cannot be told apart from what hides them."""
        hide, shaped = self.control_text.hide, self.dialect.message
        return [
            shaped(
                {
                    key: value
                    if key == "role"
                    else hide(value, in_reply=turn.role == "assistant" and key == "content")
                    for key, value in turn.message().items()
                }
            )
            for turn in turns
        ]

    def hidden_reply(self, turn: Turn) -> tuple[str, str]:
        """Words and reasoning of a turn, trimmed, as `messages` has them."""
        hide = self.control_text.hide
        words, thought = hide(turn.content, in_reply=True), hide(turn.reasoning or "")
        return words.strip(), thought.strip()

    @cached_property
    def dialect(self) -> Dialect:
        """What the template reads and writes, with its options."""
        known = (self.template_text, self._tool_template, self.hf.get_vocab())
        return dialect_of(self.render_text, knows_think=any("</think>" in some for some in known))

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The chat template's text for `messages`, in transformers' sandboxed Jinja. Raises
        DataError when the template refuses them ("system role not supported")."""
        # Not `apply_chat_template`, which checks and copies every message at every call.
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._tool_template if tools else self.template_text

        def rendered(messages: Sequence[Message]) -> str:
            texts, _ = render_jinja_template(
                [messages],
                tools=list(tools) or None,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **self.hf.special_tokens_map,
                **self.options,
            )
            return str(texts[0])

        # Jinja raises what the template makes it raise: its own errors and those of plain Python.
        try:
            text = rendered(messages)
            # Only where text may be taken out of a content is what stood around it joined.
            joined = "replace" in template and self.control_text.joined(text, messages, rendered)
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template is broken: {error}") from error
        except Exception as error:
            raise DataError(f"the chat template refuses these turns: {error}") from error
        if joined:
            raise DataError("the chat template joins parts of the text to a control token")
        return text

    def opened(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """`turns`, with the system prompt that is put before those that have none."""
        if self.system and turns and turns[0].role != "system":
            return (Turn("system", self.system), *turns)
        return turns

    def unshown(self, row: Conversation) -> Iterator[str]:
        """What a row has that this template shows nowhere."""
        dialect = self.dialect
        replies = [turn for turn in row.turns if turn.role == "assistant"]
        ways = [dialect.thoughts[bool(turn.tool_calls)] for turn in replies if turn.reasoning]
        if "none" in ways:
            yield "reasoning"
        if row.tools and not dialect.shows_tools:
            yield "tools"
        calling = any(turn.tool_calls and turn.content.strip() for turn in replies)
        if calling and not dialect.shows_words_of_calls:
            yield "words beside calls"

    def remedy(self, unshown: str) -> str | None:
        """What would have the template show it, as it is typed."""
        return self._switch if unshown == "reasoning" else None

    @cached_property
    def _switch(self) -> str | None:
        for name in (name for name in _SWITCHES if name in self.template_text):
            switched = self.with_options({**self.options, name: True})
            if "none" not in switched.dialect.thoughts:
                return f"--template-option {name}=true"
        return None

    def prompt_ids(self, turns: Sequence[Turn], tools: Sequence[Message] = ()) -> list[int]:
        """What inference feeds the model so that it writes the turn that follows `turns`."""
        messages, hidden = self.messages(self.opened(tuple(turns))), self.control_text.hide(tools)
        return self.encode_ids(self.render_text(messages, tools=hidden, add_generation_prompt=True))

    def _after_a_reply(self) -> str:
        """What the template writes after an assistant's words, wherever in a conversation."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        text = self.render_text(turns, add_generation_prompt=False)
        _, found, after = text.partition(PROBE)
        if not found:
            raise ModelError("the chat template does not show an assistant turn's text")
        try:
            text = self.render_text([*turns, turns[0]], add_generation_prompt=False)
        except DataError:
            return after
        # Some templates close the whole text once more, which is no end of a turn.
        shared, other = after, text.partition(PROBE)[2]
        while not other.startswith(shared):
            shared = shared[:-1]
        return shared if self.control_text.spans(shared) else after


def _without_border(backend: Any) -> Any:
    """A tokenizer with the same model, but no word border before a text and no added tokens."""
    from tokenizers import Tokenizer, models

    # Without the vocabulary, which is large.
    frame = Tokenizer(models.BPE())
    frame.normalizer, frame.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    state = json.loads(frame.to_str())
    normalizer, splitter = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    if normalizer.get("type") == "Prepend":
        state["normalizer"] = None
    elif steps := normalizer.get("normalizers"):
        normalizer["normalizers"] = [step for step in steps if step["type"] != "Prepend"]
    for step in splitter.get("pretokenizers") or [splitter]:
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
    bare = Tokenizer.from_str(json.dumps(state))
    bare.model = backend.model
    return bare


def built_in(name: str, *, adds_bos: bool, knows_im_end: bool) -> str:
    """The Jinja text of a built-in template for a tokenizer with these traits."""
    text = Path(__file__).with_name(f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    # Without its own <|im_end|> token a turn ends with the tokenizer's end token: a model can only
    # stop at a token, not at a string.
    text = text.replace("END", "'<|im_end|>'" if knows_im_end else "eos_token")
    return "{{- bos_token }}" + text if adds_bos else text


def load_tokenizer(
    path: Path, *, template: str = "auto", options: Mapping[str, Any] | None = None
) -> ChatTokenizer:
    """Load the tokenizer of a local model directory, running none of its code. `template`: "auto"
    is the model's own. Raises ModelError when it cannot be loaded or has no template, UsageError
    for another name."""
    path = Path(path)
    known("template", template, ("auto", *BUILT_IN))
    if not path.is_dir():
        raise ModelError("is not a model directory", where=str(path))
    with panics_as(ModelError, "cannot load the tokenizer", str(path)):
        return _loaded(path, template, options)


def _loaded(path: Path, template: str, options: Mapping[str, Any] | None) -> ChatTokenizer:
    from transformers import AutoTokenizer

    # A broken or hostile tokenizer fails in many ways inside transformers, tokenizers and json.
    try:
        hf = AutoTokenizer.from_pretrained(
            str(path), trust_remote_code=False, local_files_only=True
        )
        text = hf.chat_template
        if template != "auto":
            knows_im_end = "<|im_end|>" in hf.get_vocab()
            text = built_in(template, adds_bos=_adds_bos(hf), knows_im_end=knows_im_end)
        if not text:
            raise ModelError(
                "the tokenizer has no chat template",
                hint="pass --template chatml, alpaca or vicuna",
            )
        ends = _configured_eos(path)
        return ChatTokenizer(hf, text, name=template, eos_ids=ends, options=options)
    except UsageError:
        raise
    except ItuneError as error:
        raise ModelError(error.message, where=error.where or str(path), hint=error.hint) from error
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer: {brief(error)}", where=str(path)) from error


def _adds_bos(hf: Any) -> bool:
    return hf.bos_token_id is not None and hf("a")["input_ids"][:1] == [hf.bos_token_id]


@dataclass(frozen=True)
class _Ends:
    eos_token_id: int | tuple[int, ...] | None = None


def _configured_eos(path: Path) -> list[int]:
    """End-of-sequence ids of generation_config.json and config.json, where those exist."""
    found: list[int] = []
    for file in (path / "generation_config.json", path / "config.json"):
        if file.exists():
            config = read_object(file, error=ModelError, non_finite=True)
            ends = to_record(config, _Ends, where=str(file), error=ModelError).eos_token_id
            found += [] if ends is None else [ends] if isinstance(ends, int) else ends
    return found
