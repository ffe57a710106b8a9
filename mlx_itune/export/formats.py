"""One door to every export: merge the adapter if there is one, convert, read back."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import Artifact, describe, read_json, refuse_same, workshop
from mlx_itune.export.fusing.fuse import FuseResult, Observe, fuse
from mlx_itune.export.gguf.plan import KINDS
from mlx_itune.export.gguf.to_gguf import export_gguf, require_exportable
from mlx_itune.export.gguf.to_gguf_lora import export_gguf_lora
from mlx_itune.export.gguf.tokenizer_check import TokenizerCheck
from mlx_itune.export.shipping.bundle import Part, write_bundle
from mlx_itune.export.shipping.to_lmstudio import export_lmstudio
from mlx_itune.export.shipping.to_mlx import export_mlx
from mlx_itune.export.shipping.to_ollama import common_system, export_ollama, read_generation
from mlx_itune.export.transformers.to_hf import export_hf
from mlx_itune.export.transformers.to_peft import export_peft
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.files import refuse_occupied, refuse_taken
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base

FORMATS = ("mlx", "gguf", "gguf-lora", "hf", "peft", "ollama", "lmstudio")
_FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Which types each format has.
TYPES: dict[str, tuple[str, ...]] = {
    "mlx": (),
    "gguf": KINDS,
    "gguf-lora": (),
    "hf": tuple(_FLOATS),
    "peft": (),
    "ollama": KINDS,
    "lmstudio": ("mlx", *KINDS),
}
_FILES = ("gguf", "gguf-lora")
_ADAPTERS = ("gguf-lora", "peft")
# Types that keep the codes of a quantized model; for others the merge need not find a grid.
_CODES = ("native", "lossless", "mlx")


@dataclass(frozen=True)
class Request:
    """What to export, and how.

    ``type``: one of TYPES[format], None for the format's own choice. ``name``: the model's name
    where it is shown, for LM Studio "publisher/model". ``separate``: of Ollama, the adapter beside
    its base. ``bundle``: with manifest, card, licences and scripts. ``merge``: further arguments of
    ``fusing.fuse.fuse``. ``conversations``: rows that tell the system prompt.
    """

    model: str
    adapter: Path | None
    format: str
    out: Path
    tokenizer: ChatTokenizer
    type: str | None = None
    name: str | None = None
    separate: bool = False
    bundle: bool = False
    merge: Mapping[str, Any] = field(default_factory=dict)
    conversations: Sequence[Sequence[Turn]] = ()
    compute: str = "auto"
    offline: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}", hint="one of " + ", ".join(FORMATS))
        known = TYPES[self.format]
        if self.type is not None and self.type not in known:
            near = closest(self.type, known)
            choice = f"did you mean {near}?" if near else "one of " + ", ".join(known)
            raise UsageError(
                f"--to {self.format} has no type {self.type!r}",
                hint=choice if known else "leave --type out",
            )
        needs_adapter = self.format in _ADAPTERS or self.separate
        if needs_adapter and self.adapter is None:
            raise UsageError("there is no adapter to export", hint="give --adapter")
        if self.name and self.format in _ADAPTERS and not self.bundle:
            raise UsageError(f"--name has no effect with --to {self.format}", hint="leave it out")
        if self.separate and self.format != "ollama":
            raise UsageError("--separate takes effect only with --to ollama")
        if self.format in _FILES and not self.bundle and self.out.suffix != ".gguf":
            raise UsageError(
                "a GGUF export is one file", where=str(self.out), hint=f"--out {self.out}.gguf"
            )


@dataclass(frozen=True)
class Exported:
    """What was written, what reading it back showed, the merge, and what users should know.

    tokenizer: of a GGUF file, what reading texts with its tokenizer showed.
    """

    artifacts: tuple[Artifact, ...]
    verify: Any
    fuse: FuseResult | None = None
    tokenizer: TokenizerCheck | None = None
    notes: tuple[str, ...] = ()


def export(request: Request, observe: Observe | None = None) -> Exported:
    """Write ``request.out`` whole or not at all, read back and compared with its source.

    Raises UsageError, ModelError (also where what was read back is not what was written),
    StorageError.
    """
    say = observe or (lambda _: None)
    source = base.resolve(request.model, offline=request.offline)
    _refuse_place(request, source)
    if request.bundle:
        return _bundled(request, source, say)
    return _WRITERS[request.format](request, source, say)


def _mlx(request: Request, source: Path, say: Observe) -> Exported:
    made = export_mlx(
        request.model,
        request.adapter,
        request.out,
        tokenizer=request.tokenizer,
        compute=request.compute,
        offline=request.offline,
        observe=say,
        **request.merge,
    )
    return Exported(made.artifacts, made.verify, made.fuse)


def _gguf(request: Request, source: Path, say: Observe) -> Exported:
    if request.adapter is not None:
        # Before the merge, which takes its time; and by the name of the base.
        require_exportable(source, request.type, request.tokenizer)
    with _merged(request, source, say) as (folder, fused):
        made = export_gguf(
            folder,
            request.out,
            kind=_kind(request, folder),
            tokenizer=request.tokenizer,
            name=request.name or _name(request, source),
            observe=say,
        )
    artifact = describe(request.out, "gguf")
    return Exported((artifact,), made.verify, fused, made.tokenizer, made.notes)


def _gguf_lora(request: Request, source: Path, say: Observe) -> Exported:
    assert request.adapter is not None
    made = export_gguf_lora(
        request.adapter, request.model, request.out, offline=request.offline, observe=say
    )
    note = "it belongs on the base it was trained on: export that with --to gguf"
    return Exported((describe(request.out, "gguf-lora"),), made.verify, notes=(note,))


def _hf(request: Request, source: Path, say: Observe) -> Exported:
    say("writing transformers' layout, and reading it back")
    made = export_hf(
        source,
        request.out,
        tokenizer=request.tokenizer,
        dtype=_FLOATS[request.type] if request.type else None,
        adapter_dir=request.adapter,
        base_id=request.name or base.public_id(request.model, source),
    )
    return Exported(made.artifacts, made.verify)


def _peft(request: Request, source: Path, say: Observe) -> Exported:
    assert request.adapter is not None
    say("writing PEFT's layout, and reading it back")
    made = export_peft(
        request.adapter,
        request.model,
        request.out,
        tokenizer=request.tokenizer,
        offline=request.offline,
    )
    return Exported(made.artifacts, made.verify, notes=made.notes)


def _ollama(request: Request, source: Path, say: Observe) -> Exported:
    name = request.name or _name(request, source)
    with workshop(request.out) as folder:
        model = replace(
            request,
            format="gguf",
            out=folder / "model.gguf",
            adapter=None if request.separate else request.adapter,
            separate=False,
            name=name,
        )
        made = _gguf(model, source, say)
        verify, beside = made.verify, None
        if request.separate:
            beside = folder / "adapter.gguf"
            inner = replace(request, format="gguf-lora", type=None, separate=False, out=beside)
            verify = {"model": verify, "adapter": _gguf_lora(inner, source, say).verify}
        done = export_ollama(
            folder / "model.gguf",
            request.out,
            tokenizer=request.tokenizer,
            config=read_json(source / "config.json"),
            generation=read_generation(source),
            adapter_file=beside,
            system=common_system(request.conversations) if request.conversations else None,
            move=True,
        )
    start = f"ollama create {_tag(name)} -f {shlex.quote(str(request.out / 'Modelfile'))}"
    notes = (*dict.fromkeys((*made.notes, *done.notes)), start)
    return Exported((done.artifact,), verify, made.fuse, made.tokenizer, notes)


def _lmstudio(request: Request, source: Path, say: Observe) -> Exported:
    publisher, model = _listed(request, source)
    kind = request.type or "mlx"
    with workshop(request.out) as folder:
        if kind == "mlx":
            inner = replace(request, format="mlx", type=None, out=folder / "mlx")
            made = _mlx(inner, source, say)
        else:
            inner = replace(request, format="gguf", out=folder / "model.gguf")
            made = _gguf(inner, source, say)
        done = export_lmstudio(inner.out, request.out, publisher=publisher, model=model)
    notes = (*made.notes, *done.notes)
    return Exported((done.artifact,), made.verify, made.fuse, made.tokenizer, notes)


_WRITERS: dict[str, Callable[[Request, Path, Observe], Exported]] = {
    "mlx": _mlx,
    "gguf": _gguf,
    "gguf-lora": _gguf_lora,
    "hf": _hf,
    "peft": _peft,
    "ollama": _ollama,
    "lmstudio": _lmstudio,
}


def _bundled(request: Request, source: Path, say: Observe) -> Exported:
    """The artefact in a folder with all that its users need."""
    name = _tag(request.name or _name(request, source))
    with workshop(request.out) as folder:
        inner = folder / (f"{name}.gguf" if request.format in _FILES else name)
        made = _WRITERS[request.format](replace(request, out=inner, bundle=False), source, say)
        papers = source if request.adapter is None else request.adapter
        record = read_json(papers / "provenance.json") if _has(papers) else {}
        record.setdefault("base", _base_of(request, source))
        if made.fuse is not None:
            record["fuse"] = vars(made.fuse)
        write_bundle(
            [Part(inner, request.format)],
            request.out,
            name=name,
            provenance=record,
            base_folder=source,
        )
    artifact = describe(request.out / inner.name, request.format)
    whole = describe(request.out, "bundle")
    notes = tuple(note.replace(str(inner), str(request.out / inner.name)) for note in made.notes)
    return replace(made, artifacts=(artifact, whole), notes=notes)


def _refuse_place(request: Request, source: Path) -> None:
    """Raise before the work where its result has no place."""
    place, is_file = request.out, request.format in _FILES and not request.bundle
    if request.format == "lmstudio" and not request.bundle:
        # Other models in that folder, the source for one, are left alone.
        place = Path(place, *_listed(request, source))
    for taken in (source, request.adapter):
        if taken is not None:
            refuse_same(taken, place)
    (refuse_taken if is_file else refuse_occupied)(place)


def _listed(request: Request, source: Path) -> tuple[str, str]:
    """Publisher and model, as LM Studio lists it."""
    publisher, _, model = (request.name or _name(request, source)).rpartition("/")
    return publisher or "mlx-itune", model


def _base_of(request: Request, source: Path) -> dict[str, str]:
    return {
        "id": base.public_id(request.model, source),
        "fingerprint": base.fingerprint(source),
    }


def _has(folder: Path) -> bool:
    return (folder / "provenance.json").is_file()


@contextlib.contextmanager
def _merged(
    request: Request, source: Path, say: Observe
) -> Iterator[tuple[Path, FuseResult | None]]:
    """A model directory that lives as long as the block: the source, or base + adapter."""
    if request.adapter is None:
        yield source, None
        return
    merge = dict(request.merge)
    kind = _kind(request, source)
    on_the_grid = adapters.load(request.adapter).config.kind in lora.ON_THE_GRID
    if kind not in _CODES and not on_the_grid and merge.get("bits") is None:
        # Rounded once, by the type that was asked for.
        merge |= {"way": merge.get("way", "float")} if kind != "f32" else {"bits": 32}
    with workshop(request.out) as folder:
        made = fuse(
            request.model,
            request.adapter,
            folder / "merged",
            tokenizer=request.tokenizer,
            compute=request.compute,
            offline=request.offline,
            observe=say,
            **merge,
        )
        yield folder / "merged", replace(made, out=str(request.out))


def _kind(request: Request, folder: Path) -> str:
    """The type asked for; else the model's own codes, or halves where it has none."""
    return request.type or ("native" if _has_codes(folder) else "f16")


def _has_codes(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("quantization"))


def _name(request: Request, source: Path) -> str:
    """What the model is called unless the user says."""
    stem = base.public_id(request.model, source).rpartition("/")[2]
    return f"{stem}-tuned" if request.adapter is not None else stem


def _tag(name: str) -> str:
    """A name that is also a file's and an Ollama model's."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.rpartition("/")[2].lower()).strip("-.") or "model"
