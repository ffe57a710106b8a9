"""Token texts that join to what is decoded, and pages on which data is only ever text."""

import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from chat_templates import CHATML, QWEN3
from small_tokenizers import TOKENIZERS

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.rendering.show_rows import pieces, shown_examples, tokens_page
from mlx_itune.dataset.statistics.report import stats_page
from mlx_itune.dataset.statistics.stats import count
from mlx_itune.kit.errors import DataError

HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'& \u202e \x1b[31m --> ]]> <b>"
SCRAPS = (
    "the ", "a", " ", "  ", "\n", "\t", "é", "日本", "🙂", "👩\u200d👧", "</s>", "<|end|>",
    "\ufffd", "x y", "\u0301", ":)", "▁", "ሀ", "𓀀",
)  # fmt: skip

each_kind = pytest.mark.parametrize("kind", TOKENIZERS)


def talk(*contents, origin="rows.jsonl:1", weights=()):
    turns = [Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(contents)]
    for n, weight in enumerate(weights):
        turns[2 * n + 1] = Turn("assistant", contents[2 * n + 1], weight)
    return Conversation(tuple(turns), origin)


def undivided(texts):
    """Texts joined, with the bytes of divided characters put together again."""

    def whole(found):
        return bytes.fromhex(found.group().replace("<0x", "").replace(">", "")).decode()

    return re.sub("(?:<0x[0-9A-F]{2}>)+", whole, "".join(texts))


def texts_of(tokenizer, ids, *, single=True):
    example = TokenizedExample(np.array(ids, np.int32), np.ones(len(ids), np.float32), "f:1")
    return [piece.text for piece in pieces(example, tokenizer, single=single)]


@each_kind
def test_token_texts_join_to_the_decoded_text(chat, kind):
    tokenizer = chat(kind)
    rng = random.Random(0)
    for _ in range(100):
        ids = tokenizer.encode_ids("".join(rng.choices(SCRAPS, k=rng.randint(1, 20))))
        texts = texts_of(tokenizer, ids)
        assert len(texts) == len(ids)
        assert undivided(texts) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_parts_of_a_character_show_their_bytes(chat, kind):
    tokenizer = chat(kind)
    ids = tokenizer.encode_ids("a€")
    assert "".join(texts_of(tokenizer, ids)).strip() == "a<0xE2><0x82><0xAC>"
    assert texts_of(tokenizer, ids[:-1])[-1] == "<0x82>", "cut within a character"
    assert texts_of(tokenizer, []) == []
    own = texts_of(tokenizer, tokenizer.encode_ids("a\ufffdé"), single=False)
    assert "".join(own).strip() == "a\ufffdé", "the data's own stays"


@each_kind
def test_pieces_cover_every_token_with_its_weight(chat, kind):
    tokenizer = chat(kind)
    row = talk("Zürich 日本?", "🙂 yes", "more", "no €", weights=(0.5, 2.0))
    for shown in shown_examples(row, tokenizer, max_length=2048):
        ids, weights = shown.tokens.input_ids.tolist(), shown.tokens.weights.tolist()
        for single in (False, True):
            found = list(pieces(shown.tokens, tokenizer, single=single))
            assert [i for piece in found for i in piece.ids] == ids
            assert [piece.weight for piece in found for _ in piece.ids] == weights
            assert all(ids[piece.start] == piece.ids[0] for piece in found)
        text = "".join(piece.text for piece in pieces(shown.tokens, tokenizer))
        assert text == tokenizer.decode(ids)


def test_an_example_says_why_it_is_as_it_is(chat):
    thinking = talk("one", "<think>\nhm\n</think>\n\n1", "two", "<think>\nso\n</think>\n\n2")
    found = shown_examples(thinking, chat("gpt2", QWEN3), max_length=2048)
    assert ["in the context that inference builds" in e.notes[0] for e in found] == [True, True]
    long = talk("hi", "word " * 80)
    (cut,) = shown_examples(long, chat("gpt2"), max_length=60, too_long="truncate")
    assert "cut short" in " ".join(cut.notes)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: nothing is left"):
        shown_examples(long, chat("gpt2"), max_length=60, too_long="drop")


class Page(HTMLParser):
    """The elements and attributes of a page, and the title and class of each token."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.attributes, self.tokens, self.text = set(), set(), [], ""
        document.encode("utf-8")
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.attributes |= found.keys()
        if tag == "span" and "title" in found:
            self.tokens.append((found["title"], found.get("class")))

    def handle_data(self, data):
        self.text += data


SAFE_TAGS = set(
    "html head meta title style body main header h1 h2 p section div dl dt dd span sup label input "
    "figure svg text rect line table thead tbody tr th td details summary".split()
)
SAFE_ATTRIBUTES = set(
    "lang charset http-equiv content name class title id type scope role viewbox aria-label "
    "x y x1 x2 y1 y2 width height".split()
)


def test_hostile_data_is_only_text_on_both_pages(chat):
    # The calls of a turn behind its words.
    calling = CHATML.replace("+ m.content +", "+ m.content + (m.tool_calls or '') | string +")
    tokenizer = chat("gpt2", calling)
    called = {"type": "function", "function": {"name": HOSTILE, "arguments": {}}}
    turns = (
        Turn("system", HOSTILE),
        Turn("user", HOSTILE),
        Turn("assistant", HOSTILE, weight=0.25),
        Turn("user", "again"),
        Turn("assistant", HOSTILE, tool_calls=(called,), weight=3),
    )
    tags = {"source": HOSTILE, HOSTILE: HOSTILE, "task": HOSTILE}
    rows = [Conversation(turns, f"{HOSTILE}.jsonl:{n}", tags=tags) for n in (1, 2)]
    shown = [e for row in rows for e in shown_examples(row, tokenizer, max_length=4096)]
    stats = count([(HOSTILE, rows)], tokenizer=tokenizer, max_length_tokens=20)
    for document in (
        tokens_page(shown, tokenizer, data=HOSTILE, model=HOSTILE),
        stats_page(stats, data=HOSTILE),
    ):
        page = Page(document)
        assert page.tags <= SAFE_TAGS and page.attributes <= SAFE_ATTRIBUTES
        assert "onerror=alert(1)" in page.text.replace("·", " ")
        assert "\u202e" not in document and "\x1b" not in document
        assert "default-src 'none'" in document


def test_the_token_page_has_every_token_with_id_index_and_weight(chat):
    tokenizer = chat("gpt2")
    row = talk("hi", " it is €\n", weights=(0.5,))
    (shown,) = shown_examples(row, tokenizer, max_length=2048)
    page = Page(tokens_page([shown], tokenizer, data="rows.jsonl", model="tiny"))
    told = [re.fullmatch(r"id ([\d, ]+) \| token .+ \| weight (.+)", t) for t, _ in page.tokens]
    ids = [int(i) for found in told for i in found[1].split(", ")]
    assert ids == shown.tokens.input_ids.tolist()
    assert {found[2] for found in told} == {"0", "0.5"}
    kinds = {kind for title, kind in page.tokens if title.endswith("weight 0.5")}
    assert kinds == {"t wb", "t wb ctl"}
    assert "€" in page.text, "the bytes of one character stand together"
    assert "·it is" in page.text and "€↵\n" in page.text, "white space at a border can be seen"


def test_the_stats_page_shows_what_was_counted(chat):
    rows = [talk(*("question " * 10, "answer") * (n % 5 + 1)) for n in range(30)]
    bare = Page(stats_page(count([("train", rows)]), data="rows.jsonl")).text
    assert "Turns per conversation" in bare and "Tokens per row" not in bare
    full = count([("train", rows)], tokenizer=chat("gpt2"), max_length_tokens=100)
    text = Page(stats_page(full, data="rows.jsonl")).text
    total = f"{full.tokens.total:,}"
    for wanted in ("Tokens per row", "Learned share of a row", total, "limit 100"):
        assert wanted in text
