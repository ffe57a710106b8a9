"""Patterns of strangers: whatever would take for ever to compile is refused at once."""

from __future__ import annotations

import pytest

from mlx_itune.kit.patterns import compiled


@pytest.mark.parametrize("pattern", ["x{999999999}", "(((a{99}){99}){99})", "(" * 40000, "[a{9"])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"elements|recursion|unterminated"):
        compiled(pattern)


@pytest.mark.parametrize("pattern", [r"[x{999999}]", r"\{999999}", r"x{0,999999}", r"(ab{3}){9}"])
def test_other_patterns_are_what_they_are(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern
