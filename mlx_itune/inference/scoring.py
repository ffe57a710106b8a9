"""Is an answer right? By the kind of answers that a task has, or by a way that is forced.

| way | an answer is right where |
|---|---|
| exact | it is the reference, but for spaces; JSON objects and lists are compared as JSON |
| labels | the same; told with macro-F1 and with what is taken for what |
| json | it is the reference's JSON object or list; told with its fields, and faults by a schema |
| numeric | its last number is the reference's |
| choice | of the references' texts, the first that it names is its own |
| contains | the reference is somewhere in it, in any case |
| regex | what the pattern finds in both is the same |
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import Any

from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.json_files import parse_object
from mlx_itune.kit.patterns import compiled
from mlx_itune.kit.wording import known

# How a JSON value breaks a schema; None where it does not.
Breaks = Callable[[Any], str | None]

# The ways, and what a score by each is called.
METRICS = {
    "exact": "exact match",
    "labels": "accuracy",
    "json": "exact JSON",
    "numeric": "same number",
    "choice": "right choice",
    "contains": "contains the reference",
    "regex": "same by the pattern",
}
# References are labels if they are so short, and each is there twice on average.
_LABEL_CHARACTERS = 60
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
# How GSM8K and its kin end an answer.
_ANNOUNCED = re.compile(r"####\s*[-+$]?[\d.,]+\s*\Z")
_PATTERN_SECONDS = 1.0
_PAIRS_TOLD = 20


@dataclass(frozen=True)
class Pair:
    """An answer and what it should be."""

    answer: str
    reference: str


@dataclass(frozen=True)
class Confusion:
    """So many rows of the label `reference` were answered with `answer`."""

    reference: str
    answer: str
    rows: int


@dataclass(frozen=True)
class LabelScore:
    """macro_f1: mean F1 over the references' labels; outside: answers that are none of them;
    confused: the most frequent mistakes."""

    labels: int
    macro_f1: float
    outside: int
    confused: tuple[Confusion, ...]


@dataclass(frozen=True)
class FieldScore:
    """A field of the references, in so many of them; accuracy: how often the answer has it so."""

    rows: int
    accuracy: float


@dataclass(frozen=True)
class JsonScore:
    """Shares of the answers: valid (a JSON object or list), and by the schema (None without one);
    of the references' fields that answers have right, in all and by path (`slots.city`)."""

    valid: float
    schema_valid: float | None
    field_accuracy: float
    fields: dict[str, FieldScore]


@dataclass(frozen=True)
class Scorer:
    """One way to score. pattern: of a regex, or of the labels to choose from."""

    way: str
    pattern: Any = None

    def is_right(self, pair: Pair) -> bool:
        """Raises UsageError for a pattern that takes too long."""
        if self.way in ("exact", "labels", "json"):
            return exact_match(pair.answer, pair.reference)
        if self.way == "contains":
            return normalize(pair.reference).casefold() in normalize(pair.answer).casefold()
        wanted, given = self.read(pair.reference), self.read(pair.answer)
        return given is not None and given == wanted

    def read(self, text: str) -> Any:
        """What of a text is compared, None where it is not there."""
        if self.way == "numeric":
            numbers = _NUMBER.findall(text)
            return Decimal(numbers[-1].replace(",", "")) if numbers else None
        if self.way == "choice":
            named = self.pattern.search(normalize(text))
            return named.group().casefold() if named else None
        if self.way == "regex":
            return self._found(text)
        return normalize(text)

    def _found(self, text: str) -> str | None:
        try:
            found = self.pattern.search(text, timeout=_PATTERN_SECONDS)
        except TimeoutError:
            hint = "nested repetitions such as (a+)+ are the usual reason"
            raise UsageError("--pattern takes too long on an answer", hint=hint) from None
        groups = [group for group in found.groups() if group is not None] if found else []
        return normalize(groups[0] if groups else found.group()) if found else None


def way_of(references: Sequence[str]) -> str:
    """The kind of answers that a task has, by its references."""
    if references and all(_json(text) is not None for text in references):
        return "json"
    if references and all(_ANNOUNCED.search(text) for text in references):
        return "numeric"
    short = all(len(text.strip()) <= _LABEL_CHARACTERS and "\n" not in text for text in references)
    distinct = len({normalize(text) for text in references})
    return "labels" if short and 2 * distinct <= len(references) else "exact"


def scorer_for(references: Sequence[str], way: str = "auto", pattern: str | None = None) -> Scorer:
    """The scorer of a task's answers. Raises UsageError for an unknown way or a bad pattern."""
    if way in ("auto", "regex") and pattern is not None:
        way = "regex"
    elif way == "regex" or pattern is not None:
        raise UsageError("--score regex and --pattern go together")
    way = way_of(references) if way == "auto" else known("score", way, METRICS)
    if way == "choice":
        # Of those that begin at a place, the longest.
        labels = sorted({normalize(text) for text in references} - {""}, key=len, reverse=True)
        named = "|".join(map(re.escape, labels)) or r"\b\B"
        return Scorer(way, re.compile(rf"(?<!\w)(?:{named})(?!\w)", re.IGNORECASE))
    try:
        return Scorer(way, compiled(pattern) if pattern is not None else None)
    except ValueError as error:
        raise UsageError(f"--pattern: {error}") from None


def label_score(scorer: Scorer, pairs: Sequence[Pair]) -> LabelScore:
    """Macro-F1 and confusions, each text as the scorer reads it."""
    texts = [
        (str(scorer.read(pair.reference) or ""), str(scorer.read(pair.answer) or ""))
        for pair in pairs
    ]
    wanted, given = (Counter(side) for side in zip(*texts, strict=True))
    right = Counter(reference for reference, answer in texts if reference == answer)
    f1 = [2 * right[label] / (wanted[label] + given[label]) for label in wanted]
    wrong = Counter(pair for pair in texts if pair[0] != pair[1])
    return LabelScore(
        labels=len(wanted),
        macro_f1=fmean(f1),
        outside=sum(rows for answer, rows in given.items() if answer not in wanted),
        confused=tuple(
            Confusion(reference, answer, rows)
            for (reference, answer), rows in wrong.most_common(_PAIRS_TOLD)
        ),
    )


def json_score(pairs: Sequence[Pair], breaks: Breaks | None = None) -> JsonScore:
    """Of answers whose references are JSON; breaks: what tells how a value breaks the schema."""
    hits: defaultdict[str, list[bool]] = defaultdict(list)
    objects = [_json(pair.answer) for pair in pairs]
    faults = [json_fault(pair.answer, breaks) for pair in pairs]
    for pair, answer in zip(pairs, objects, strict=True):
        given = dict(_leaves(answer))
        for path, value in _leaves(_json(pair.reference)):
            hits[path].append(path in given and given[path] == value)
    every = [hit for listed in hits.values() for hit in listed]
    return JsonScore(
        valid=fmean(answer is not None for answer in objects),
        schema_valid=fmean(fault is None for fault in faults) if breaks else None,
        field_accuracy=fmean(every) if every else 1.0,
        fields={path: FieldScore(len(listed), fmean(listed)) for path, listed in hits.items()},
    )


def json_fault(answer: str, breaks: Breaks | None = None) -> str | None:
    """Why an answer is no JSON object or list, or none by the schema; None where it is."""
    if _json(answer) is None:
        return "no JSON object or list"
    return breaks(json.loads(answer)) if breaks else None


def normalize(text: str) -> str:
    """Unicode NFC, outer whitespace stripped, each inner run of whitespace one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(answer: str, reference: str) -> bool:
    """Are both the same text after :func:`normalize`? Where the reference is a JSON object or list
    the answer is compared as JSON: key order, spacing and ``1`` against ``1.0`` do not matter; a
    repeated key does."""
    wanted = _json(reference)
    if wanted is not None:
        return bool(_json(answer) == wanted)
    return normalize(answer) == normalize(reference)


def token_f1(answer: str, reference: str) -> float:
    """Bag-of-words F1 as in SQuAD (1606.05250 section 6.1), but articles count. Words are
    lower-cased and lose ASCII punctuation. Two empty texts score 1, one empty text 0."""
    given, wanted = (
        Counter(normalize(text).lower().translate(_PUNCTUATION).split())
        for text in (answer, reference)
    )
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def _json(text: str) -> Any:
    """What :func:`exact_match` compares; None for a text that is no JSON object or list."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        # The door takes objects: as the only value of one.
        found = parse_object(f'{{"": {text}}}', where=None, error=DataError)
    except DataError:
        return None
    return _canonical(found[""]) if len(found) == 1 else None


def _canonical(value: Any) -> Any:
    """The value with its types told apart (``True`` is not ``1``) and its strings normalized."""
    if isinstance(value, dict):
        return {normalize(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, str):
        return normalize(value)
    return (isinstance(value, bool), value)


def _leaves(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of what an object holds; a list, or an object with nothing in it, is one."""
    if isinstance(value, list):
        yield "(list)", value
    for key, item in value.items() if isinstance(value, dict) else ():
        path = f"{before}{key}"
        if isinstance(item, dict) and item:
            yield from _leaves(item, f"{path}.")
        else:
            yield path, item
