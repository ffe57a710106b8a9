"""What a draft is worth: ROUGE-L (Lin, 2004), the share found in a passage, what refuses it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_itune.dataset.drafts.recipe import Recipe
from mlx_itune.dataset.schema import json_of

_WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text, folded."""
    return tuple(_WORD.findall(text.casefold()))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time in the bits of a
    number (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for n, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << n
    row = whole = (1 << len(one)) - 1
    for word in other:
        both = row & places.get(word, 0)
        row = (row + both | row - both) & whole
    return len(one) - row.bit_count()


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words; of nothing and nothing 1."""
    total = len(one) + len(other)
    return 2 * common(one, other) / total if total else 1.0


class Kept:
    """What must not be repeated: texts that are kept, with the nearest of them to a new one."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._texts: list[tuple[tuple[str, ...], frozenset[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Keep one more."""
        said = words(text)
        self._texts.append((said, frozenset(said)))

    def nearest(self, text: str) -> float:
        """ROUGE-L with the nearest."""
        said, best = words(text), 0.0
        known = set(said)
        for other, others in self._texts:
            # No common subsequence is longer than the shorter text, or has words of one only.
            shared = sum(word in others for word in said) if known & others else 0
            most = min(shared, len(other))
            if (total := len(said) + len(other)) and 2 * most / total > best:
                best = max(best, rouge_l(said, other))
        return best


def found_in(answer: str, passage: str) -> float:
    """How much of an answer the passage has: all where it says it so; else of JSON the share of its
    values, of a text the share of its words that the passage has in this order."""
    said, there = words(answer), words(passage)
    if (value := json_of(answer)) is not None:
        text = " ".join(there)
        leaves = [" ".join(words(leaf)) for leaf in _leaves(value)]
        return sum(f" {leaf} " in f" {text} " for leaf in leaves) / len(leaves) if leaves else 1.0
    return common(said, there) / len(said) if said else 0.0


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None and not isinstance(value, bool):
        yield value if isinstance(value, str) else json.dumps(value)


def refused(recipe: Recipe, asked: str, said: str) -> str | None:
    """Why a row is none worth a look: empty sides, lengths, words of the list, a sentence that
    begins with a mark; None where nothing is wrong."""
    if not asked.strip() or not said.strip():
        return "empty"
    length = len(words(asked))
    if length < recipe.min_words:
        return "too short"
    if max(length, len(words(said))) > recipe.max_words:
        return "too long"
    text = " ".join(words(f"{asked} {said}"))
    if any(f" {' '.join(words(word))} " in f" {text} " for word in recipe.forbidden):
        return "a word of the list"
    if not re.match(r"[\w\"'“‘(¿¡$€£]", asked):
        return "begins with a mark"
    return None


def doubt(scores: Mapping[str, float | None]) -> float:
    """From 0 to 1, half the worst and half the mean of: what of the answer is not in the passage,
    where two samples differ, what the judge missed, and how near another row is."""
    parts = [
        1 - score for name in ("found", "agreement", "judge") if (score := scores[name]) is not None
    ]
    parts.append(scores["nearest"] or 0.0)
    return round((max(parts) + sum(parts) / len(parts)) / 2, 4)
