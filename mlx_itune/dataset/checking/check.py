"""Every fault of every row in one pass; near duplicates and drift when all was seen."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from difflib import SequenceMatcher
from functools import partial
from itertools import combinations, islice
from os.path import commonprefix
from pathlib import Path
from typing import Any

from mlx_itune.dataset.checking.answer_shape import AnswerShape
from mlx_itune.dataset.checking.lints import Lint, excerpt, find_lints, load_lints
from mlx_itune.dataset.checking.near_duplicates import Duplicates, Match, families
from mlx_itune.dataset.conversation import Conversation, Fault, fault_at
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.importing.provenance import read_dataset
from mlx_itune.dataset.rendering.render import Learn, render_many
from mlx_itune.dataset.sources import expand, read_rows
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.wording import count

_ROWS_AT_ONCE = 64
_RARE_KEPT = 1 << 12
# A few hits are worth a look however few rows there are.
_RARE_ALWAYS = 3
_GIVE_TURNS = "give turns, not rendered text"
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
}
_ORDER = {"train": 0, "valid": 1, "test": 2, None: 3}
# Beyond this many distinct system prompts they are data rather than settings.
MAX_PROMPTS = 5000
_MAX_BLOCK = 200
_CLOSE = 0.7
_LITTLE = frozenset(
    "a an the to of in on at for with and or is are be that this any all as by from you your very"
    " please always also just both".split()
)
_WORD = re.compile(r"\w+")


class Check:
    """Iterate once over the faults; the totals are right when that is done. `duplicate_sources`
    counts the repeated rows by (source of the repeat, source of the first). With a tokenizer rows
    are judged as training would, and answers by the `schema`, or else by the shape that nearly all
    of them have. Raises DataError for an unreadable path."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        how: Reading | None = None,
        tokenizer: ChatTokenizer | None = None,
        learn: Learn = "all",
        max_length: int = 2048,
        near_duplicates: bool = True,
        lints: Sequence[Lint] | None = None,
        schema: Mapping[str, Any] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.rows = self.accepted = self.rejected = self.warnings = 0
        self.counts: Counter[str] = Counter()
        self.duplicate_sources: Counter[tuple[str, str]] = Counter()
        self.notes: list[str] = []
        # Training files first, so that of two equal rows the held-out one is the repeated one.
        self.paths = sorted(expand(paths), key=lambda path: _ORDER[split_of(path)])
        self.how = how or Reading()
        self._read = partial(read_rows, how=self.how, on_bytes=on_bytes)
        self._tokenizer, self._learn, self._max_length = tokenizer, learn, max_length
        self._near = near_duplicates
        found = load_lints() if lints is None else lints
        self._lints = [*found, *(_control_lints(tokenizer, found) if tokenizer else ())]
        # What is kept beside the turns of a data folder was accepted when that was made.
        self._are_ours = all(read_dataset(path) for path in self.paths)
        self._systems, self._answers = SystemPrompts(), AnswerShape(schema)
        self._rare: dict[str, list[Fault]] = {}
        self._rare_counts: Counter[str] = Counter()
        # Of each accepted row its address, its split, and its `source` or else its file.
        self._places: list[tuple[str, str | None, str]] = []

    @property
    def unlearned(self) -> Sequence[str]:
        """What rows say that is not learned, and was not accepted by an import."""
        return [*self.how.told.lost] if self._are_ours else self.how.told.unlearned

    def __iter__(self) -> Iterator[Fault]:
        with closing(Duplicates(near=self._near)) as duplicates:
            for fault in self._faults(duplicates):
                self.counts[fault.code] += 1
                self.warnings += fault.severity == "warning"
                yield fault

    def _faults(self, duplicates: Duplicates) -> Iterator[Fault]:
        for path in self.paths:
            split, read = split_of(path), self._read(path)
            # Tokenizing pays in batches; a row may be large.
            while items := list(islice(read, _ROWS_AT_ONCE if self._tokenizer else 1)):
                for item in items:
                    if isinstance(item, Conversation):
                        yield from self._row(item, split, path.name, duplicates)
                    else:
                        self.rejected += item.severity == "error"
                        yield item
                if self._tokenizer:
                    rows = [item for item in items if isinstance(item, Conversation)]
                    yield from self._token_faults(rows, self._tokenizer)
        self.accepted += len(self._places)
        self.rows = self.accepted + self.rejected
        yield from self._rare_faults()
        yield from self._systems.faults()
        yield from self._answers.faults()
        if self._systems.too_many:
            self.notes.append("there are too many different system prompts to compare them all")
        for matches in duplicates.near():
            yield self._repeat(matches[0].later, matches)
        if duplicates.cut_short:
            self.notes.append("there are too many near duplicates to compare all; see the closest")

    def _row(
        self, row: Conversation, split: str | None, file: str, duplicates: Duplicates
    ) -> Iterator[Fault]:
        source = sys.intern(row.tags.get("source") or file)
        self._places.append((row.origin, split, source))
        self._answers.see(row)
        first = duplicates.add(row)
        if first is not None:
            yield self._repeat(len(self._places) - 1, [Match(0, first, "exact", 1.0)])
        if row.turns[0].role == "system":
            self._systems.add(row.turns[0].content, row.origin)
        for number, lint, found in find_lints(self._lints, row.turns):
            place = f"turn {number + 1} ({row.turns[number].role})"
            yield from self._lint(lint, found, place, row.origin)

    def _lint(self, lint: Lint, found: str, place: str, origin: str) -> Iterator[Fault]:
        message = lint.message or f"found by the lint {lint.code!r}"
        fault = _warning(origin, lint.code, f"{message}: {excerpt(found)} in {place}", lint.hint)
        if lint.rare is None:
            yield fault
            return
        self._rare_counts[lint.code] += 1
        if self._rare_counts[lint.code] <= _RARE_KEPT:
            self._rare.setdefault(lint.code, []).append(fault)

    def _rare_faults(self) -> Iterator[Fault]:
        share = {lint.code: lint.rare for lint in self._lints}
        for code, kept in self._rare.items():
            if self._rare_counts[code] <= max(_RARE_ALWAYS, (share[code] or 0) * self.accepted):
                yield from kept
                left = self._rare_counts[code] - len(kept)
                if left:
                    self.notes.append(f"{count(left, 'more row')} with {code}")

    def _repeat(self, later: int, matches: Sequence[Match]) -> Fault:
        """The fault of a row that repeats others: a leak, if one is of another split."""
        origin, split, source = self._places[later]

        def leaks(match: Match) -> bool:
            return None not in (split, other := self._places[match.earlier][1]) and other != split

        match = next(filter(leaks, matches), matches[0])
        first, first_split, first_source = self._places[match.earlier]
        self.duplicate_sources[source, first_source] += 1
        code, said = "near-duplicate", f"is {int(100 * match.similarity)} % the same as {first}"
        if match.kind != "near":
            code, said = "duplicate", f"repeats {first}"
        if match.kind == "spelling":
            code, said = f"respelled-{code}", f"{said} but for case, spacing or system prompt"
        step = "exact-duplicates" if match.kind == "exact" else "near-duplicates"
        if not leaks(match):
            return _warning(origin, code, said, f"keep one of them (data clean --steps {step})")
        return _warning(
            origin,
            "near-leak" if match.kind == "near" else "leak",
            f"this {split} row {said}, a {first_split} row",
            f"keep it out of one of the two (data clean --steps {step})",
        )

    def _token_faults(
        self, rows: Sequence[Conversation], tokenizer: ChatTokenizer
    ) -> Iterator[Fault]:
        """What training with these settings would find: refused, too long, nothing to learn."""
        most, rendered = self._max_length, render_many(rows, tokenizer, self._learn)
        for row, parts in zip(rows, rendered, strict=True):
            if isinstance(parts, DataError):
                self.accepted -= 1
                self.rejected += 1
                hint = parts.hint or "give turns that this template accepts, or choose --template"
                yield fault_at(row.origin, "template-refuses", parts.message, hint)
                continue
            for what in tokenizer.unshown(row):
                remedy = tokenizer.remedy(what)
                fix = f"{remedy} shows it" if remedy else "it is left out, or part of the context"
                yield _warning(
                    row.origin, "not-shown", f"{what}: this template shows none of it", fix
                )
            learned = sum(int((part.weights > 0).sum()) for part in parts)
            longest = max((len(part.input_ids) for part in parts), default=0)
            if not learned:
                yield _warning(
                    row.origin,
                    "all-masked",
                    f"no token is learned with --learn {self._learn}",
                    "give an assistant turn a weight above 0, or drop the row",
                )
            elif longest > most:
                inside = sum(int((part.weights[:most] > 0).sum()) for part in parts)
                lost = f"{learned - inside} learned tokens" if inside else "all that is learned"
                yield _warning(
                    row.origin,
                    "too-long",
                    f"{longest:,} tokens, --max-length is {most:,}: cutting loses {lost}",
                    "raise --max-length, or train with --too-long split",
                )


def _warning(origin: str, code: str, message: str, hint: str) -> Fault:
    return fault_at(origin, code, message, hint, "warning")


def _control_lints(tokenizer: ChatTokenizer, lints: Sequence[Lint]) -> list[Lint]:
    known = {text for lint in lints for text in lint.texts}
    texts = [str(tokenizer.hf.convert_ids_to_tokens(i)) for i in sorted(tokenizer.control_ids)]
    own = tuple(t for t in texts if len(t) > 2 and not t.isalnum() and t not in known)
    hint = next((lint.hint for lint in lints if lint.code == "template-text"), _GIVE_TURNS)
    message = "a control token of this model stands inside the content"
    return [Lint("control-token", message, hint, texts=own)] if own else []


def split_of(path: Path) -> str | None:
    """train, valid or test where the file's name has such a word, or its folder is named so."""
    stem = path.name.split(".", 1)[0].lower()
    named = next((word for word in re.findall(r"[a-z]+", stem) if word in _NAMES), None)
    return _NAMES.get(named or path.absolute().parent.name.lower())


class SystemPrompts:
    """Count the system prompts of a data set, then ask which are spellings of one another."""

    def __init__(self) -> None:
        # Of each text the row where it stands first, and in how many rows.
        self._first: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self.too_many = False

    def add(self, text: str, origin: str) -> None:
        """The system prompt of one more row."""
        if text not in self._first and len(self._first) >= MAX_PROMPTS:
            self.too_many = True
            return
        self._first.setdefault(text, origin)
        self._rows[text] += 1

    def clusters(self) -> list[list[str]]:
        """Groups of spellings of one prompt, the most frequent first in each."""
        texts = [text for text, _ in self._rows.most_common()]
        pairs = {pair for block in _blocks(texts) for pair in combinations(block, 2)}
        same = (pair for pair in sorted(pairs) if _is_respelled(*(texts[n] for n in pair)))
        return [[texts[n] for n in group] for group in families(same)]

    def usual(self) -> dict[str, str]:
        """Each unusual spelling -> the most frequent one."""
        return {other: usual for usual, *others in self.clusters() for other in others}

    def faults(self) -> Iterator[Fault]:
        """A warning for each spelling but the most frequent one of its prompt."""
        for other, usual in self.usual().items():
            start = max(0, len(commonprefix([usual, other])) - 24)  # noqa: RUF071
            lead = "..." if start else ""
            spell = "spells" if self._rows[other] == 1 else "spell"
            yield _warning(
                self._first[other],
                "system-drift",
                f"{count(self._rows[other], 'row')} {spell} the system prompt "
                f"{excerpt(lead + other[start:])}, {count(self._rows[usual], 'row')} "
                f"(first {self._first[usual]}) {excerpt(lead + usual[start:])}",
                "write it one way (data clean --unify-system)",
            )


def _is_respelled(first: str, second: str) -> bool:
    """Whether two system prompts differ in spelling only: in a few words, each of them a slip."""
    a, b = (_WORD.findall(text.lower()) for text in (first, second))
    most = 2 + max(len(a), len(b)) // 10
    if not a or not b or abs(len(a) - len(b)) > most:
        return a == b
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    changes = [(a[a0:a1], b[b0:b1]) for what, a0, a1, b0, b1 in steps if what != "equal"]
    changed = sum(max(len(left), len(right)) for left, right in changes)
    return changed <= most and all(_is_slip(left, right) for left, right in changes)


def _is_slip(left: list[str], right: list[str]) -> bool:
    if any(char.isdigit() for word in (*left, *right) for char in word):
        return False
    if len(left) != len(right):
        return "".join(left) == "".join(right) or _LITTLE.issuperset((*left, *right))
    return all(
        _LITTLE.issuperset((a, b))
        or (min(len(a), len(b)) >= 3 and SequenceMatcher(None, a, b, False).ratio() >= _CLOSE)
        for a, b in zip(left, right, strict=True)
    )


def _blocks(texts: list[str]) -> list[list[int]]:
    """Prompts worth comparing: those that begin, end or are at their middle alike."""
    blocks: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        middle = len(words) // 2
        keys = (
            ("first in order", *sorted(words)[:3]),
            ("start", *words[:2]),
            ("end", *words[-2:]),
            (len(words), *words[middle : middle + 2]),
        )
        for key in keys:
            if len(blocks[key]) < _MAX_BLOCK:
                blocks[key].append(number)
    return list(blocks.values())
