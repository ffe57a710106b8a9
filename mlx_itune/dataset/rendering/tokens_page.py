"""The page of ``data show``: every token of some rows, marked by how much it is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from mlx_itune.dataset.rendering.show_rows import Piece, ShownExample, pieces
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.page import Html, element, join, page, section

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
    return page(f"Tokens as trained: {data}", body, subtitle=subtitle, style=_STYLE)


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
    """Newlines with a mark before them; spaces as marks at the edges, where they could be missed.

    A token without any text still shows that it is there.
    """
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


_STYLE = """
:root{--learn:35 134 84;--more:125 76 171}
@media (prefers-color-scheme:dark){:root{--learn:92 191 138;--more:185 147 224}}
.toolbar{position:sticky;top:0;background:var(--paper);border-bottom:1px solid var(--rule);
padding:10px 0;margin-top:16px;font-size:.88rem;z-index:1}
.legend,.switches{display:flex;flex-wrap:wrap;gap:6px 16px;align-items:baseline}
.switches{margin-top:8px}
.muted{color:var(--muted)}
.why{margin:0 0 8px;font-size:.9rem;max-width:80ch;border-left:3px solid var(--c2);
padding-left:10px}
.tokens,.legend .t{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.tokens{font-size:13.5px;line-height:1.85;white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 16px}
.t{unicode-bidi:isolate;border-radius:2px;text-decoration-line:underline;
text-decoration-color:rgb(var(--learn));text-decoration-thickness:2px;text-underline-offset:3px}
.w0{text-decoration-line:none;color:var(--muted)}
.wb{background:rgb(var(--learn)/.15);text-decoration-style:dashed}
.w1{background:rgb(var(--learn)/.3)}
.wx{background:rgb(var(--more)/.32);text-decoration-style:double;
text-decoration-color:rgb(var(--more))}
.ctl{background:var(--muted);color:var(--paper);padding:1px 3px;border-radius:4px}
.ctl.w1,.ctl.wb,.ctl.wx{background:rgb(var(--learn));
text-decoration-color:var(--paper)}
.ws{color:var(--muted);opacity:.8}
.ctl .ws{color:inherit}
.weight{color:rgb(var(--more));font-weight:600;font-size:.72em}
main:has(#borders:checked) .tokens .t{outline:1px solid var(--rule);outline-offset:-1px;
margin-right:2px}
main:has(#dim:checked) .tokens .w0{opacity:.35}
"""
