"""Install scripts of a bundle: POSIX shell, no network, hashes checked before anything is done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

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


def install_scripts(model: str, path: str, kind: str, sums: Mapping[str, str]) -> dict[str, str]:
    """Script name -> text, for an artefact at ``path`` that a program has to be told about.

    ``model``: its name, lower case and without spaces; ``kind``: its format; ``sums`` maps every
    file of the bundle (relative path) to its SHA-256.
    """
    within = {p: s for p, s in sorted(sums.items()) if p == path or p.startswith(f"{path}/")}
    lines = "\n".join(f"{digest}  {file}" for file, digest in within.items())
    if kind == "ollama":
        head = _HEAD.format(what="Adds the model to Ollama.", sums=lines)
        body = _OLLAMA.format(
            folder=shlex.quote(f"./{path}"),
            name=shlex.quote(model),
            done=shlex.quote(f"try: ollama run {model}"),
        )
        return {"install-ollama.sh": head + body}
    if kind not in ("lmstudio", "mlx", "gguf"):
        return {}
    source, name = path, f"local/{model}"
    if kind == "lmstudio":
        _, publisher, listed, *_ = next(iter(within)).split("/")
        source, name = f"{path}/{publisher}/{listed}", f"{publisher}/{listed}"
    head = _HEAD.format(what="Copies the model to where LM Studio looks for models.", sums=lines)
    body = _LMSTUDIO.format(
        name=shlex.quote(name),
        source=shlex.quote(source) + ("/*" if kind != "gguf" else ""),
        done=shlex.quote("in LM Studio, look under My Models"),
    )
    return {"install-lmstudio.sh": head + body}
