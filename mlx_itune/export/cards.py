"""The model cards (README.md) and install scripts that travel with what is shipped."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlx_itune.kit.errors import one_line

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    trim_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {
    "line": one_line,
    "quoted": shlex.quote,
    "number": "{:,}".format,
    "tenths": "{:,.1f}".format,
    "share": "{:.2%}".format,
}
_LIBRARIES = {"mlx": "mlx", "hf": "transformers", "peft": "peft"}
_LMSTUDIO = {"lmstudio": "LM Studio"}
# Format -> ways to run it -> heading.
_WAYS: dict[str, dict[str, str]] = {
    "mlx": {"mlx": "Python (mlx-lm)", "swift": "Swift (mlx-swift-lm 3)", **_LMSTUDIO},
    "gguf": {"gguf": "llama.cpp", **_LMSTUDIO},
    "gguf-lora": {"gguf-lora": "llama.cpp, base and adapter"},
    "hf": {"hf": "transformers"},
    "peft": {"peft": "PEFT"},
    "ollama": {"ollama": "Ollama"},
    "lmstudio": _LMSTUDIO,
}


def card(kind: str, base: str, title: str, **about: Any) -> str:
    """Of a directory for mlx, hf or peft, with ``licence``, ``fused`` (as in provenance.json),
    ``measured`` lines, ``notes``; or of a bundle: its manifest ``head``, the model's ``name``, what
    it has besides (``extra``)."""
    told = {
        "licence": None,
        "fused": None,
        "measured": (),
        "notes": (),
        "name": "",
        "extra": (),
        **about,
    }
    template = _TEMPLATES.get_template("card.md.jinja")
    names = {"kind": kind, "base": base, "title": title, "libraries": _LIBRARIES, "ways": _WAYS}
    return template.render(told, **names)


def check_script(path: str, kind: str) -> str:
    """What compares the answer of the model at ``path`` (mlx or gguf) with vector.json."""
    return _TEMPLATES.get_template("check.py.jinja").render(path=path, kind=kind)


def install_script(kind: str, **about: Any) -> str:
    """What adds ``path`` to Ollama, or copies ``source`` to LM Studio, under ``name``, once the
    SHA-256 of its ``files`` are right."""
    return _TEMPLATES.get_template("install.sh.jinja").render(about, kind=kind)
