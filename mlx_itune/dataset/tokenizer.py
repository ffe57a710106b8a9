"""Tokenizer and chat template as one thing: the same code path for training and inference."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.templates import BUILT_IN, built_in
from mlx_itune.kit.errors import DataError, ModelError, UsageError, closest

Int32 = NDArray[np.int32]

# A content no template rewrites: used to see what a template puts around an assistant's words.
PROBE = "qzvxqzvx"


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of a text: ids (T,) int32 and their character ranges starts, ends (T,) int32."""

    ids: Int32
    starts: Int32
    ends: Int32


class ChatTokenizer:
    """A fast Hugging Face tokenizer with the chat template a run uses.

    `hf` is the tokenizer, `name` the template's name ("auto", "alpaca", "chatml"), `eos_ids` every
    token that ends a turn, `control_ids` all special tokens, `is_control` (V,) bool the same as a
    table, `stop_strings` the end-of-turn text where the template ends turns with plain text.
    """

    def __init__(
        self,
        hf: Any,
        template: str | Mapping[str, str],
        *,
        name: str = "auto",
        eos_ids: Iterable[int] = (),
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
        self.name = name
        self.template_text = templates["default"]
        self._tool_template = templates.get("tool_use", self.template_text)
        self.template_sha256 = hashlib.sha256(self.template_text.encode()).hexdigest()

        special = {i for i, token in hf.added_tokens_decoder.items() if token.special}
        own_eos = [] if hf.eos_token_id is None else [hf.eos_token_id]
        eos = {i for i in (*own_eos, *eos_ids) if 0 <= i < len(hf)}
        if not eos:
            raise ModelError("the tokenizer names no end-of-sequence token")
        self.closing_id: int = own_eos[0] if own_eos else min(eos)
        self.control_ids = frozenset(special | eos)
        self.is_control = np.zeros(max(len(hf), max(self.control_ids) + 1), dtype=np.bool_)
        self.is_control[list(self.control_ids)] = True
        self._texts = {hf.convert_ids_to_tokens(i): i for i in sorted(self.control_ids)}
        # Longest first, so that a token never hides behind a shorter one it starts with.
        longest_first = sorted(self._texts, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)))

        after = self._after_a_reply()
        ending = self._control.search(after)
        self.eos_ids = frozenset(eos | ({self._texts[ending.group()]} if ending else set()))
        self.stop_strings = () if ending or not after.strip() else (after.strip(),)

    def encode(self, text: str) -> Encoded:
        """Token ids and character ranges of `text`; nothing is added at either end."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[Encoded]:
        """`encode` of each text, all of them in one call of the tokenizer."""
        if not texts:
            return []
        batch = self._call(list(texts), return_offsets_mapping=True)
        encoded = []
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            ranges = np.array(offsets, dtype=np.int32).reshape(-1, 2)
            encoded.append(Encoded(np.array(ids, dtype=np.int32), ranges[:, 0], ranges[:, 1]))
        return encoded

    def encode_ids(self, text: str) -> list[int]:
        """Token ids of `text`, without character ranges."""
        return list(self._call(text)["input_ids"])

    def encode_ids_of(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """`encode_ids` of each text, all of them in one call of the tokenizer."""
        distinct = list(texts)
        ids = self._call(distinct)["input_ids"] if distinct else []
        return dict(zip(distinct, ids, strict=True))

    def decode(self, ids: Sequence[int] | Int32) -> str:
        """The text of token ids, special tokens included."""
        plain = [int(i) for i in ids]
        return str(self.hf.decode(plain, clean_up_tokenization_spaces=False))

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The chat template's text for `messages`, in transformers' sandboxed Jinja.

        Raises DataError when the template refuses them ("system role not supported").
        """
        # Jinja raises what the template makes it raise: its own errors and those of plain Python.
        try:
            return str(
                self.hf.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    chat_template=self._tool_template if tools else self.template_text,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except Exception as error:
            raise DataError(f"the chat template refuses these turns: {error}") from error

    def prompt_ids(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """What inference feeds the model so that it writes the turn that follows `turns`."""
        messages = [turn.message() for turn in turns]
        return self.encode_ids(self.render_text(messages, tools=tools, add_generation_prompt=True))

    def continuation_ids(self, prompt: str, answer: str) -> list[int]:
        """Tokens of `answer` as they follow the tokens of `prompt`, which stay as they are.

        SentencePiece puts a space before the first word of a text; an anchor in front keeps it
        out. The first way that decodes back to prompt + answer is taken.
        """
        prompt_ids = self.encode_ids(prompt)
        whole = self.decode(self.encode_ids(prompt + answer))
        plain = self.encode_ids(answer)
        for anchor in ("", self.hf.convert_ids_to_tokens(self.closing_id), "\n"):
            anchored = self.encode_ids(anchor + answer)
            before = self.encode_ids(anchor)
            if anchored[: len(before)] != before:
                continue
            candidate = anchored[len(before) :]
            if self.decode([*prompt_ids, *candidate]) == whole:
                return candidate
        return plain

    def find_controls(self, text: str) -> list[tuple[int, int, int]]:
        """Special tokens spelled out in `text`, as (start, end, id)."""
        return [
            (match.start(), match.end(), self._texts[match.group()])
            for match in self._control.finditer(text)
        ]

    def _call(self, text: str | list[str], **extra: bool) -> Any:
        return self.hf(
            text,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **extra,
        )

    def _after_a_reply(self) -> str:
        """What the template writes after an assistant's words at the end of a conversation."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        text = self.render_text(turns, add_generation_prompt=False)
        _, found, after = text.partition(PROBE)
        if not found:
            raise ModelError("the chat template does not show an assistant turn's text")
        return after


def load_tokenizer(path: Path, *, template: str = "auto") -> ChatTokenizer:
    """Load the tokenizer of a local model directory, running none of its code.

    `template`: "auto" is the model's own chat template; "alpaca" and "chatml" are built in.
    Raises ModelError when it cannot be loaded or has no template, UsageError for another name.
    """
    path = Path(path)
    if template not in ("auto", *BUILT_IN):
        near = closest(template, ("auto", *BUILT_IN))
        raise UsageError(
            f"unknown template {template!r}",
            hint=f"did you mean {near}?" if near else "use auto, alpaca or chatml",
        )
    if not path.is_dir():
        raise ModelError("is not a model directory", where=str(path))
    from transformers import AutoTokenizer

    # A broken or hostile tokenizer fails in many ways inside transformers, tokenizers and json.
    try:
        hf = AutoTokenizer.from_pretrained(
            str(path), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot load the tokenizer: {reason}", where=str(path)) from error

    try:
        text = hf.chat_template if template == "auto" else _built_in_for(hf, template)
        if not text:
            raise ModelError(
                "the tokenizer has no chat template", hint="pass --template alpaca or chatml"
            )
        return ChatTokenizer(hf, text, name=template, eos_ids=_configured_eos(path))
    except (ModelError, DataError) as error:
        raise ModelError(error.message, where=str(path), hint=error.hint) from error


def _built_in_for(hf: Any, name: str) -> str:
    bos = hf.bos_token_id
    return built_in(
        name,
        adds_bos=bos is not None and hf("a")["input_ids"][:1] == [bos],
        knows_im_end="<|im_end|>" in hf.get_vocab(),
    )


def _configured_eos(path: Path) -> list[int]:
    """End-of-sequence ids of generation_config.json and config.json, where those exist."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads((path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {name}: {error}") from error
        value = config.get("eos_token_id") if isinstance(config, dict) else None
        found += [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
    return found
