"""The text of each token of a sequence: joined, they are the decoded sequence.

Decoding token by token is lossy: a character may be spread over several tokens, and SentencePiece
drops the space before the first one. So each token's text is what it adds to the text before it.
A token that holds only part of a character shows those bytes as <0xE2>.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
# A character has at most four bytes; whatever is still undecodable after that many tokens is not
# going to become a character.
_LONGEST_WAIT = 4


@dataclass(frozen=True)
class TextRun:
    """Tokens [start, end) and their text; several only where they divide a character."""

    start: int
    end: int
    text: str


def token_texts(tokenizer: ChatTokenizer, ids: Sequence[int]) -> list[str]:
    """One text per id. Joined they equal `decode(ids)`, apart from characters in parts."""
    texts: list[str] = []
    for run in text_runs(tokenizer, ids):
        if run.end - run.start == 1 and _REPLACEMENT not in run.text:
            texts.append(run.text)
        else:
            texts += _in_parts(tokenizer, ids[run.start : run.end], run.text)
    return texts


def text_runs(tokenizer: ChatTokenizer, ids: Sequence[int]) -> Iterator[TextRun]:
    """The shortest runs of tokens that end between two characters."""
    anchor, start = 0, 0
    before = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[anchor:end])
        whole = text.startswith(before) and (
            not text.endswith(_REPLACEMENT) or _is_valid(tokenizer, ids[start:end])
        )
        if not whole and end - start < _LONGEST_WAIT and end < len(ids):
            continue
        yield TextRun(start, end, text[len(before) :])
        # What comes next is decoded together with this run, which tells a first word from others.
        anchor, start = start, end
        before = tokenizer.decode(ids[anchor:end])


def _is_valid(tokenizer: ChatTokenizer, ids: Sequence[int]) -> bool:
    """Whether the tokens are whole characters: the data itself may hold a replacement character."""
    pieces = [_bytes_of(tokenizer, i) for i in ids]
    try:
        return bool(b"".join(piece for piece in pieces if piece is not None).decode()) and (
            None not in pieces
        )
    except UnicodeDecodeError:
        return False


def _in_parts(tokenizer: ChatTokenizer, ids: Sequence[int], text: str) -> list[str]:
    """The texts of tokens that share characters; the last has all where bytes are unknown."""
    pieces = [_bytes_of(tokenizer, i) for i in ids]
    known = [piece for piece in pieces if piece is not None]
    if len(known) < len(pieces):
        return [*[""] * (len(ids) - 1), text]
    return _decoded_in_parts(known)


def _decoded_in_parts(pieces: Sequence[bytes]) -> list[str]:
    """Each piece as text: whole characters as such, bytes of divided ones as <0x..>."""
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    texts = [""] * len(pieces)
    at = 0
    # What is no character comes out byte by byte, as half surrogates.
    for char in b"".join(pieces).decode("utf-8", "surrogateescape"):
        raw = char.encode("utf-8", "surrogateescape")
        if owner[at] == owner[at + len(raw) - 1] and not "\udc80" <= char <= "\udcff":
            texts[owner[at]] += char
        else:
            for place, byte in enumerate(raw, at):
                texts[owner[place]] += f"<0x{byte:02X}>"
        at += len(raw)
    return texts


def _bytes_of(tokenizer: ChatTokenizer, token_id: int) -> bytes | None:
    """The bytes a token stands for, None where its vocabulary does not tell."""
    piece = tokenizer.hf.convert_ids_to_tokens(token_id)
    if piece is None:
        return None
    if token_id in tokenizer.control_ids:
        return str(piece).encode()
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    if _is_byte_level(tokenizer):
        table = _byte_alphabet()
        if all(char in table for char in piece):
            return bytes(table[char] for char in piece)
        return str(piece).encode()
    return str(piece).replace("▁", " ").encode()


def _is_byte_level(tokenizer: ChatTokenizer) -> bool:
    decoder = tokenizer.hf.backend_tokenizer.decoder
    return decoder is not None and b"ByteLevel" in decoder.__getstate__()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest follows U+0100."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): b for n, b in enumerate(others)}
