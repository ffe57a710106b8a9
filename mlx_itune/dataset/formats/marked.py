"""Plain text that carries a dialogue in marks (ChatML, Llama, Alpaca, Vicuna...) -> its turns.

What a mark parts is taken exactly: ChatML and Llama 3 to the character, the others without the line
break or space that belongs to the mark and without end tokens. Everything here is linear in the
length of the text, which may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.formats.chat import ROLE_OF

_CHATML = "<|im_start|>", "\n", "<|im_end|>"
_LLAMA3 = "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"
_LLAMA2_SYSTEM = "<<SYS>>", "<</SYS>>"
_ALPACA = re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)
_SPEAKERS = (
    re.compile(r"### (Human|User|Assistant):[ \t]?"),
    re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):[ \t]?"),
    re.compile(r"^(Human|User|Assistant):[ \t]?", re.MULTILINE),
)
_ENDS = ("</s>", "<s>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<eos>")
_STARTS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
_PREAMBLE = "Below is an instruction that describes a task"


def marked_turns(text: str) -> tuple[Turn, ...] | None:
    """The turns of a text, or None where no marks, or none that make sense, part it.

    There has to be a question and a reply, and nothing that belongs to no turn.
    """
    for parse in _PARSERS:
        turns = parse(text)
        if turns and any(turn.role == "assistant" for turn in turns) and len(turns) > 1:
            return turns
    return None


def _blocks(opens: str, named: str, closes: str) -> Callable[[str], tuple[Turn, ...] | None]:
    """Texts of blocks: `opens`, the role, `named`, the words, `closes`."""

    def parse(text: str) -> tuple[Turn, ...] | None:
        before, *blocks = text.split(opens)
        if not blocks or _said(before):
            return None
        turns = []
        for block in blocks:
            name, _, rest = block.partition(named)
            words, end, after = rest.partition(closes)
            role = ROLE_OF.get(name.strip().lower())
            if not end and block is blocks[-1] and role == "assistant" and not _said(rest):
                # A generation prompt left at the end is no turn.
                continue
            if role is None or not end or _said(after):
                return None
            turns.append(Turn(role, words))
        return tuple(turns)

    return parse


def _llama2(text: str) -> tuple[Turn, ...] | None:
    before, *rounds = text.split("[INST]")
    if not rounds or _said(before):
        return None
    turns: list[Turn] = []
    for round_ in rounds:
        asked, end, reply = round_.partition("[/INST]")
        if not end:
            return None
        opens, closes = _LLAMA2_SYSTEM
        if not turns and asked.lstrip().startswith(opens) and closes in asked:
            system, _, asked = asked.partition(closes)
            turns.append(Turn("system", system.lstrip().removeprefix(opens).strip()))
        turns += [Turn("user", asked.strip()), Turn("assistant", _trimmed(reply).strip())]
    return tuple(turns)


def _alpaca(text: str) -> tuple[Turn, ...] | None:
    marks = list(_ALPACA.finditer(text))
    if not marks or marks[0][1] != "Instruction":
        return None
    turns: list[Turn] = []
    before = _trimmed(text[: marks[0].start()])
    if before and not before.startswith(_PREAMBLE):
        turns.append(Turn("system", before))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    previous = "Response"
    for mark, end in zip(marks, ends, strict=True):
        name, said = mark[1], _trimmed(text[mark.end() : end])
        if name == "Instruction" and previous == "Response":
            turns.append(Turn("user", said))
        elif name == "Input" and previous == "Instruction":
            if said:
                turns[-1] = Turn("user", f"{turns[-1].content}\n\n{said}", input=said)
        elif name == "Response" and previous != "Response":
            turns.append(Turn("assistant", said))
        else:
            return None
        previous = name
    return tuple(turns)


def _spoken(pattern: re.Pattern[str]) -> Callable[[str], tuple[Turn, ...] | None]:
    def parse(text: str) -> tuple[Turn, ...] | None:
        marks = list(pattern.finditer(text))
        if not marks:
            return None
        turns: list[Turn] = []
        before = _trimmed(text[: marks[0].start()])
        if before:
            turns.append(Turn("system", before))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        for mark, end in zip(marks, ends, strict=True):
            turns.append(Turn(ROLE_OF[mark[1].lower()], _trimmed(text[mark.end() : end])))
        return tuple(turns)

    return parse


def _trimmed(text: str) -> str:
    """Without white space and end tokens at the end, and start tokens and line breaks before."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in _ENDS if text.endswith(token, 0, end)), None)
        if token is None:
            break
        end -= len(token)
    start = found = 0
    while True:
        while found < end and text[found].isspace():
            found += 1
        token = next((token for token in _STARTS if text.startswith(token, found, end)), None)
        if token is None:
            return text[start:end].lstrip("\r\n")
        start = found = found + len(token)


def _said(text: str) -> bool:
    """Whether text between turns says anything."""
    return bool(_trimmed(text).strip())


_PARSERS: tuple[Callable[[str], tuple[Turn, ...] | None], ...] = (
    _blocks(*_CHATML),
    _blocks(*_LLAMA3),
    _llama2,
    _alpaca,
    *map(_spoken, _SPEAKERS),
)
