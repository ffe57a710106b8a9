"""One door to every export: merge the adapter if there is one, convert, read back."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlx.utils import tree_flatten

from mlx_itune.dataset.importing.inputs import licence_in_card
from mlx_itune.export.artifact import (
    Exported,
    describe,
    quantization_config,
    refuse_same,
    sealed,
    write_model,
)
from mlx_itune.export.bundle import Part, seal_bundle
from mlx_itune.export.cards import card
from mlx_itune.export.contract import write_contract
from mlx_itune.export.fusing.fidelity import Verification, verify
from mlx_itune.export.fusing.fuse import FuseResult, fuse
from mlx_itune.export.fusing.merge import Way, merge
from mlx_itune.export.gguf.lora import export_gguf_lora
from mlx_itune.export.gguf.to_gguf import export_gguf, own_kind, require_exportable
from mlx_itune.export.gguf.tokenizer import tokenizer_limits
from mlx_itune.export.ollama import (
    MODELFILE,
    common_system,
    go_template,
    modelfile,
    parameters_of,
    stop_texts,
)
from mlx_itune.export.request import CODES, FILES, Observe, Request, tag
from mlx_itune.export.transformers.to_hf import export_hf
from mlx_itune.export.transformers.to_peft import export_peft
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.files import refuse_occupied, refuse_taken, staged_directory
from mlx_itune.kit.json_files import read_object
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base

# mlx-lm's kernels round otherwise than the float32 path they are compared with.
_READ_BACK_MAX_KL = 1e-2
# LM Studio lists a folder by two names; both are one path component.
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export(request: Request, observe: Observe = lambda _: None) -> Exported:
    """Write ``request.out`` whole or not at all, read back and compared with its source. Raises
    UsageError, ModelError (also where what was read back is not what was written), StorageError."""
    source = base.resolve(request.model)
    _refuse_place(request, source)
    write = _bundled if request.bundle else _WRITERS[request.format]
    return write(request, source, observe)


def _mlx(request: Request, source: Path, say: Observe) -> Exported:
    if request.adapter is not None:
        checked: list[Verification] = []

        def read_back(stage: Path, reference: base.LoadedModel, kl_mean: float) -> None:
            limit = max(_READ_BACK_MAX_KL, 10 * kl_mean)
            checked.append(verify(stage, reference, request.rows.measured, max_kl=limit))

        fused = fuse(request, say, read_back)
        return Exported((describe(request.out, "mlx"),), checked[-1], fused)
    raw, config = base.read(source)
    tensors = dict(tree_flatten(raw.parameters()))
    # No delta and the base's own grid: every tensor as it is.
    _, layers = merge(raw, {}, Way("requantized", 0))
    with sealed(request.out, sum(t.nbytes for t in tensors.values()), "the model") as stage:
        quantization = quantization_config(config.get("quantization"), layers)
        write_model(stage, source, tensors, quantization, request.tokenizer)
        reference = base.load(request.model, compute=request.compute)
        own, papers = source / "README.md", source / adapters.PROVENANCE
        new = card("mlx", reference.id, reference.id).encode()
        (stage / own.name).write_bytes(own.read_bytes() if own.is_file() else new)
        if papers.is_file():
            (stage / papers.name).write_bytes(papers.read_bytes())
        say("reading it back with mlx-lm")
        rows = request.rows.measured
        found = verify(stage, reference, rows, max_kl=_READ_BACK_MAX_KL, expected=tensors)
    return Exported((describe(request.out, "mlx"),), found)


def _gguf(request: Request, source: Path, say: Observe) -> Exported:
    if request.adapter is None:
        return export_gguf(request, source, say)
    # Before the merge, which takes its time; and by the name of the base.
    require_exportable(source, request.type, request.tokenizer)
    kind, merging = request.type or own_kind(source), request
    on_the_grid = adapters.load(request.adapter).config.kind in lora.ON_THE_GRID
    if kind not in CODES and not on_the_grid and request.bits is None:
        # Rounded once, by the type that was asked for.
        float_way = request.way or "float"
        merging = replace(request, bits=32) if kind == "f32" else replace(request, way=float_way)
    fused: list[FuseResult] = []

    def merged(folder: Path) -> None:
        fused.append(fuse(replace(merging, format="mlx", type=None, out=folder), say))

    made = export_gguf(request, source, say, merged)
    return replace(made, fuse=replace(fused[0], out=str(request.out)))


def _ollama(request: Request, source: Path, say: Observe) -> Exported:
    name, tokenizer = request.name_of(source), request.tokenizer
    template, notes = None, tokenizer_limits(tokenizer)
    try:
        template = go_template(tokenizer)
    except ModelError as error:
        notes = (
            f"no TEMPLATE was written: {error.message}; Ollama guesses one by the file's own, "
            "compare its answers before shipping",
            *notes,
        )
    with staged_directory(request.out) as stage:
        whole = None if request.separate else request.adapter
        inner = replace(request, adapter=whole, separate=False, name=name)
        made = _gguf(replace(inner, format="gguf", out=stage / "model.gguf"), source, say)
        verified = made.verify
        if request.separate:
            beside = replace(request, out=stage / "adapter.gguf")
            verified = {"model": verified, "adapter": export_gguf_lora(beside, source, say).verify}
        text = modelfile(
            "model.gguf",
            adapter="adapter.gguf" if request.separate else None,
            template=template,
            system=common_system(request.rows.questions),
            stops=stop_texts(tokenizer),
            parameters=parameters_of(source),
            licence=licence_in_card(source),
        )
        (stage / MODELFILE).write_text(text, encoding="utf-8")
    start = f"ollama create {tag(name)} -f {shlex.quote(str(request.out / MODELFILE))}"
    told = (*dict.fromkeys((*made.notes, *notes)), start)
    return _placed(replace(made, verify=verified, notes=told), request.out, "ollama")


def _lmstudio(request: Request, source: Path, say: Observe) -> Exported:
    publisher, model = _listed(request, source)
    for what, name in (("publisher", publisher), ("model", model)):
        if not _FOLDER.fullmatch(name):
            what = f"{what} {name!r} is no name of a folder"
            raise UsageError(what, hint="letters, digits, dots, dashes and underscores")
    place = request.out / publisher / model
    if request.type in (None, "mlx"):
        made = _mlx(replace(request, format="mlx", type=None, out=place), source, say)
    else:
        with staged_directory(place) as stage:
            file = stage / f"{model}.gguf"
            made = _gguf(replace(request, format="gguf", out=file), source, say)
    notes = (
        *made.notes,
        "LM Studio loads no adapters; this is a whole model",
        f"copy it into ~/.lmstudio/models, or start LM Studio with {request.out} as its models "
        "folder",
    )
    return _placed(replace(made, notes=notes), place, "lmstudio")


_WRITERS: dict[str, Callable[[Request, Path, Observe], Exported]] = {
    "mlx": _mlx,
    "gguf": _gguf,
    "gguf-lora": export_gguf_lora,
    "hf": export_hf,
    "peft": export_peft,
    "ollama": _ollama,
    "lmstudio": _lmstudio,
}


def _bundled(request: Request, source: Path, say: Observe) -> Exported:
    name = tag(request.name_of(source))
    with staged_directory(request.out) as stage:
        inner = stage / (f"{name}.gguf" if request.format in FILES else name)
        made = _WRITERS[request.format](
            replace(request, out=inner, bundle=False, schema=None), source, say
        )
        papers = (request.adapter or source) / adapters.PROVENANCE
        record = read_object(papers, error=ModelError) if papers.is_file() else {}
        public = {"id": base.public_id(request.model, source)}
        record.setdefault("base", {**public, "fingerprint": base.fingerprint(source)})
        if made.fuse is not None:
            record["fuse"] = vars(made.fuse)
        say("a test vector: the answer to one prompt")
        told = write_contract(request, inner, stage)
        part = Part(inner.name, request.format)
        seal_bundle(stage, part, name=name, base_folder=source, provenance=record)
    place = request.out / inner.name
    notes = tuple(note.replace(str(inner), str(place)) for note in (*made.notes, *told))
    made = _placed(replace(made, notes=notes), place, request.format)
    return replace(made, artifacts=(*made.artifacts, describe(request.out, "bundle")))


def _placed(made: Exported, place: Path, kind: str) -> Exported:
    fused = made.fuse and replace(made.fuse, out=str(place))
    return replace(made, artifacts=(describe(place, kind),), fuse=fused)


def _refuse_place(request: Request, source: Path) -> None:
    place = request.out
    if request.format == "lmstudio" and not request.bundle:
        # Other models in that folder, the source for one, are left alone.
        place = Path(place, *_listed(request, source))
    for taken in (source, request.adapter):
        if taken is not None:
            refuse_same(taken, place)
    (refuse_taken if request.is_file else refuse_occupied)(place)


def _listed(request: Request, source: Path) -> tuple[str, str]:
    publisher, _, model = request.name_of(source).rpartition("/")
    return publisher or "mlx-itune", model
