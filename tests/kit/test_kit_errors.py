"""Errors: one line, one exit code per kind."""

import pytest

from mlx_itune.kit import errors

KINDS = "ItuneError UsageError DataError ModelError StorageError DivergedError ResourceError"


def test_the_line_says_where_what_and_what_to_do():
    error = errors.DataError("no rows", where="train.jsonl:3", hint="add some")
    assert str(error) == "train.jsonl:3: no rows; add some"
    assert str(errors.ItuneError("Müller 日本 🦙")) == "Müller 日本 🦙"
    codes = [(getattr(errors, kind).exit_code, kind) for kind in KINDS.split()]
    assert codes == [*enumerate(KINDS.split(), 1)]


@pytest.mark.parametrize("hostile", ["\n", "\r", "\x1b[2J", "\x00", "\u202e", "\u2028", "\ud800"])
def test_hostile_characters_cannot_leave_the_line_or_repaint_the_terminal(hostile):
    line = str(errors.DataError(f"a{hostile}b", where=f"x{hostile}"))
    assert len(line.splitlines()) == 1
    assert hostile not in line
    line.encode("utf-8")


def test_closest_finds_typos_across_dash_and_underscore():
    assert errors.closest("learning_rat", ["learning-rate", "rank"]) == "learning-rate"
    assert errors.closest("Rnak", ["rank", "alpha"]) == "rank"
    assert errors.closest("zzz", ["rank"]) is None
