"""The page at `/`: two of the models that are served, asked the same thing side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_itune.kit.page import Html, element, join, page, read_style

_SCRIPT = Path(__file__).with_suffix(".js")
_SIDES = ("left", "right")


def chat_page(models: Sequence[str], base: str | None) -> str:
    """The page for `models`, the default first; the base's answers stand beside those of the
    default where both are served."""
    left, right = (models[0], "") if base in (None, models[0]) else (str(base), models[0])
    body = join(
        [
            _settings(),
            element(
                "div",
                {"class": "panes"},
                *(
                    _pane(side, chosen, models)
                    for side, chosen in zip(_SIDES, (left, right), strict=True)
                ),
            ),
            _composer(),
        ]
    )
    # Nothing in it ends a script early: it is a file of ours.
    script = _SCRIPT.read_text(encoding="utf-8")
    told = "Nothing leaves this machine; the conversation is gone when the page is."
    return page("Ask", body, subtitle=told, style=read_style(__file__), script=script)


def _settings() -> Html:
    """What every question is asked with."""
    number: dict[str, str | float | bool] = {"type": "number", "min": 0}
    return element(
        "details",
        {"id": "settings"},
        element("summary", None, "Settings"),
        element(
            "div",
            {"class": "settings"},
            _labelled(
                "System prompt",
                "textarea",
                {"id": "system", "rows": 2, "placeholder": "as in training"},
            ),
            _labelled(
                "Temperature",
                "input",
                {**number, "id": "temperature", "max": 2, "step": "0.1", "value": "0"},
            ),
            _labelled(
                "Longest answer, tokens",
                "input",
                {**number, "id": "max-tokens", "min": 1, "step": 1, "value": "512"},
            ),
        ),
    )


def _pane(side: str, chosen: str, models: Sequence[str]) -> Html:
    nobody = (
        []
        if side == "left"
        else [element("option", {"value": "", "selected": not chosen}, "nobody")]
    )
    options = [
        element("option", {"value": name, "selected": name == chosen}, name) for name in models
    ]
    return element(
        "section",
        {"class": "pane", "id": side, "aria-label": f"{side} model"},
        _labelled("Model", "select", {"id": f"{side}-model"}, *options, *nobody),
        element("div", {"id": f"{side}-log", "class": "log", "role": "log", "tabindex": 0}),
        element("p", {"id": f"{side}-status", "class": "status", "role": "status"}, "ready"),
    )


def _composer() -> Html:
    button = "button"
    return element(
        "form",
        {"id": "composer"},
        _labelled(
            "Question (Enter sends, Shift+Enter begins a line, Esc stops)",
            "textarea",
            {"id": "prompt", "rows": 3, "autofocus": True},
        ),
        element(
            "div",
            {"class": "buttons"},
            element(button, {"id": "send", "type": "submit"}, "Send"),
            element(button, {"id": "stop", "type": "button", "disabled": True}, "Stop"),
            element(button, {"id": "clear", "type": "button"}, "New conversation"),
        ),
    )


def _labelled(
    label: str, tag: str, attributes: dict[str, str | float | bool], *inner: Html
) -> Html:
    control = element(tag, attributes, *inner)
    return element("label", None, element("span", None, label), control)
