"""What `data show` shows, and its page: rows found by place or name, as a model is trained on them.

Decoding token by token is lossy: a character may be spread over several tokens, and SentencePiece
drops the space before the first one. So each token's text is what it adds to the text before it:
joined, the texts are the decoded sequence. A token that holds only part of a character shows those
bytes as <0xE2>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from tokenizers.decoders import DecodeStream

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.importing.provenance import row_id
from mlx_itune.dataset.rendering.prepare import PrepareReport, TooLong, prepare
from mlx_itune.dataset.rendering.render import Learn, TokenizedExample, render
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.page import Html, element, join, page, read_style, section
from mlx_itune.kit.wording import count

Row = Conversation | Fault
Reader = Callable[[Path], Iterator[Row]]

# A line, the 17th row of the file ("#17", "3#17"); the file by its path, name or stem.
_NUMBER = "[1-9][0-9]{0,14}"
_PLACE = re.compile(f"(?:(?P<file>.+):)?(?P<at>#{_NUMBER}|{_NUMBER}(?:#{_NUMBER})?)")
_CONTENT_ID = re.compile(r"[0-9a-f]{16}")


def find_rows(paths: Sequence[Path], wanted: Sequence[str], read: Reader) -> Iterator[Conversation]:
    """The rows that `wanted` names ("file:line", "split:line", a line, an id), in file order.
    Raises DataError for a wanted row that is broken, UsageError for one that is not there."""
    # An id may look like a place ("case:12"): then no file has that name.
    places = {
        spec
        for spec in wanted
        if (found := _PLACE.fullmatch(spec))
        and any((found["file"] or "") in _names_of(path) for path in paths)
    }
    left, by_content = {*wanted}, any(map(_CONTENT_ID.fullmatch, wanted))
    for path in paths:
        here = places & left
        names = [f"{name}:" if name else "" for name in _names_of(path)]
        for row in read(path):
            at = (row.where if isinstance(row, Fault) else row.origin).rpartition(":")[2]
            # A line may give several rows; an id means one.
            hits = here & {name + spot for name in names for spot in (at, at.partition("#")[0])}
            if not left and not hits:
                return
            if isinstance(row, Fault):
                if hits and row.severity == "error":
                    broken = f"this row is broken: {row.code}: {row.message}"
                    raise DataError(broken, where=row.where, hint=row.hint or None)
                continue
            # Its own `id`, or the hash of its content.
            own = {row.tags.get("id"), row_id(row) if by_content else None}
            named = own & (left - places)
            if hits or named:
                yield row
            left -= hits | named
    if left:
        what = f"there is no row {next(spec for spec in wanted if spec in left)!r}"
        raise UsageError(what, hint="name it as file:line, split:line, file:#row, or by its id")


def first_rows(paths: Iterable[Path], most: int, read: Reader) -> Iterator[Row]:
    """The first `most` rows of the files, with the broken ones on the way."""
    for path in paths:
        for row in read(path):
            if isinstance(row, Conversation):
                most -= 1
            elif row.severity != "error":
                continue
            yield row
            if not most:
                return


def _names_of(path: Path) -> tuple[str, ...]:
    """How a file may be called before a line; not at all, too."""
    return "", str(path), path.name, path.stem


_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """Some text of an example, made of the tokens `ids` from index `start`; one weight for all.
    Several ids only where tokens divide a character, whose bytes alone say nothing."""

    start: int
    ids: tuple[int, ...]
    text: str
    weight: float
    control: bool


@dataclass(frozen=True)
class ShownExample:
    """One example of a row: number `example` of `examples`, and why it is as it is (`notes`)."""

    row: str
    example: int
    examples: int
    notes: tuple[str, ...]
    tokens: TokenizedExample

    @property
    def title(self) -> str:
        """The row, and which of its examples this is."""
        which = f", example {self.example} of {self.examples}" if self.examples > 1 else ""
        return self.row + which

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int((self.tokens.weights > 0).sum())


def shown_examples(
    row: Conversation,
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    learn: Learn = "all",
    too_long: TooLong = "split",
) -> tuple[ShownExample, ...]:
    """The examples of one row, in order. Raises DataError, naming the row, if there are none."""
    try:
        prepared = prepare(
            [row], tokenizer, max_length_tokens=max_length, learn=learn, too_long=too_long
        )
    except DataError as error:
        where = None if row.origin in error.message else row.origin
        raise DataError(error.message, where=error.where or where, hint=error.hint) from error
    uncut = len(render(row, tokenizer, learn))
    notes = (*_flags(row), *_notes(prepared.report, uncut, max_length))
    total = len(prepared.examples)
    return tuple(
        ShownExample(row.origin, number, total, notes, example)
        for number, example in enumerate(prepared.examples, 1)
    )


def pieces(
    example: TokenizedExample, tokenizer: ChatTokenizer, *, single: bool = False
) -> Iterator[Piece]:
    """The whole example in readable pieces, in order; `single`: token by token. Their texts joined
    are the decoded text, apart from single tokens that divide a character."""
    weights = example.weights.tolist()
    for start, ids, text in _runs(example.input_ids.tolist(), tokenizer):
        own = weights[start : start + len(ids)]
        parts = [(start, ids, text)]
        if single or len(set(own)) > 1:
            texts = _texts(ids, text, tokenizer)
            parts = [(start + n, ids[n : n + 1], part) for n, part in enumerate(texts)]
        for at, some, said in parts:
            control = len(some) == 1 and some[0] in tokenizer.control_ids
            yield Piece(at, some, said, weights[at], control)


def _flags(row: Conversation) -> Iterator[str]:
    replies = [turn for turn in row.turns if turn.role == "assistant"]
    if masked := sum(turn.weight == 0 for turn in replies):
        turns = count(len(replies), "assistant turn")
        yield f"{masked:,} of {turns} not learned: flags of the row say so"


def _notes(report: PrepareReport, uncut: int, limit: int) -> Iterator[str]:
    if uncut > 1:
        yield (
            "the template writes earlier turns differently once later ones follow, or their tokens "
            "merge: such a turn is learned alone, in the context that inference builds"
        )
    if report.split:
        yield f"cut between exchanges: the row is longer than {limit:,} tokens"
    if report.turns_truncated:
        turns = count(report.turns_truncated, "assistant turn")
        yield f"{turns} cut short: longer than {limit:,} tokens"
    if report.turns_dropped:
        turns = count(report.turns_dropped, "assistant turn")
        yield f"{turns} left out: no room within {limit:,} tokens"
    if report.control_text:
        yield "the text itself spells out a control token of the model"


def _runs(
    ids: Sequence[int], tokenizer: ChatTokenizer
) -> Iterator[tuple[int, tuple[int, ...], str]]:
    """(start, tokens, text) of the shortest runs that end between two characters."""
    stream = DecodeStream(skip_special_tokens=False)
    start, told = 0, 0
    for end, token in enumerate(ids, 1):
        text = stream.step(tokenizer.hf.backend_tokenizer, token)
        if text is not None:
            yield start, tuple(ids[start:end]), text
            start, told = end, told + len(text)
    if start < len(ids):
        yield start, tuple(ids[start:]), tokenizer.decode(ids)[told:]


def _texts(ids: Sequence[int], text: str, tokenizer: ChatTokenizer) -> list[str]:
    """One text per token; where they share characters, the bytes of divided ones as <0x..>. The
    last token has all where its vocabulary does not tell the bytes."""
    if len(ids) == 1 and _REPLACEMENT not in text:
        return [text]
    known = [found for i in ids if (found := tokenizer.token_bytes(i)) is not None]
    if len(known) < len(ids):
        return [*[""] * (len(ids) - 1), text]
    texts = [""] * len(ids)
    owner = [number for number, piece in enumerate(known) for _ in piece]
    at = 0
    # What is no character comes out byte by byte, as half surrogates.
    for char in b"".join(known).decode("utf-8", "surrogateescape"):
        raw = char.encode("utf-8", "surrogateescape")
        if owner[at] == owner[at + len(raw) - 1] and not "\udc80" <= char <= "\udcff":
            texts[owner[at]] += char
        else:
            for place, byte in enumerate(raw, at):
                texts[owner[place]] += f"<0x{byte:02X}>"
        at += len(raw)
    return texts


# Weights by shade: (class, upper end, in words). 0 and 1 have shades of their own.
_SHADES = (
    ("w0", 0.0, "not learned (weight 0)"),
    ("wb", 0.9999995, "weight below 1"),
    ("w1", 1.0000005, "learned (weight 1)"),
    ("wx", float("inf"), "more than 1"),
)
STYLE = read_style(__file__)
_MARKS = str.maketrans(" \t\n", "·→↵")
_NEWLINE = re.compile(r"\n")
_EDGES = re.compile(r"\n|^[ \t]+|[ \t]+$", re.MULTILINE)


def tokens_page(
    examples: Sequence[ShownExample], tokenizer: ChatTokenizer, *, data: str, model: str
) -> str:
    """A page of examples with a legend; hovering over a token tells its id, index and weight."""
    subtitle = f"{model}, template {tokenizer.name}, {len(examples):,} examples"
    body = tokens_body(examples, tokenizer)
    return page(f"Tokens as trained: {data}", body, subtitle=subtitle, style=STYLE)


def tokens_body(examples: Sequence[ShownExample], tokenizer: ChatTokenizer) -> Html:
    """What `tokens_page` shows, for a page with `STYLE`."""
    bodies, shades = [], {"w0", "w1"}
    for shown in examples:
        made = list(pieces(shown.tokens, tokenizer))
        shades |= {_shade(piece.weight) for piece in made}
        bodies.append(_section(shown, made))
    return join([_toolbar(shades), *bodies])


def _section(shown: ShownExample, made: Sequence[Piece]) -> Html:
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
        yield element("span", {"class": "ws"}, found.group().translate(_MARKS))
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
