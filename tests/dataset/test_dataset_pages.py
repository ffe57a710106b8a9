"""Token texts that join to what is decoded, and pages on which data is only ever text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from chat_templates import CHATML, QWEN3

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.show_rows import (
    pieces,
    shown_examples,
    single_tokens,
    text_runs,
    token_texts,
)
from mlx_itune.dataset.rendering.tokens_page import tokens_page
from mlx_itune.dataset.statistics.stats import count
from mlx_itune.dataset.statistics.stats_page import stats_page
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

Chat = Callable[..., ChatTokenizer]

# The calls of a turn behind its words.
CALLING = CHATML.replace("+ m.content +", "+ m.content + (m.tool_calls or '') | string +")
KINDS = ("gpt2", "llama3", "merging", "llama2", "llama2_legacy")
HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'& \u202e \x1b[31m --> ]]> <b>"
SCRAPS = (
    "the ", "a", " ", "  ", "\n", "\t", "é", "日本", "🙂", "👩\u200d👧", "</s>", "<|end|>",
    "\ufffd", "x y", "\u0301", ":)", "<0xE2>", "▁", "ሀ", "𓀀",
)  # fmt: skip


def undivided(texts: list[str]) -> str:
    """Texts joined, with the bytes of divided characters put together again."""

    def whole(found: re.Match[str]) -> str:
        return bytes.fromhex(found.group().replace("<0x", "").replace(">", "")).decode()

    return re.sub("(?:<0x[0-9A-F]{2}>)+", whole, "".join(texts))


@pytest.mark.parametrize("kind", KINDS)
def test_token_texts_join_to_the_decoded_text(chat: Chat, kind: str) -> None:
    tokenizer = chat(kind)
    rng = random.Random(0)
    for _ in range(200):
        scraps = [s for s in SCRAPS if s != "<0xE2>"]
        text = "".join(rng.choice(scraps) for _ in range(rng.randint(1, 20)))
        ids = tokenizer.encode_ids(text)
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids)
        assert undivided(texts) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_parts_of_a_character_show_their_bytes(chat: Chat, kind: str) -> None:
    tokenizer = chat(kind)
    ids = tokenizer.encode_ids("a€")
    texts = token_texts(tokenizer, ids)
    assert "".join(texts).strip() == "a<0xE2><0x82><0xAC>"
    assert token_texts(tokenizer, ids[:-1])[-1] == "<0x82>", "cut within a character"
    assert token_texts(tokenizer, []) == []
    runs = text_runs(tokenizer, tokenizer.encode_ids("a\ufffdé"))
    assert "".join(run.text for run in runs).strip() == "a\ufffdé", "the data's own stays"


def long_talk(exchanges: int) -> Conversation:
    turns = []
    for n in range(exchanges):
        turns += [Turn("user", f"question {n} " + "word " * 10), Turn("assistant", f"answer {n}")]
    return Conversation(tuple(turns), "rows.jsonl:7")


def test_a_template_that_rewrites_history_says_so(chat: Chat) -> None:
    turns = (
        Turn("user", "one"),
        Turn("assistant", "<think>\nhm\n</think>\n\nfirst"),
        Turn("user", "two"),
        Turn("assistant", "<think>\nso\n</think>\n\nsecond"),
    )
    found = shown_examples(
        Conversation(turns, "rows.jsonl:1"), chat("gpt2", QWEN3), max_length=2048
    )
    assert len(found) == 2
    assert all("in the context that inference builds" in " ".join(e.notes) for e in found)


def test_a_cut_turn_and_a_row_without_room_say_so(chat: Chat) -> None:
    tokenizer = chat("gpt2")
    row = Conversation((Turn("user", "hi"), Turn("assistant", "word " * 80)), "rows.jsonl:3")
    (cut,) = shown_examples(row, tokenizer, max_length=60, too_long="truncate")
    assert "cut short" in " ".join(cut.notes)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: nothing is left"):
        shown_examples(row, tokenizer, max_length=60, too_long="drop")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_cover_every_token_with_its_weight(chat: Chat, kind: str) -> None:
    tokenizer = chat(kind)
    row = Conversation(
        (
            Turn("user", "Zürich 日本?"),
            Turn("assistant", "🙂 yes", weight=0.5),
            Turn("user", "more"),
            Turn("assistant", "no €", weight=2.0),
        ),
        "rows.jsonl:1",
    )
    for examined in shown_examples(row, tokenizer, max_length=2048):
        ids, weights = examined.tokens.input_ids.tolist(), examined.tokens.weights.tolist()
        for made in (pieces, single_tokens):
            found = list(made(examined.tokens, tokenizer))
            assert [i for piece in found for i in piece.ids] == ids
            assert [piece.weight for piece in found for _ in piece.ids] == weights
            assert all(ids[piece.start] == piece.ids[0] for piece in found)
        shown = "".join(piece.text for piece in pieces(examined.tokens, tokenizer))
        assert shown == tokenizer.decode(ids)


class Reader(HTMLParser):
    """The elements and attributes of a page, and the title and text of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        found = dict(attrs)
        if tag == "span" and "title" in found:
            self.tokens.append((found["title"] or "", found.get("class") or ""))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    document.encode("utf-8")
    return reader


SAFE_TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "section",
    "div", "dl", "dt", "dd", "span", "sup", "label", "input", "figure", "svg", "text", "rect",
    "line", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
}  # fmt: skip
SAFE_ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "title", "id", "type", "scope",
    "role", "viewbox", "aria-label", "x", "y", "x1", "x2", "y1", "y2", "width", "height",
}  # fmt: skip


def hostile_rows() -> list[Conversation]:
    called = {"type": "function", "function": {"name": HOSTILE, "arguments": {}}}
    turns = (
        Turn("system", HOSTILE),
        Turn("user", HOSTILE),
        Turn("assistant", HOSTILE, weight=0.25),
        Turn("user", "again"),
        Turn("assistant", HOSTILE, tool_calls=(called,), weight=3),
    )
    tags = {"source": HOSTILE, HOSTILE: HOSTILE, "task": HOSTILE}
    return [Conversation(turns, f"{HOSTILE}.jsonl:{n}", tags=tags) for n in (1, 2)]


def test_hostile_data_is_only_text_on_both_pages(chat: Chat) -> None:
    tokenizer = chat("gpt2", CALLING)
    shown = [e for row in hostile_rows() for e in shown_examples(row, tokenizer, max_length=4096)]
    stats = count([(HOSTILE, hostile_rows())], tokenizer=tokenizer, max_length_tokens=20)
    assert stats is not None
    for document in (
        tokens_page(shown, tokenizer, data=HOSTILE, model=HOSTILE),
        stats_page(stats, data=HOSTILE),
    ):
        seen = read(document)
        assert seen.tags <= SAFE_TAGS
        assert seen.attributes <= SAFE_ATTRIBUTES
        assert "onerror=alert(1)" in seen.text.replace("·", " ")
        assert "\u202e" not in document and "\x1b" not in document
        assert "default-src 'none'" in document


def test_the_token_page_has_every_token_with_id_index_and_weight(chat: Chat) -> None:
    tokenizer = chat("gpt2")
    row = Conversation((Turn("user", "hi"), Turn("assistant", "yes €", weight=0.5)), "rows.jsonl:1")
    (examined,) = shown_examples(row, tokenizer, max_length=2048)
    seen = read(tokens_page([examined], tokenizer, data="rows.jsonl", model="tiny"))
    ids = examined.tokens.input_ids.tolist()
    told = [re.fullmatch(r"id ([\d, ]+) \| token .+ \| weight (.+)", t) for t, _ in seen.tokens]
    assert [int(i) for found in told if found for i in found[1].split(", ")] == ids
    assert {found[2] for found in told if found} == {"0", "0.5"}
    kinds = {kind for title, kind in seen.tokens if title.endswith("weight 0.5")}
    assert kinds == {"t wb", "t wb ctl"}
    assert "€" in seen.text, "the bytes of one character stand together"


def test_the_stats_page_shows_what_was_counted(chat: Chat) -> None:
    rows = [long_talk(n % 5 + 1) for n in range(30)]
    bare = count([("train", rows)])
    full = count([("train", rows)], tokenizer=chat("gpt2"), max_length_tokens=100)
    assert bare is not None and full is not None
    text = read(stats_page(bare, data="rows.jsonl")).text
    assert "Turns per conversation" in text and "Tokens per row" not in text
    text = read(stats_page(full, data="rows.jsonl")).text
    assert full.tokens is not None
    for wanted in (
        "Tokens per row",
        "Learned share of a row",
        f"{full.tokens.total:,}",
        "limit 100",
    ):
        assert wanted in text
