"""What to fuse or export, and how: one record for every format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import known
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.loading import base
from mlx_itune.model.loading.base import LoadedModel

DEFAULT_MAX_KL = 1e-3
# MLX's own codes of 2 to 5 bits and mxfp4 (for others, 8-bit blocks or floats); floats, blocks.
CODES = ("native", "lossless")
KINDS = (*CODES, "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
# The types that each format has.
TYPES: dict[str, tuple[str, ...]] = {
    "mlx": (),
    "gguf": KINDS,
    "gguf-lora": (),
    "hf": ("f32", "f16", "bf16"),
    "peft": (),
    "ollama": KINDS,
    "lmstudio": ("mlx", *KINDS),
}
FILES = ("gguf", "gguf-lora")
_ADAPTERS = ("gguf-lora", "peft")

Observe = Callable[[str], None]
# A model's mean score on a task; None where nothing can be scored.
Score = Callable[[LoadedModel], float | None]


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure a merge on, and others to compensate its rounding errors on. ``calibration``
    None leaves it to the merge to set rows aside; ``questions``: the rows behind ``measured``;
    ``source``: where they are from, for people."""

    measured: Sequence[TokenizedExample] = ()
    calibration: Sequence[TokenizedExample] | None = None
    questions: Sequence[Conversation] = ()
    source: str = ""


@dataclass(frozen=True)
class Request:
    """A model, an adapter to merge or to ship alone, and the form they are to have. ``way``,
    ``bits``: how to merge, None for the smallest result whose mean KL from base + adapter is within
    ``max_kl`` nats per learned token, on ``rows``; or, if ``allow_lossy``, the nearest. ``every``
    measures and scores all ways. ``type``: one of TYPES[format], None for its own choice. ``name``:
    where the model is shown. ``separate``: of Ollama, the adapter beside its base. ``schema``: of
    the answers, for a bundle."""

    model: str
    adapter: Path | None
    out: Path
    tokenizer: ChatTokenizer
    format: str = "mlx"
    rows: HeldOut = HeldOut()
    way: str | None = None
    bits: int | None = None
    max_kl: float = DEFAULT_MAX_KL
    allow_lossy: bool = False
    every: bool = False
    score: Score | None = None
    compute: str = "auto"
    type: str | None = None
    name: str | None = None
    separate: bool = False
    bundle: bool = False
    schema: Path | None = None
    allow_other_base: bool = False

    def __post_init__(self) -> None:
        types = TYPES[known("format", self.format, TYPES)]
        if self.type is not None and not types:
            raise UsageError(f"--to {self.format} has no types", hint="leave --type out")
        if self.type is not None:
            known(f"type of --to {self.format}", self.type, types)
        if (self.format in _ADAPTERS or self.separate) and self.adapter is None:
            raise UsageError("there is no adapter to export", hint="give --adapter")
        if self.name and self.format in _ADAPTERS and not self.bundle:
            raise UsageError(f"--name has no effect with --to {self.format}", hint="leave it out")
        if self.schema and not self.bundle:
            raise UsageError("--schema goes into a bundle", hint="give --bundle, too")
        if self.separate and self.format != "ollama":
            raise UsageError("--separate takes effect only with --to ollama")
        if self.is_file and self.out.suffix != ".gguf":
            what = "a GGUF export is one file"
            raise UsageError(what, where=str(self.out), hint=f"--out {self.out}.gguf")

    @property
    def is_file(self) -> bool:
        """Whether ``out`` is one file."""
        return self.format in FILES and not self.bundle

    @property
    def merges(self) -> bool:
        """Whether the adapter is merged, and what that loses is measured."""
        whole = self.format not in (*_ADAPTERS, "hf")
        return self.adapter is not None and whole and not self.separate

    @property
    def needs_rows(self) -> bool:
        """Whether rows are measured on, or tell the system prompt."""
        as_mlx = self.format == "mlx" or (self.format == "lmstudio" and self.type in (None, "mlx"))
        return as_mlx or self.merges or self.separate

    def trained(self) -> Adapter:
        """The adapter. Raises ModelError for another base's or template's, UsageError for none."""
        if self.adapter is None:
            raise UsageError("there is no adapter to export", hint="give --adapter")
        adapter = adapters.load(self.adapter, any_base=self.allow_other_base)
        adapter.require_template(self.tokenizer.name, self.tokenizer.template_sha256)
        return adapter

    def name_of(self, source: Path) -> str:
        """What the model is called: as the user says, else after its base."""
        stem = base.public_id(self.model, source).rpartition("/")[2]
        return self.name or (f"{stem}-tuned" if self.adapter is not None else stem)


def tag(name: str) -> str:
    """A name that is also a file's and an Ollama model's."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.rpartition("/")[2].lower()).strip("-.") or "model"
