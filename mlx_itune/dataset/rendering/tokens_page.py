"""The page of ``data show``: every token of some rows, marked by how much it is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from mlx_itune.dataset.rendering.show_rows import Piece, ShownExample, pieces
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.page import Html, element, join, page, read_style, section

# Weights by shade: (class, upper end, in words). 0 and 1 have shades of their own.
_SHADES = (
    ("w0", 0.0, "not learned (weight 0)"),
    ("wb", 0.9999995, "weight below 1"),
    ("w1", 1.0000005, "learned (weight 1)"),
    ("wx", float("inf"), "more than 1"),
)
_SPACE = str.maketrans(" \t\n", "·→↵")
_NEWLINE = re.compile(r"\n")
_EDGES = re.compile(r"\n|^[ \t]+|[ \t]+$", re.MULTILINE)


def tokens_page(
    examples: Sequence[ShownExample], tokenizer: ChatTokenizer, *, data: str, model: str
) -> str:
    """A page of examples with a legend; hovering over a token tells its id, index and weight."""
    bodies, shades = [], {"w0", "w1"}
    for shown in examples:
        made = list(pieces(shown.tokens, tokenizer))
        shades |= {_shade(piece.weight) for piece in made}
        bodies.append(_example(shown, made))
    subtitle = f"{model}, template {tokenizer.name}, {len(examples):,} examples"
    body = join([_toolbar(shades), *bodies])
    return page(f"Tokens as trained: {data}", body, subtitle=subtitle, style=read_style(__file__))


def _example(shown: ShownExample, made: Sequence[Piece]) -> Html:
    total = len(shown.tokens.input_ids)
    counted = f"{shown.learned:,} of {total:,} tokens learned ({shown.learned / total:.1%})"
    notes = [element("p", {"class": "why"}, note) for note in shown.notes]
    tokens = element("div", {"class": "tokens"}, *_spans(made))
    return section(PurePath(shown.title).name, *notes, tokens, note=counted)


def _spans(made: Sequence[Piece]) -> Iterator[Html]:
    last = 0.0
    for number, piece in enumerate(made):
        if piece.weight != last and piece.weight not in (0, 1):
            yield element("sup", {"class": "weight"}, f"{piece.weight:.4g}")
        first = piece.weight != last
        last = piece.weight
        ends = number + 1 == len(made) or made[number + 1].weight != last
        yield _span(piece, at_border=first or ends)


def _span(piece: Piece, *, at_border: bool) -> Html:
    last = piece.start + len(piece.ids) - 1
    places = f"{piece.start} to {last}" if last > piece.start else f"{last}"
    told = f"id {', '.join(map(str, piece.ids))} | token {places} | weight {piece.weight:.6g}"
    kinds = ["t", _shade(piece.weight), *(["ctl"] if piece.control else [])]
    shown = _visible(piece.text, at_border or not piece.text.strip())
    return element("span", {"class": " ".join(kinds), "title": told}, *shown)


def _visible(text: str, edges: bool) -> Iterator[str]:
    """Newlines with a mark before them; spaces as marks at the edges, where they could be missed. A
    token without any text still shows that it is there."""
    end = 0
    for found in (_EDGES if edges else _NEWLINE).finditer(text):
        yield text[end : found.start()]
        yield element("span", {"class": "ws"}, found.group().translate(_SPACE))
        end = found.end() - found.group().endswith("\n")
    yield text[end:] if text else element("span", {"class": "ws"}, "∅")


def _toolbar(shades: set[str]) -> Html:
    samples = [(f"t {name}", words) for name, _, words in _SHADES if name in shades]
    samples += [("t w0 ctl", "control token"), ("t w1 ctl", "learned control token")]
    samples += [("muted", "· space, → tab, ↵ newline, ∅ no text of its own")]
    legend = [element("span", {"class": kind}, words) for kind, words in samples]
    switches = [
        element("label", None, element("input", {"type": "checkbox", "id": name}), f" {words}")
        for name, words in (("borders", "token borders"), ("dim", "fade what is not learned"))
    ]
    return element(
        "div",
        {"class": "toolbar"},
        element("div", {"class": "legend"}, *legend),
        element("div", {"class": "switches"}, *switches),
    )


def _shade(weight: float) -> str:
    return next(name for name, top, _ in _SHADES if weight <= top)
