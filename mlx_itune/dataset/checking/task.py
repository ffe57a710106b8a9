"""What a data set asks of a model: labels, JSON or free text. From that follow a system prompt for
rows that have none, and what can be said before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.wording import count, listing, percent

# Fewer rows than this teach little; of fewer than that none can be held out.
FEW_ROWS, FEWEST_ROWS = 50, 10
# An answer that is given in more of the rows than this is mostly what is learned.
MOST_OF_ONE = 0.9
_JSON_SHARE = 0.9
# Labels are short and each is given again and again: of so many rows a kind.
_LABEL_CHARS, _ROWS_PER_LABEL = 60, 3
# What of labels, or of the keys of an object, is still a short prompt.
_MOST_NAMED, _MOST_NAMED_CHARS = 12, 160


@dataclass(frozen=True)
class Task:
    """labels: the different answers, the most frequent first; keys: of JSON objects, those that
    most have; contradictory: rows whose question has other answers elsewhere."""

    kind: Literal["labels", "json", "text"]
    rows: int
    labels: tuple[tuple[str, int], ...]
    keys: tuple[str, ...]
    contradictory: tuple[str, ...]
    systems: int

    @property
    def system(self) -> str | None:
        """A system prompt for rows that have none; None where the answers follow no form."""
        if self.kind == "json":
            named = f" with the keys {', '.join(self.keys)}" if _is_short(self.keys) else ""
            return f"Answer with a JSON object{named}, and nothing else."
        if self.kind == "labels":
            names = [label for label, _ in self.labels]
            return (
                f"Answer with one of: {', '.join(names)}."
                if _is_short(names)
                else "Answer with the label only."
            )
        return None

    def warnings(self) -> Iterator[str]:
        """What will disappoint, a line each."""
        if self.rows < FEW_ROWS:
            yield f"{count(self.rows, 'row')} teach little: 200 or more are better"
        label, most = self.labels[0]
        if self.kind != "text" and len(self.labels) > 1 and most > MOST_OF_ONE * self.rows:
            share = percent(most / self.rows)
            alone = f"{share} of the rows have one answer, {label[:60]!r}"
            yield f"{alone}: saying that always is right as often"
        if len(self.labels) == 1:
            yield f"all rows have the same answer, {label[:60]!r}: there is nothing to tell apart"
        if self.contradictory:
            rows = count(len(self.contradictory), "row")
            yield f"{rows} ask what others answer differently: {listing(self.contradictory)}"


def task_of(rows: Sequence[Conversation]) -> Task:
    """The task of rows, by their last answers."""
    answers = Counter[str]()
    answered: dict[str, Counter[str]] = {}
    asked: list[tuple[str, str, str]] = []
    objects: list[dict[str, Any]] = []
    values, systems = 0, 0
    for row in rows:
        last = max(n for n, turn in enumerate(row.turns) if turn.role == "assistant")
        answer = row.turns[last].content.strip()
        said = "\0".join(" ".join(turn.content.split()).casefold() for turn in row.turns[:last])
        answers[answer] += 1
        answered.setdefault(said, Counter())[answer] += 1
        asked.append((said, answer, row.origin))
        systems += row.turns[0].role == "system"
        if answer[:1] in ("{", "["):
            try:
                value = orjson.loads(answer)
            except orjson.JSONDecodeError:
                continue
            values += 1
            objects += [value] if isinstance(value, dict) else []
    kind: Literal["labels", "json", "text"] = "text"
    if values >= _JSON_SHARE * len(rows):
        kind = "json"
    elif len(answers) * _ROWS_PER_LABEL <= len(rows) and all(map(_is_label, answers)):
        kind = "labels"
    held = Counter(key for value in objects for key in value)
    keys = [key for key, n in held.items() if n >= _JSON_SHARE * len(rows)]
    # Of free text another answer is no contradiction.
    split = {said for said, given in answered.items() if len(given) > 1 and kind != "text"}
    odd = tuple(origin for said, _, origin in asked if said in split)
    return Task(kind, len(rows), tuple(answers.most_common()), tuple(keys), odd, systems)


def _is_label(text: str) -> bool:
    return len(text) <= _LABEL_CHARS and "\n" not in text


def _is_short(names: Sequence[str]) -> bool:
    return 1 < len(names) <= _MOST_NAMED and len(", ".join(names)) <= _MOST_NAMED_CHARS
