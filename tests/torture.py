"""Texts that tokenizers disagree about, drawn from a seed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

# fmt: off
_FIXED = [
    "", " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\n \n", " \n", "\n ", "\t\t\n", "\x00",
    "\u00a0", "\u2003", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2028", "\u2029", "\x0b\x0c",
    "a", " a", "  a", "a ", "a  ", " a b  c   d", "▁", "▁▁", " ▁a", "a▁b",
    "I'm", "I'M", "WE'LL've", "don't 'tis 's 'S'T'RE", "it’s", "'''''", "l'été",
    "0", "12", "123", "1234", "12345678901234567890", "3.14", "1,234,567.89", "٣٤٥", "½ⅷ①", "१२३४",
    "été", "e\u0301te\u0301", "a\u0300\u0301\u0302\u0303", "ﬁﬂ", "ÅÅ", "İıſßẞ", "ǅǆ", "Ω",
    "中文字符测试，你好。", "日本語のテキスト", "カタカナ", "한국어 텍스트", "ภาษาไทยไม่มีช่องว่าง",
    "قُلْ هُوَ اللَّهُ أَحَدٌ",
    "שָׁלוֹם", "हिन्दी में पाठ", "বাংলা", "ខ្មែរ", "မြန်မာ", "አማርኛ", "Ελληνικά ΚΕΦΑΛΑΙΑ", "Привет, МИР",
    "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "🦙🦙 🚀", "\U0001f636\u200d\U0001f32b\ufe0f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈", "𓀀", "𠜎𠜱", "\U000e0001", "\uffff", "\U0010ffff", "\ue000", "\ufffd",
    "<s>", "</s>", "<unk>", "<0x0A>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "[INST]",
    "[PAD7]", "<s> a", "a </s> b", "<|im_start|>user\nhi<|im_end|>\n", "<<SYS>>\nx\n<</SYS>>\n\n",
    "<|", "|>",
    "def f(x: int) -> str:\n    return f'{x!r}'  # note\n\n\tif (a&&b||!c) { x += 1; }\r\n",
    '{"a": [1, 2, {"b": null}], "c": "\\u00e9\\n"}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt ../../x",
    "| a | b |\n|---|---|\n| 1 | 2 |\n```python\nprint('hi')\n```",
    "$E=mc^2$ \\frac{a}{b} ∑∫√≤≥≠ ±× … — – “q” ‘q’ «q» „q“",
]
_WORDS = (
    "the The THE of patient metformin zolpidem Follow-up naïve Straße smörgåsbord don't I'll mg/dl "
    "500mg 2x O(n) x_1 camelCase snake_case __init__ self.x != == <= -> => && // /* */ #tag @user "
    "привет мир 世界 こんにちは 안녕 مرحبا שלום नमस्ते สวัสดี Γειά 😀 "
    "👩🏽‍💻 🏳️‍🌈 e\u0301 n\u0303 \u200b \u00ad ﷺ ǆ"
).split()
_SPACES = [*" " * 4, "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", ""]
# fmt: on


def texts(count: int, seed: int, marks: Sequence[str] = ()) -> list[str]:
    """``count`` distinct-ish texts; ``marks`` are control strings that some of them spell out."""
    draw = random.Random(seed)
    found = list(_FIXED)
    found += [f"{before}{mark}{after}" for mark in marks for before, after in _AROUND]
    makers = [_sentence, _soup, _planes, _runs, _digits, _bytes]
    while len(found) < count:
        found.append(draw.choice(makers)(draw, marks))
    return found[:count]


_AROUND = [("", ""), (" ", " "), ("a", "b"), ("\n", "\n"), ("x ", ""), ("", " y"), ("<", ">")]


def characters() -> Iterator[str]:
    """Every character that is assigned, of every plane, but for surrogates and private use."""
    for point in range(0x110000):
        if unicodedata.category(chr(point)) not in ("Cs", "Co", "Cn"):
            yield chr(point)


def _sentence(draw: random.Random, marks: Sequence[str]) -> str:
    pool = [*_WORDS, *marks] if draw.random() < 0.3 else _WORDS
    parts = [draw.choice(pool) + draw.choice(_SPACES) for _ in range(draw.randint(1, 20))]
    return draw.choice(("", " ", "\n")) * (draw.random() < 0.2) + "".join(parts)


def _soup(draw: random.Random, _: Sequence[str]) -> str:
    return "".join(chr(draw.randint(32, 126)) for _ in range(draw.randint(1, 60)))


def _planes(draw: random.Random, _: Sequence[str]) -> str:
    out = []
    for _ in range(draw.randint(1, 30)):
        top = draw.choice((0x80, 0x250, 0x800, 0x3000, 0x10000, 0x20000, 0x110000))
        point = draw.randrange(top)
        if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co"):
            out.append(chr(point))
    return "".join(out)


def _runs(draw: random.Random, _: Sequence[str]) -> str:
    chars = " \t\n\r\u00a0-=*#.!?_'\"`~0aA▁"
    return "".join(draw.choice(chars) * draw.randint(1, 12) for _ in range(draw.randint(1, 8)))


def _digits(draw: random.Random, _: Sequence[str]) -> str:
    return draw.choice(("", " ", "-", "$")).join(
        str(draw.randrange(10 ** draw.randint(1, 12))) for _ in range(draw.randint(1, 6))
    )


def _bytes(draw: random.Random, _: Sequence[str]) -> str:
    """What broken UTF-8 looks like once it is read."""
    raw = bytes(draw.randrange(256) for _ in range(draw.randint(1, 24)))
    return raw.decode("utf-8", errors="replace") + raw.decode("latin-1")
