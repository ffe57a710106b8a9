"""Markup is made of text by escaping alone; the pages' own tests look at whole ones."""

from __future__ import annotations

from mlx_itune.kit.page import Html, element, escape, join


def test_text_is_escaped_once_and_strange_characters_become_visible() -> None:
    inner = element("b", {"title": '"&<', "hidden": True, "open": False, "x": 1.256}, "a < b")
    assert inner == '<b title="&quot;&amp;&lt;" hidden x="1.26">a &lt; b</b>'
    assert element("p", None, inner) == f"<p>{inner}</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert isinstance(join([inner]), Html)
    assert escape("a\x00b\u202ec\ud800\x1b[0m\r") == "a\\x00b\\u202ec\\ud800\\x1b[0m\\r"
    assert escape("é\n\t👩\u200d👧") == "é\n\t👩\u200d👧"
