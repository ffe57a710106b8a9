"""The page at `/`: models that are served, asked the same thing side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.kit.page import Html, element, join, page, read_style

_SCRIPT = Path(__file__).with_suffix(".js")


STYLE, SCRIPT = read_style(__file__), _SCRIPT.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Pane:
    """One of those that answer: of `models`, the one that is chosen at first ("": nobody), behind
    the server `url` (the page's own unless said)."""

    side: str
    chosen: str
    models: Sequence[str]
    url: str = ""


def chat_page(models: Sequence[str], base: str | None) -> str:
    """The page for `models`, the default first; the base's answers stand beside those of the
    default where both are served."""
    left, right = (models[0], "") if base in (None, models[0]) else (str(base), models[0])
    body = chat_body([Pane("left", left, models), Pane("right", right, models)])
    told = "Nothing leaves this machine; the conversation is gone when the page is."
    return page("Ask", body, subtitle=told, style=STYLE, script=SCRIPT)


def chat_body(panes: Sequence[Pane], schema: str = "") -> Html:
    """Settings, panes side by side and a question for all, for a page with `STYLE` and `SCRIPT`.
    schema: what stands in the field of the JSON Schema at first."""
    shown = (_pane(pane, optional=pane is not panes[0]) for pane in panes)
    return join([_settings(schema), element("div", {"class": "panes"}, *shown), _composer()])


def _settings(schema: str) -> Html:
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
            _labelled(
                "JSON Schema that every answer is held to",
                "textarea",
                {"id": "schema", "rows": 2, "placeholder": "none"},
                schema,
            ),
        ),
    )


def _pane(pane: Pane, *, optional: bool) -> Html:
    side, chosen = pane.side, pane.chosen
    nobody = [element("option", {"value": "", "selected": not chosen}, "nobody")]
    options = [
        element("option", {"value": name, "selected": name == chosen}, name) for name in pane.models
    ]
    return element(
        "section",
        {"class": "pane", "id": side, "data-url": pane.url, "aria-label": f"{side} model"},
        _labelled("Model", "select", {"id": f"{side}-model"}, *options, *nobody[: int(optional)]),
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


def _labelled(label: str, tag: str, attributes: dict[str, str | float | bool], *inner: str) -> Html:
    control = element(tag, attributes, *inner)
    return element("label", None, element("span", None, label), control)
