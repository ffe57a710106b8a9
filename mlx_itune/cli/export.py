"""``fuse``, ``export``, ``verify``, ``import``: one model of base and adapter; other runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import UsageError, one_line
from mlx_itune.kit.wording import count, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.rendering.render import TokenizedExample
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
    from mlx_itune.export.artifact import Exported
    from mlx_itune.export.fusing.fuse import FuseResult
    from mlx_itune.export.request import HeldOut, Request
    from mlx_itune.model.adapters.adapter import Adapter
    from mlx_itune.model.adapters.from_peft import PeftImport
    from mlx_itune.model.loading.base import LoadedModel


_measured = options.flags("runs bits max-kl allow-lossy held-out template compute allow-other-base")


@options.command("fuse")
@options.flags("model adapter-to-merge out-directory way every-way score")
@_measured
def fuse(score: bool, runs: Path, data: Path | None, template: str | None, **given: Any) -> Result:
    """Merge an adapter into its base; the smallest result that still is the model you trained."""
    from mlx_itune.export.fusing.fuse import fuse

    request = requested(given, template)
    rows = measured_rows(request, data, runs)
    request = replace(request, rows=rows, score=scorer(rows, request.tokenizer) if score else None)
    result = fuse(request, lambda what: click.echo(f"trying: {what}", err=True))
    return Result(result, _fused(result, rows.source))


def _fused(result: FuseResult, source: str) -> Iterator[Any]:
    scored = result.score_reference is not None
    columns = ["tried", "size", "mean KL", "p99 KL", "top-1", *(["score"] if scored else [])]
    yield table(
        columns,
        [
            [
                t.method,
                size(t.bytes),
                number(t.kl_mean, 2),
                number(t.kl_p99, 2),
                percent(t.top1_agreement),
                *([percent(t.score)] if scored else []),
            ]
            for t in result.tried
        ],
    )
    yield (
        f"{result.out}: {result.method}; measured on {count(result.tokens, 'learned token')} of "
        f"{count(result.rows, 'row')} ({source})"
    )
    if scored:
        yield f"base + adapter: exact match {percent(result.score_reference)}"
    if result.calibration_rows:
        yield f"errors compensated on {count(result.calibration_rows, 'other row')}"


@options.command("export")
@options.flags("model adapter to out-path type name separate bundle way-of-export")
@_measured
def command(runs: Path, data: Path | None, template: str | None, **given: Any) -> Result:
    """Write a model for mlx-lm, llama.cpp, Ollama, LM Studio, transformers or PEFT; read it back.

    With --adapter it is merged first, as `fuse` does, and what that lost is measured.
    """
    from mlx_itune.export.formats import export

    request = requested(given, template)
    asked = [given[name] is not None for name in ("bits", "way", "max_kl")]
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
    result = export(request, lambda what: click.echo(what, err=True))
    return Result(result, _lines(result))


def _lines(result: Exported) -> Iterator[str]:
    for artifact in result.artifacts:
        yield f"{artifact.path}  {artifact.format}  {size(artifact.bytes)}"
        yield f"sha256 {artifact.sha256}"
    if result.fuse is not None:
        fused = result.fuse
        yield (
            f"merged: {fused.method}; mean KL {number(fused.kl_mean, 2)} from base + adapter, "
            f"same first choice {percent(fused.top1_agreement)}"
        )
    checks = result.verify if isinstance(result.verify, dict) else {"": result.verify}
    for part, checked in checks.items():
        yield f"read back{' (' + part + ')' if part else ''}: {_facts(checked)}"
    if result.tokenizer is not None:
        yield f"tokenizer: {_facts(result.tokenizer)}, all equal"
    yield from (f"note: {note}" for note in result.notes)


def _facts(checked: Any) -> str:
    # A model's own answer may hold what would repaint a terminal.
    return ", ".join(
        f"{key.replace('_', ' ')} "
        + (number(value, 2) if isinstance(value, float) else one_line(str(value)))
        for key, value in vars(checked).items()
        if isinstance(value, (str, int, float))
    )


@options.command("verify")
@options.flags("bundle-made")
def verify(bundle: Path) -> Result:
    """Compare a bundle (`export --bundle`) with its manifest; exit code 4 if a file differs."""
    from mlx_itune.export.bundle import check_bundle

    checked = check_bundle(bundle)
    total = size(sum(file.bytes for file in checked.files))
    files = count(len(checked.files), "file")
    about = {"path": str(bundle), **vars(checked)}
    return Result(about, [f"{bundle}: {files}, {total}, each as the manifest says"])


@options.command("import")
@options.flags("peft-adapter model out-directory")
def import_adapter(source: Path, model: str, out: Path) -> Result:
    """Read a PEFT adapter (LoRA, rsLoRA, DoRA) and write it as mlx-lm and this program read it.

    Each update is compared with PEFT's own; what has no such form is refused by name.
    """
    from mlx_itune.model.adapters.from_peft import import_peft

    done = import_peft(source, model, out)
    return Result(done, _imported(done))


def _imported(done: PeftImport) -> Iterator[str]:
    layers = count(done.layers, "layer")
    yield f"{done.out}: {done.kind}, rank {done.rank}, scale {done.scale:g}, {layers}"
    yield f"largest difference of an update from PEFT's: {number(done.largest_difference, 2)}"
    if done.padded:
        yield f"{count(done.padded, 'layer')} of a lower rank: padded with zeros"
    if done.folded:
        yield f"{count(done.folded, 'layer')} with another scale, which is now in their B"


# The rows that a merge is measured, scored and calibrated on; none of them for two purposes.
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
    from mlx_itune.inference.evaluate import EvalSettings, answer_questions, question
    from mlx_itune.inference.scoring import exact_match

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
            how=settings.reading,
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
