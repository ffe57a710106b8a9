"""Install scripts of a bundle: POSIX shell, no network, hashes checked before anything is done."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

_HEAD = """\
#!/bin/sh
# {what}
# Checks the SHA-256 of what it installs first; opens no network connection of its own.
set -eu
cd -- "$(dirname -- "$0")"

if command -v sha256sum >/dev/null 2>&1; then
    check() {{ sha256sum -c -; }}
else
    check() {{ shasum -a 256 -c -; }}
fi
check >/dev/null <<'SUMS' || {{ echo "a file changed since the bundle was made" >&2; exit 1; }}
{sums}
SUMS
"""
_OLLAMA = """
command -v ollama >/dev/null 2>&1 || {{ echo "Ollama is not installed" >&2; exit 1; }}
cd {folder}
ollama create {name} -f Modelfile
echo {done}
"""
_LMSTUDIO = """
models=${{LMSTUDIO_MODELS:-"$HOME/.lmstudio/models"}}
target="$models"/{name}
if [ -e "$target" ]; then
    echo "$target exists already" >&2
    exit 1
fi
mkdir -p "$target"
cp -R -- {source} "$target"/
echo {done}
"""
_MODEL_NAME = re.compile(r"[^a-z0-9._-]+")


def install_scripts(
    name: str, parts: Sequence[Mapping[str, str]], sums: Mapping[str, str]
) -> dict[str, str]:
    """Script name -> text, for the parts that a program has to be told about.

    ``sums`` maps every file of the bundle (relative path) to its SHA-256.
    """
    found: dict[str, str] = {}
    for part in parts:
        path = part["path"]
        within = {p: s for p, s in sums.items() if p == path or p.startswith(f"{path}/")}
        if part["format"] == "ollama":
            model = model_name(name)
            body = _OLLAMA.format(
                folder=shlex.quote(f"./{path}"),
                name=shlex.quote(model),
                done=shlex.quote(f"try: ollama run {model}"),
            )
            found["install-ollama.sh"] = _head("Adds the model to Ollama.", within) + body
        if part["format"] in ("lmstudio", "mlx", "gguf") and "install-lmstudio.sh" not in found:
            body = _LMSTUDIO.format(
                name=shlex.quote(_lmstudio_name(name, part, within)),
                source=_source(part, within),
                done=shlex.quote("in LM Studio, look under My Models"),
            )
            found["install-lmstudio.sh"] = (
                _head("Copies the model to where LM Studio looks for models.", within) + body
            )
    return found


def model_name(name: str) -> str:
    """``name`` as Ollama and LM Studio take it: lower case, no spaces."""
    return _MODEL_NAME.sub("-", name.lower()).strip("-.") or "model"


def _head(what: str, sums: Mapping[str, str]) -> str:
    lines = "\n".join(f"{digest}  {path}" for path, digest in sorted(sums.items()))
    return _HEAD.format(what=what, sums=lines)


def _lmstudio_name(name: str, part: Mapping[str, str], within: Mapping[str, str]) -> str:
    if part["format"] == "lmstudio":
        publisher, model = next(iter(within)).split("/")[1:3]
        return f"{publisher}/{model}"
    return f"local/{model_name(name)}"


def _source(part: Mapping[str, str], within: Mapping[str, str]) -> str:
    path = part["path"]
    if part["format"] == "lmstudio":
        path = "/".join(next(iter(within)).split("/")[:3])
    return shlex.quote(path) + ("/*" if part["format"] != "gguf" else "")
