"""Text of strangers: in an error's line, in markup, as a regular expression."""

from __future__ import annotations

import pytest

from mlx_itune.kit import errors
from mlx_itune.kit.page import Html, element, escape, join
from mlx_itune.kit.patterns import compiled

KINDS = "ItuneError UsageError DataError ModelError StorageError DivergedError ResourceError"


def test_an_error_says_where_what_and_what_to_do() -> None:
    error = errors.DataError("no rows", where="train.jsonl:3", hint="add some")
    assert str(error) == "train.jsonl:3: no rows; add some"
    assert str(errors.ItuneError("Müller 日本 🦙")) == "Müller 日本 🦙"
    codes = [(getattr(errors, kind).exit_code, kind) for kind in KINDS.split()]
    assert codes == [*enumerate(KINDS.split(), 1)]


@pytest.mark.parametrize("hostile", ["\n", "\r", "\x1b[2J", "\x00", "\u202e", "\u2028", "\ud800"])
def test_hostile_characters_cannot_leave_the_line_or_repaint_the_terminal(hostile: str) -> None:
    line = str(errors.DataError(f"a{hostile}b", where=f"x{hostile}"))
    assert len(line.splitlines()) == 1
    assert hostile not in line
    line.encode("utf-8")


def test_closest_finds_typos_across_dash_and_underscore() -> None:
    assert errors.closest("learning_rat", ["learning-rate", "rank"]) == "learning-rate"
    assert errors.closest("Rnak", ["rank", "alpha"]) == "rank"
    assert errors.closest("zzz", ["rank"]) is None


def test_markup_is_escaped_once_and_strange_characters_become_visible() -> None:
    inner = element("b", {"title": '"&<', "hidden": True, "open": False, "x": 1.256}, "a < b")
    assert inner == '<b title="&quot;&amp;&lt;" hidden x="1.26">a &lt; b</b>'
    assert element("p", None, inner) == f"<p>{inner}</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert isinstance(join([inner]), Html)
    assert escape("a\x00b\u202ec\ud800\x1b[0m\r") == "a\\x00b\\u202ec\\ud800\\x1b[0m\\r"
    assert escape("é\n\t👩\u200d👧") == "é\n\t👩\u200d👧"


@pytest.mark.parametrize("pattern", ["x{999999999}", "(((a{99}){99}){99})", "(" * 40000, "[a{9"])
def test_a_pattern_that_would_take_for_ever_to_compile_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"elements|recursion|unterminated"):
        compiled(pattern)


@pytest.mark.parametrize("pattern", [r"[x{999999}]", r"\{999999}", r"x{0,999999}", r"(ab{3}){9}"])
def test_other_patterns_are_what_they_are(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern
