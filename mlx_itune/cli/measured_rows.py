"""The rows that a merge is measured, scored and calibrated on; none of them for two purposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.rendering.render import TokenizedExample
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
    from mlx_itune.export.request import HeldOut, Request
    from mlx_itune.model.adapters.adapter import Adapter
    from mlx_itune.model.loading.base import LoadedModel

# Rows to measure on, and rows to compensate errors on.
MEASURED_ROWS = 64
CALIBRATION_ROWS = 128
# A built-in prompt's answer; the most that an answer to be scored may have over its reference.
_ANSWER_TOKENS = 64
_LONGER, _SPARE_TOKENS = 1.5, 8
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


def requested(given: Mapping[str, Any], template: str | None) -> Request:
    """What the flags ask for, with the tokenizer of the model. Raises UsageError, ModelError."""
    from mlx_itune.export.request import Request
    from mlx_itune.inference.opening import Opening, open_tokenizer

    any_base = given["allow_other_base"]
    tokenizer = open_tokenizer(
        Opening(given["model"], given["adapter"], template, allow_other_base=any_base)
    )
    stated = {name: value for name, value in given.items() if value is not None}
    return Request(tokenizer=tokenizer, **{"adapter": None, **stated})


def measured_rows(request: Request, data: Path | None, runs: Path) -> HeldOut:
    """Rows of ``data``, else the validation rows of the run that made the adapter, where its data
    is as it was, else the (tuned) model's answers to built-in prompts. Raises DataError,
    UsageError."""
    from mlx_itune.export.request import HeldOut
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.adapters.lora import ON_THE_GRID

    adapter = adapters.load(request.adapter) if request.adapter else None
    if data is not None:
        # An exact merge has no errors to compensate.
        part = not adapter or adapter.config.kind not in ON_THE_GRID
        return _of_data(data, request.tokenizer, part=part)
    found = _of_run(adapter, request.tokenizer, runs) if adapter else None
    if found is not None:
        return found
    answers = _of_prompts(request)
    return HeldOut(answers, source="the tuned model's own answers to built-in prompts")


def scorer(held: HeldOut, tokenizer: ChatTokenizer) -> Callable[[LoadedModel], float | None] | None:
    """A model's share of greedy answers that are exactly the row's; None where rows have none."""
    from mlx_itune.inference.evaluate import EvalSettings, answer_questions, exact_match, question

    asked = [pair for row in held.questions if (pair := question(row, tokenizer)) is not None]
    if not asked:
        return None
    longest = max(len(tokenizer.encode_ids(reference)) for _, reference in asked)
    settings = EvalSettings(max_new_tokens=int(_LONGER * longest) + _SPARE_TOKENS)

    def score(loaded: LoadedModel) -> float:
        answered = answer_questions(loaded, tokenizer, held.questions, settings)
        return sum(exact_match(answer, known) for _, answer, known in answered) / len(answered)

    return score


def _of_data(data: Path, tokenizer: ChatTokenizer, *, part: bool) -> HeldOut:
    from mlx_itune.dataset.sources import load_splits
    from mlx_itune.inference.opening import rows_of

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
    from mlx_itune.dataset.rendering.prepare import prepare
    from mlx_itune.export.request import HeldOut

    examples = prepare(measured, tokenizer, **options).examples
    taken = {example.input_ids.tobytes() for example in examples}
    others = prepare(spare[:CALIBRATION_ROWS], tokenizer, **options).examples if spare else ()
    calibration = [other for other in others if other.input_ids.tobytes() not in taken]
    return HeldOut(examples, calibration or None, measured, source)


def _of_run(adapter: Adapter, tokenizer: ChatTokenizer, runs: Path) -> HeldOut | None:
    from mlx_itune.dataset.sources import load_splits
    from mlx_itune.kit.errors import ItuneError
    from mlx_itune.kit.settings import from_toml
    from mlx_itune.training.settings import TrainSettings, settings_from

    folder = _run_of(adapter, runs)
    if folder is None:
        return None
    try:
        settings = settings_from(from_toml(folder / "config.toml", TrainSettings))
        # Where it was trained from is, most often, where its runs are.
        near, far = Path(settings.data), folder.parent.parent / settings.data
        splits = load_splits(
            near if near.exists() else far,
            seed=settings.seed,
            format=settings.format,
            columns=settings.columns,
        )
    except ItuneError:
        return None
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


def _run_of(adapter: Adapter, runs: Path) -> Path | None:
    name = adapter.origin.run
    if name is None or Path(name).name != name:
        return None
    places = [runs, *([adapter.path.parent / "runs"] if adapter.path else [])]
    return next((p / name for p in places if (p / name / "config.toml").is_file()), None)


def _of_prompts(request: Request) -> Sequence[TokenizedExample]:
    import numpy as np

    from mlx_itune.dataset.conversation import Turn
    from mlx_itune.dataset.rendering.render import TokenizedExample
    from mlx_itune.inference.generate import Generator
    from mlx_itune.inference.opening import Opening, open_model

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
