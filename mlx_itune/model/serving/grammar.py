"""Answers held to a JSON Schema: llguidance says which tokens may come next, MLX masks the rest.

Whitespace is bounded, one space or one indented line at a place, so that every token is progress.
Where few tokens are left, nothing new is opened, and at last the shortest way to an end is taken.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import DataError, ModelError, panics_as
from mlx_itune.model.serving.key_order import any_order

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# As `json.dumps` writes it, with and without `indent`, and compactly.
_HOW: Any = {"whitespace_pattern": r"(\n {0,16}| )", "json_allowed_escapes": 'nrbtf\\"u'}
# Under these keys are schemas by name, or in a list, or one.
_NAMED = ("$defs", "definitions", "properties", "patternProperties")
_LISTED = ("anyOf", "allOf", "oneOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames")
# No 29th of February and no second 60, which are not of every year and minute.
_DAY = "^[0-9]{4}-(0[13-9]|1[0-2]|02-([01]|2[0-8]))"
_STRICT = {
    "date": [_DAY],
    # No part of an address is longer than its protocol has it (RFC 5321, 4.5.3.1).
    "email": ["^[^@]{1,64}@[^@]{1,63}$"],
    "time": ["^[0-9]{2}:[0-9]{2}:[0-5]"],
    "date-time": [_DAY, "^[^ ]{10}.[0-9]{2}:[0-9]{2}:[0-5]"],
}
# The characters that the shortest way tries, group by group: what closes comes first, and of the
# others what it has not used yet, so that a pattern comes to its end, too.
_TEXT = "0a@:-./" + "".join(sorted(set(map(chr, range(33, 127))) - set('0a@:-./"{}[],')))
_OUTSIDE = ("}]", ",:", '"', _TEXT, "[{")
_INSIDE = ('"', _TEXT + "}],[{")
# No literal begins with it: where it is allowed, a string is open.
_IN_STRINGS = "x"
_LONGEST_WAY = 600
# Tokens kept back: for what a single token may open, and for what ends it.
_LEAST_RESERVE, _SPARE = 32, 4

Ids = NDArray[np.int64]
Bits = NDArray[np.bool_]


class Tokens:
    """A vocabulary as bytes, as llguidance walks it. backend: a `tokenizers.Tokenizer`; width: the
    model's logits; ends: tokens that end an answer. Raises ModelError where its bytes are not
    known."""

    def __init__(self, backend: Any, width: int, ends: Iterable[int]) -> None:
        from llguidance import LLTokenizer

        try:
            with panics_as(ModelError, "answers cannot be held to a schema", "tokenizer"):
                self.ll = LLTokenizer(backend.to_str(), n_vocab=width, eos_token=sorted(ends))
        except ValueError as error:
            raise ModelError(f"answers cannot be held to a schema: {error}") from error
        self.width, self.end = width, min(ends)
        size = min(width, backend.get_vocab_size(with_added_tokens=True))
        self._bytes = [self.ll.decode_bytes([i]) for i in range(size)]

    def bits(self, mask: bytes) -> Bits:
        """(width,) of packed ones."""
        packed = np.frombuffer(mask, np.uint8)
        return np.unpackbits(packed, count=self.width, bitorder="little").view(np.bool_)

    @cached_property
    def ascii(self) -> dict[str, int]:
        """The tokens that are one printable character."""
        single = {chr(text[0]): i for i, text in enumerate(self._bytes) if len(text) == 1}
        return {char: i for char, i in single.items() if char.isascii() and char.isprintable()}

    @cached_property
    def opening(self) -> tuple[Bits, Bits]:
        """Which tokens have a character that can open something: outside of strings, and inside."""
        found = np.zeros((2, self.width), np.bool_)
        for i, text in enumerate(self._bytes):
            found[0, i] = any(char in text for char in b'{[,:"')
            found[1, i] = any(char in text for char in b'"\\')
        return found[0], found[1]

    def groups(self, groups: Sequence[str]) -> list[Ids]:
        """The tokens of single characters, group by group."""
        return [
            np.array([self.ascii[char] for char in group if char in self.ascii], np.int64)
            for group in groups
        ]


class Grammar:
    """A JSON Schema (2020-12) ready to hold answers to. Raises DataError, with the path of the
    keyword, for one that cannot be kept to."""

    def __init__(
        self, tokens: Tokens, schema: Mapping[str, Any], *, patterns: Sequence[str] | None = None
    ) -> None:
        from llguidance import LLMatcher

        if fault := _fault(schema):
            raise DataError(f"{_path(schema, fault)}: {fault}")
        text = json.dumps(schema)
        strict = _strict(schema)
        lark = any_order(strict, _HOW)
        grammar = (
            LLMatcher.grammar_from_lark(lark)
            if lark
            else LLMatcher.grammar_from_json_schema(json.dumps(strict), overrides=_HOW)
        )
        self.tokens = tokens
        self.matcher = LLMatcher(tokens.ll, grammar, log_level=0)
        if self.matcher.is_error():
            raise DataError(f"#: {self.matcher.get_error().splitlines()[0]}")
        self._patterns = dict.fromkeys(_patterns(schema)) if patterns is None else patterns
        # Of what a single token may open.
        self.reserve = _LEAST_RESERVE + len(text) // 4
        self._outside, self._inside = tokens.groups(_OUTSIDE), tokens.groups(_INSIDE)

    def is_inside(self, allowed: Bits) -> bool:
        """Whether a string is open where these tokens are allowed."""
        return bool(allowed[self.tokens.ascii.get(_IN_STRINGS, 0)])

    def shortest(self, matcher: Any) -> list[int] | None:
        """Tokens that end an answer, the end token too: a short way, not always the shortest. None
        where it finds none."""
        way, tokens, used = matcher.deep_copy(), list[int](), Counter[int]()
        while not way.is_accepting():
            found = way.compute_ff_tokens() or self._next(way, used)
            if not found or len(tokens) > _LONGEST_WAY:
                return None
            used.update(found)
            tokens += found
            if not way.consume_tokens(found):
                return None
        return [*tokens, self.tokens.end]

    def _next(self, way: Any, used: Counter[int]) -> list[int]:
        allowed = self.tokens.bits(way.compute_bitmask())
        is_inside = self.is_inside(allowed)
        groups = self._inside if is_inside else self._outside
        if is_inside and not any(allowed[groups[0]]):
            # A pattern that may begin anywhere is not met by chance.
            for ending in self._endings:
                if way.validate_tokens(ending) == len(ending):
                    return ending
        found = next((ids for group in groups if len(ids := group[allowed[group]])), None)
        return [] if found is None else [min(found.tolist(), key=lambda i: used[i])]

    @cached_property
    def _endings(self) -> list[list[int]]:
        """What ends a string so that it matches a pattern of the schema: the ends of an example of
        each, the quotation mark too."""
        found = []
        for pattern in self._patterns:
            core = pattern.removeprefix("^").removesuffix("$")
            with contextlib.suppress(DataError):
                schema = {"type": "string", "pattern": f"^(?:{core})$"}
                alone = Grammar(self.tokens, schema, patterns=())
                example = (alone.shortest(alone.matcher) or [])[:-1]
                # The first is the quotation mark that opens it.
                found += [example[n:] for n in range(1, len(example))]
        return found


class Guide:
    """What holds one answer to a grammar: a processor of logits (1, V) that follows its tokens.

    after: tokens behind which the grammar begins; max_tokens: the end token included. is_whole:
    whether it holds all of the answer; is_shortened: whether tokens ran short; fault: why it had to
    give up.
    """

    def __init__(self, grammar: Grammar, max_tokens: int, after: Sequence[int] = ()) -> None:
        self._grammar, self._matcher = grammar, grammar.matcher.deep_copy()
        self._left, self._reserve = max_tokens, min(grammar.reserve, max_tokens // 4)
        self._after, self._before = tuple(after), list[int]()
        self.is_whole = not after
        self._way: list[int] | None = []
        self._is_begun = False
        self.is_shortened = False
        self.fault: str | None = None

    def __call__(self, ids: Any, logits: Any) -> Any:
        """logits with minus infinity for what may not come after `ids` (T,)."""
        last, compute = ids[-1], cast("Callable[[Any], None]", mx.async_eval)
        # The last token is known before these logits are: what follows it is found out meanwhile.
        compute(last)
        compute(logits)
        if self._is_begun:
            self._take(int(last.item()))
        self._is_begun = True
        if self._after:
            return logits
        allowed = mx.array(self._allowed())
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))

    def _take(self, token: int) -> None:
        self._left -= 1
        if self._after:
            self._before = [*self._before, token][-len(self._after) :]
            if tuple(self._before) == self._after:
                self._after = ()
        elif not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            self.fault = self._matcher.get_error().splitlines()[0]

    def _allowed(self) -> Bits:
        tokens = self._grammar.tokens
        only = np.zeros(tokens.width, np.bool_)
        if self.fault or self._matcher.is_stopped():
            only[tokens.end] = True
            return only
        allowed = tokens.bits(self._matcher.compute_bitmask())
        way = self._way_on()
        if way is None or self._left > len(way) + self._reserve:
            return allowed
        self.is_shortened = True
        if self._left > len(way) + _SPARE:
            only |= allowed & ~tokens.opening[self._grammar.is_inside(allowed)]
        only[way[0]] = True
        return only

    def _way_on(self) -> list[int] | None:
        """The way to the end from here: the last one or the rest of it, where that still holds."""
        way = self._way or []
        for rest in (way[1:], way):
            if rest and self._matcher.validate_tokens(rest) == len(rest):
                self._way = rest
                return rest
        self._way = self._grammar.shortest(self._matcher)
        return self._way


def _fault(schema: Any) -> str | None:
    """What llguidance has against a schema."""
    from llguidance import LLMatcher

    if isinstance(schema, bool):
        return None
    if not isinstance(schema, Mapping):
        return "a schema is an object, true or false"
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_HOW)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split())[:300] if is_error else None


def _strict(schema: Mapping[str, Any]) -> Any:
    """The schema without the dates and seconds that its formats let in, and few calendars have."""
    whole = copy.deepcopy(dict(schema))
    parts: list[Any] = [whole]
    while parts:
        part = parts.pop()
        parts += [holder[key] for _, holder, key in _parts(part)]
        if isinstance(part, dict) and (more := _STRICT.get(str(part.get("format")))):
            part["allOf"] = [*part.get("allOf", ()), *({"pattern": each} for each in more)]
    return whole


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(pattern := value.get("pattern"), str):
            yield pattern
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _patterns(each)


def _path(schema: Mapping[str, Any], fault: str) -> str:
    """Where the fault of a schema is: the innermost part without which it is gone."""
    at, whole = "#", copy.deepcopy(schema)
    part: Any = whole
    while True:
        for name, holder, key in _parts(part):
            # Where one of several is enough, nothing else may be.
            stand_in = {"type": "null"} if name.startswith(("anyOf", "oneOf")) else {}
            kept, holder[key] = holder[key], stand_in
            is_there = _fault(whole) != fault
            holder[key] = kept
            if is_there:
                at, part = f"{at}/{name}", kept
                break
        else:
            return at


def _parts(schema: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, holder, key) of the schemas in a schema."""
    if not isinstance(schema, dict):
        return
    for name in (*_NAMED, *_LISTED):
        held = schema.get(name)
        keys = (
            held if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
        )
        for key in keys:
            told = str(key).replace("~", "~0").replace("/", "~1")
            yield f"{name}/{told}", held, key
    for name in _ONE:
        if name in schema:
            yield name, schema, name
