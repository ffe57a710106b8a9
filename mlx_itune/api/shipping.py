"""What ships: one model of base and adapter, other runtimes' files; what a merge is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.api.answers import opening_of
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.sources import load_splits
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export import formats
from mlx_itune.export.artifact import Exported
from mlx_itune.export.bundle import Manifest, check_bundle
from mlx_itune.export.fusing import fuse as fusing
from mlx_itune.export.fusing.fuse import FuseResult
from mlx_itune.export.request import HeldOut, Request
from mlx_itune.inference.evaluate import answer_questions, question
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.opening import Opening, open_model, open_tokenizer, rows_of
from mlx_itune.inference.scoring import exact_match
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import values_of
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.adapters.from_peft import PeftImport, import_peft
from mlx_itune.model.adapters.lora import ON_THE_GRID
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.training.run.naming import rows_of_run
from mlx_itune.training.settings import TrainSettings

# Rows to measure on, and rows to compensate errors on; none of them for two purposes.
MEASURED_ROWS = 64
CALIBRATION_ROWS = 128
# Of an answer to a built-in prompt.
_ANSWER_TOKENS = 64
_PROMPTS = (
    "Hello, who are you?",
    "Explain in two sentences why the sky is blue.",
    "List three things to pack for a weekend trip.",
    "Translate to French: Where is the train station?",
    'Return JSON with the keys "name" and "age" for: Anna is 34 years old.',
    "What is 17 plus 25? Answer with the number only.",
    "Write one sentence that thanks a colleague for their help.",
    "Summarize: The meeting moved from Monday to Wednesday because the room was taken.",
)
_MERGING = "bits way max_kl allow_lossy compute allow_other_base"
_SHAPE = "format type name separate bundle schema"
Say = Callable[[str], None]
PathLike = str | Path


def fuse(
    model: str | None,
    adapter: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    score: bool = True,
    observe: Say = lambda _: None,
    **how: Any,
) -> FuseResult:
    """Merge an adapter into its base: a model directory `out`, whole or not at all, of the smallest
    size whose mean KL from base + adapter is within `max_kl` nats per token. `data`: held-out rows
    to measure on, else the run's, else the model's own answers. `score`: answer them, too.
    `observe` is told what is tried. `how`: way, every, bits, max_kl, allow_lossy, runs, template,
    compute, allow_other_base. Raises ModelError where nothing is near enough; UsageError,
    DataError, StorageError."""
    request, runs = _request(model, adapter, out, how, f"every {_MERGING}")
    rows = measured_rows(request, data, runs)
    request = replace(request, rows=rows, score=_scorer(rows, request.tokenizer) if score else None)
    return fusing.fuse(request, observe)


def export(
    model: str | None,
    out: PathLike,
    *,
    to: str,
    adapter: PathLike | None = None,
    data: PathLike | None = None,
    observe: Say = lambda _: None,
    **how: Any,
) -> Exported:
    """Write a model for another runtime, whole or not at all, and read it back. `to`: mlx, gguf,
    gguf-lora, hf, peft, ollama or lmstudio. An adapter is merged first as `fuse` does, but where
    the format takes it alone. `how`: type, name, separate, bundle, schema; where an adapter is
    merged also way, bits, max_kl, allow_lossy; runs, template, compute, allow_other_base. Raises
    UsageError, ModelError (also where what was read back is not what was written), DataError,
    StorageError."""
    request, runs = _request(model, adapter, out, {**how, "format": to}, f"{_MERGING} {_SHAPE}")
    asked = [how.get(name) is not None for name in ("bits", "way", "max_kl")]
    if not request.merges and (any(asked) or request.allow_lossy):
        raise UsageError(
            "--bits, --way, --max-kl and --allow-lossy take effect only where --adapter is merged "
            "and measured",
            hint="leave them out" if request.adapter else "give --adapter",
        )
    if request.needs_rows:
        request = replace(request, rows=measured_rows(request, data, runs))
    elif data is not None:
        raise UsageError("--data takes effect only where something is measured on it")
    return formats.export(request, observe)


def verify(bundle: PathLike) -> Manifest:
    """The manifest of a bundle (`export` with bundle=True) whose files are as it says. Raises
    ModelError for the first that is not."""
    return check_bundle(Path(bundle))


def import_adapter(source: PathLike, model: str, out: PathLike) -> PeftImport:
    """Write a PEFT adapter (LoRA, rsLoRA, DoRA) as one of ours on `model`, each update compared
    with PEFT's own. Raises ModelError for what has no such form, StorageError."""
    return import_peft(Path(source), str(model), Path(out))


def _request(
    model: str | None, adapter: PathLike | None, out: PathLike, how: Mapping[str, Any], names: str
) -> tuple[Request, Path]:
    """What is asked for, with the tokenizer of the model, and where runs are."""
    asked = values_of(how, (Request, names), (Opening, "template"), (TrainSettings, "runs"))
    template, runs = asked.pop("template", None), asked.pop("runs", Path("runs"))
    any_base = asked.get("allow_other_base")
    read = {"template": template, "allow_other_base": any_base}
    opening = opening_of(model, adapter, read, runs)
    tokenizer = open_tokenizer(opening)
    return Request(opening.model, opening.adapter, Path(out), tokenizer, **asked), runs


def measured_rows(request: Request, data: PathLike | None, runs: Path) -> HeldOut:
    """Rows of ``data``, else the validation rows of the run that made the adapter, where its data
    is as it was, else the (tuned) model's answers to built-in prompts. Raises DataError,
    UsageError."""
    adapter = adapters.load(request.adapter) if request.adapter else None
    if data is not None:
        # An exact merge has no errors to compensate.
        part = not adapter or adapter.config.kind not in ON_THE_GRID
        return _of_data(Path(data), request.tokenizer, part=part)
    found = _of_run(adapter, request.tokenizer, runs) if adapter else None
    if found is not None:
        return found
    answers = _of_prompts(request)
    return HeldOut(answers, source="the tuned model's own answers to built-in prompts")


def _scorer(
    held: HeldOut, tokenizer: ChatTokenizer
) -> Callable[[LoadedModel], float | None] | None:
    """A model's share of greedy answers that are exactly the row's; None where rows have none."""
    if all(question(row, tokenizer) is None for row in held.questions):
        return None

    def score(loaded: LoadedModel) -> float:
        answered = answer_questions(loaded, tokenizer, held.questions)
        return sum(exact_match(answer, known) for _, answer, known in answered) / len(answered)

    return score


def _of_data(data: Path, tokenizer: ChatTokenizer, *, part: bool) -> HeldOut:
    split, rows = rows_of(data)
    splits = load_splits(data) if data.is_dir() else None
    if splits and split == "train" and splits.valid:
        # What training sets aside by itself.
        split, rows = "valid", splits.valid
    measured, spare = rows[:MEASURED_ROWS], rows[MEASURED_ROWS:]
    if splits and split != "train":
        spare = splits.train
    elif part and len(spare) < MEASURED_ROWS // 2 and len(rows) > 1:
        # Few rows: two thirds to measure on, one to calibrate on.
        measured, spare = [row for n, row in enumerate(rows) if n % 3 != 1], rows[1::3]
    name = f"{data.name} ({split})" if data.is_dir() else data.name
    return _held(measured, spare, tokenizer, name)


def _held(
    measured: Sequence[Conversation],
    spare: Sequence[Conversation],
    tokenizer: ChatTokenizer,
    source: str,
    **options: Any,
) -> HeldOut:
    """The rows as tokens; a row to calibrate on that is one of those measured on is left out."""
    examples = prepare(measured, tokenizer, **options).examples
    taken = {example.input_ids.tobytes() for example in examples}
    others = prepare(spare[:CALIBRATION_ROWS], tokenizer, **options).examples if spare else ()
    calibration = [other for other in others if other.input_ids.tobytes() not in taken]
    return HeldOut(examples, calibration or None, measured, source)


def _of_run(adapter: Adapter, tokenizer: ChatTokenizer, runs: Path) -> HeldOut | None:
    if (found := rows_of_run(adapter, runs)) is None:
        return None
    settings, splits = found
    told = {source.get("sha256") for source in adapter.origin.data}
    # Other rows than those of the run may be what it was trained on.
    if {source.sha256 for source in splits.sources} != told or not splits.valid:
        return None
    return _held(
        splits.valid[:MEASURED_ROWS],
        splits.train,
        tokenizer,
        "the run's validation rows",
        max_length_tokens=settings.max_length,
        learn=settings.learn,
        too_long=settings.too_long,
    )


def _of_prompts(request: Request) -> Sequence[TokenizedExample]:
    any_base, tokenizer = request.allow_other_base, request.tokenizer
    opening = Opening(request.model, request.adapter, None, request.compute, any_base)
    prompts = [tokenizer.prompt_ids([Turn("user", text)]) for text in _PROMPTS]
    answers = Generator(open_model(opening)[0], tokenizer).batch(prompts, _ANSWER_TOKENS)
    examples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *tokenizer.encode_ids(answer), tokenizer.closing_id]
        weights = np.zeros(len(ids), dtype=np.float32)
        weights[len(prompt) :] = 1
        examples.append(TokenizedExample(np.array(ids, dtype=np.int32), weights, "built-in"))
    return examples
