"""Steps that drop rows for what they are: too short, or in another language's script."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection

from mlx_itune.dataset.cleaning.outcome import KEPT, Dropped, Outcome, RowStep
from mlx_itune.dataset.conversation import Conversation

# Where each script's main ranges start; "" for what belongs to none of those named.
_RANGES = (
    (0x0000, "latin"), (0x0370, "greek"), (0x0400, "cyrillic"), (0x0530, "armenian"),
    (0x0590, "hebrew"), (0x0600, "arabic"), (0x0780, ""), (0x08A0, "arabic"),
    (0x0900, "indic"), (0x0E00, "thai"), (0x0E80, ""), (0x10A0, "georgian"), (0x1100, "hangul"),
    (0x1200, ""), (0x1E00, "latin"), (0x1F00, "greek"), (0x2000, ""), (0x2C60, "latin"),
    (0x2C80, ""), (0x2E80, "han"), (0x3040, "kana"), (0x3100, "han"), (0x3130, "hangul"),
    (0x3190, "han"), (0xA000, ""), (0xA640, "cyrillic"), (0xA6A0, ""), (0xA720, "latin"),
    (0xA800, ""), (0xAC00, "hangul"), (0xD7B0, ""), (0xF900, "han"), (0xFB00, "latin"),
    (0xFB13, ""), (0xFB1D, "hebrew"), (0xFB50, "arabic"), (0xFE00, ""), (0xFE70, "arabic"),
    (0xFEFF, ""), (0xFF21, "latin"), (0xFF5B, ""), (0xFF66, "kana"), (0xFFA0, "hangul"),
    (0xFFE0, ""), (0x20000, "han"), (0x323B0, ""),
)  # fmt: skip
_STARTS = [start for start, _ in _RANGES]
_GROUPS = {"cjk": frozenset({"han", "kana", "hangul"}), "japanese": frozenset({"han", "kana"})}
SCRIPTS = tuple(sorted({name for _, name in _RANGES if name} | _GROUPS.keys()))


def script_shares(text: str) -> Counter[str]:
    """How many letters of a text belong to each script."""
    if text.isascii():
        return Counter(latin=sum(map(str.isalpha, text)))
    letters = Counter(char for char in text if char.isalpha())
    shares: Counter[str] = Counter()
    for char, count in letters.items():
        shares[_RANGES[bisect_right(_STARTS, ord(char)) - 1][1]] += count
    return shares


def keep_scripts(scripts: Collection[str], least: float) -> RowStep:
    """Drop rows of whose letters less than a share belongs to some scripts."""
    wanted = frozenset().union(*(_GROUPS.get(name, frozenset({name})) for name in scripts))

    def step(row: Conversation) -> Outcome:
        shares = script_shares("\n".join(turn.content for turn in row.turns))
        letters = shares.total()
        share = sum(shares[name] for name in wanted) / letters if letters else 1.0
        if share >= least:
            return KEPT
        most = max(shares, key=lambda name: shares[name]) or "another script"
        return Dropped(f"{100 * share:.0f} % {'/'.join(sorted(scripts))}, mostly {most}")

    return step


def drop_short(least_chars: int) -> RowStep:
    """Drop conversations of fewer characters, the system turn aside."""

    def step(row: Conversation) -> Outcome:
        size = sum(len(turn.content.strip()) for turn in row.turns if turn.role != "system")
        if size >= least_chars or any(turn.tool_calls for turn in row.turns):
            return KEPT
        return Dropped(f"{size} characters, fewer than {least_chars}")

    return step
