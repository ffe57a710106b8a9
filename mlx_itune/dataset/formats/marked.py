"""Plain text that carries a dialogue in marks (ChatML, Llama, Alpaca, Vicuna...) -> its turns.

What a mark parts is taken exactly: ChatML and Llama 3 to the character, the others without the line
break or space that belongs to the mark and without end tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.formats.chat import ROLE_OF

_CHATML = re.compile(r"<\|im_start\|>([^\n<]{1,40})\n(.*?)<\|im_end\|>", re.DOTALL)
_LLAMA3 = re.compile(
    r"<\|start_header_id\|>([^<]{1,40})<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.DOTALL
)
_LLAMA2 = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=\[INST\]|\Z)", re.DOTALL)
_LLAMA2_SYSTEM = re.compile(r"\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*(.*)", re.DOTALL)
_ALPACA = re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)
_SPEAKERS = (
    re.compile(r"### (Human|User|Assistant):[ \t]?"),
    re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):[ \t]?"),
    re.compile(r"^(Human|User|Assistant):[ \t]?", re.MULTILINE),
)
_ENDS = re.compile(r"(?:\s|</s>|<s>|<\|endoftext\|>|<\|eot_id\|>|<\|end_of_text\|>|<eos>)+\Z")
_STARTS = re.compile(r"\A(?:\s|<s>|<\|begin_of_text\|>|<bos>|<\|endoftext\|>)+")
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


def _blocks(pattern: re.Pattern[str]) -> Callable[[str], tuple[Turn, ...] | None]:
    def parse(text: str) -> tuple[Turn, ...] | None:
        turns, at = [], 0
        for match in pattern.finditer(text):
            role = ROLE_OF.get(match[1].strip().lower())
            if role is None or _said(text[at : match.start()]):
                return None
            turns.append(Turn(role, match[2]))
            at = match.end()
        # A generation prompt left at the end is no turn; anything else would be lost.
        return None if _said(text[at:]) else tuple(turns)

    return parse


def _llama2(text: str) -> tuple[Turn, ...] | None:
    turns: list[Turn] = []
    at = 0
    for match in _LLAMA2.finditer(text):
        if not turns and _said(text[: match.start()]):
            return None
        asked = match[1]
        if not turns and (system := _LLAMA2_SYSTEM.fullmatch(asked)):
            turns.append(Turn("system", system[1]))
            asked = system[2]
        turns += [Turn("user", asked.strip()), Turn("assistant", _trimmed(match[2]))]
        at = match.end()
    return tuple(turns) if at == len(text) else None


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
    """Without white space and end tokens at the end, and line breaks at the start."""
    return _ENDS.sub("", _STARTS.sub("", text) if text[:1] in "<\n\r" else text)


def _said(text: str) -> bool:
    """Whether text between turns says anything."""
    return bool(_ENDS.sub("", _STARTS.sub("", text)))


_PARSERS: tuple[Callable[[str], tuple[Turn, ...] | None], ...] = (
    _blocks(_CHATML),
    _blocks(_LLAMA3),
    _llama2,
    _alpaca,
    *map(_spoken, _SPEAKERS),
)
