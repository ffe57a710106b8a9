"""Errors: one line, one exit code per kind."""

import pytest

from mlx_itune.kit import errors


def test_the_line_says_where_what_and_what_to_do():
    error = errors.DataError("no rows", where="train.jsonl:3", hint="add some")
    assert str(error) == "train.jsonl:3: no rows; add some"
    assert str(errors.ItuneError("plain")) == "plain"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ItuneError, 1),
        (errors.UsageError, 2),
        (errors.DataError, 3),
        (errors.ModelError, 4),
        (errors.StorageError, 5),
        (errors.DivergedError, 6),
        (errors.ResourceError, 7),
    ],
)
def test_every_kind_has_its_exit_code(kind, code):
    assert kind.exit_code == code
    assert issubclass(kind, errors.ItuneError)


@pytest.mark.parametrize("hostile", ["\n", "\r", "\x1b[2J", "\x00", "\u202e", "\u2028", "\ud800"])
def test_hostile_characters_cannot_leave_the_line_or_repaint_the_terminal(hostile):
    line = str(errors.DataError(f"a{hostile}b", where=f"x{hostile}"))
    assert len(line.splitlines()) == 1
    assert hostile not in line
    line.encode("utf-8")


def test_ordinary_text_of_any_script_stays_readable():
    assert str(errors.DataError("Müller 日本 🦙")) == "Müller 日本 🦙"


def test_closest_finds_typos_across_dash_and_underscore():
    assert errors.closest("learning_rat", ["learning-rate", "rank"]) == "learning-rate"
    assert errors.closest("Rnak", ["rank", "alpha"]) == "rank"
    assert errors.closest("zzz", ["rank"]) is None
