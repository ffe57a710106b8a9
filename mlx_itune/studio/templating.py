"""How a page is made: a template, all in it escaped, and a policy that names what may run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.responses import Response

from mlx_itune.kit import page as kit_page
from mlx_itune.kit.page import Html, escape, hash_of, read_style
from mlx_itune.kit.wording import number, percent, size

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPT = Path(__file__).with_name("studio.js").read_text(encoding="utf-8")
_STYLE = read_style(kit_page.__file__) + read_style(str(Path(__file__).with_name("studio.css")))


def _finalize(value: Any) -> Any:
    """Every text as the kit escapes it: what could change how the rest reads becomes visible."""
    return value if hasattr(value, "__html__") else escape("" if value is None else str(value))


class Templates:
    """The templates, with what they may call. folder: its name, which stands on every page."""

    def __init__(self, folder: str, **tools: Any) -> None:
        self._folder = folder
        loader = jinja2.FileSystemLoader(_TEMPLATES)
        self._templates = jinja2.Environment(
            loader=loader, autoescape=True, finalize=_finalize, undefined=jinja2.StrictUndefined
        )
        words = {"size": size, "number": number, "percent": percent, "slug": _slug}
        self._templates.globals.update(words, query=urlencode, **tools)

    def render(self, template: str, **about: Any) -> Html:
        return Html(self._templates.get_template(template).render(**about))

    def page(
        self,
        template: str,
        title: str,
        styles: Sequence[str] = (),
        *,
        scripts: Sequence[str] = (),
        origins: Sequence[str] = (),
        status: int = 200,
        **about: Any,
    ) -> Response:
        """A page under the studio's head; its policy names each inline text by its hash."""
        style, every = "".join([_STYLE, *styles]), [_SCRIPT, *scripts]
        asked = " ".join(dict.fromkeys(["'self'", *origins]))
        policy = (
            f"default-src 'none'; style-src {hash_of(style)}; connect-src {asked}; "
            f"script-src {' '.join(map(hash_of, every))}; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        text = self.render(
            template,
            **{"command": "", **about},
            title=title,
            style=Html(style),
            scripts=[Html(each) for each in every],
            folder=self._folder,
        )
        headers = {"Content-Security-Policy": policy}
        return Response(
            text.encode("utf-8", errors="replace"), status, headers, "text/html; charset=utf-8"
        )


def live_part(text: str, goes_on: bool) -> Response:
    """A part of a page that is read again while it goes on."""
    headers = {"X-Running": str(int(goes_on))}
    return Response(
        text.encode("utf-8", errors="replace"), 200, headers, "text/html; charset=utf-8"
    )


def _slug(name: str) -> str:
    return name.replace(" ", "/")
