"""How good is a model on a data set: exact loss on every row, and its own answers scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.rendering.render import TokenizedExample, render
from mlx_itune.dataset.schema import faults_by, read_schema
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import Generator
from mlx_itune.inference.prompts import asked_row
from mlx_itune.inference.scoring import (
    METRICS,
    Breaks,
    JsonScore,
    LabelScore,
    Pair,
    Scorer,
    exact_match,
    json_fault,
    json_score,
    label_score,
    scorer_for,
    token_f1,
)
from mlx_itune.kit.errors import UsageError
from mlx_itune.model.engine.probe import choose_nll
from mlx_itune.model.loading.base import LoadedModel

# Padded tokens per forward pass; a speed setting, the sums do not depend on it.
_BATCH_TOKENS = 8192
NO_TASK = "all"
# Ways to score by which all of an answer counts.
_WHOLE = ("auto", "exact", "labels", "json")
_SPARE_TOKENS, _MANY_TOKENS, _MOST_TOKENS = 16, 256, 1024

Observe = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvalSettings:
    """Rows longer than max_length are cut; generate: write answers, and score them: each task as
    its references ask for, or by one of `scoring.METRICS`, a regex by a pattern. max_new_tokens:
    None is what the longest reference needs, and half as much. schema: a file, for the JSON answers
    among them. Raises UsageError for an unknown way or a pattern that is none."""

    max_length: int = 2048
    max_new_tokens: int | None = None
    batch_size: int = 32
    generate: bool = True
    score: str = "auto"
    pattern: str | None = None
    schema: Path | None = None

    def __post_init__(self) -> None:
        # Before hours are spent, not after them.
        if self.schema and self.score not in ("auto", "json"):
            raise UsageError(f"--schema is for JSON answers, not for --score {self.score}")
        scorer_for((), self.score, self.pattern)

    def breaks(self) -> Breaks | None:
        """What tells how a JSON answer breaks the schema. Raises DataError, StorageError."""
        if self.schema is None:
            return None
        return faults_by(read_schema(self.schema), where=str(self.schema))


DEFAULTS = EvalSettings()


@dataclass(frozen=True)
class TaskScore:
    """The generated answers of one task: means of exact match and token F1, and `score`, the share
    that is right by `way` (see scoring)."""

    rows: int
    exact_match: float
    token_f1: float
    way: str
    score: float
    labels: LabelScore | None = None
    json: JsonScore | None = None


@dataclass(frozen=True)
class Answered:
    """A row, its greedy answer, the reference, and whether by its task's `way` it is right."""

    row: Conversation
    task: str
    answer: str
    reference: str
    way: str
    is_right: bool
    token_f1: float
    # Why an answer that should be JSON is none, or none by the schema.
    fault: str | None = None

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns that it answers."""
        return self.row.turns[: _last_reply(self.row)]


@dataclass(frozen=True)
class EvalResult:
    """``loss`` is the mean NLL per supervised token over all rows (nats), ``perplexity`` its exp.
    ``exact_match`` and ``token_f1`` are means over tasks, so that a frequent task does not drown a
    rare one; ``exact_match_rows`` and ``score``, which ``metric`` names, are shares of all rows.
    None where no answers were generated."""

    rows: int
    supervised_tokens: int
    loss: float
    perplexity: float
    exact_match: float | None
    token_f1: float | None
    exact_match_rows: float | None
    score: float | None
    metric: str | None
    tasks: dict[str, TaskScore]
    answers: tuple[Answered, ...] = ()


def evaluate(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Conversation],
    settings: EvalSettings = DEFAULTS,
    observe: Observe | None = None,
) -> EvalResult:
    """Evaluate on all rows; nothing is sampled and nothing left out. ``observe(stage, done,
    total)`` is told of progress. Raises DataError when no row has anything to learn."""
    breaks = settings.breaks()
    conversations = [
        replace(row, turns=tokenizer.opened(row.turns), checked=True) for row in conversations
    ]
    examples = prepare(conversations, tokenizer, max_length_tokens=settings.max_length).examples
    nll = choose_nll(loaded.model)
    total = weight = 0.0
    done = 0
    for batch in _padded(examples):
        added, counted = nll(loaded.model, *batch)
        total, weight = total + float(np.array(added)), weight + float(np.array(counted))
        done += len(batch[0])
        if observe:
            observe("loss", done, len(examples))
    loss = total / weight if weight else math.nan
    answers, tasks = tuple[Answered, ...](), dict[str, TaskScore]()
    if settings.generate:
        said = answer_questions(loaded, tokenizer, conversations, settings, observe)
        answers, tasks = scored(said, settings, breaks)
    return EvalResult(
        rows=len(conversations),
        supervised_tokens=sum(int(np.count_nonzero(e.weights[1:])) for e in examples),
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        exact_match=fmean(t.exact_match for t in tasks.values()) if tasks else None,
        token_f1=fmean(t.token_f1 for t in tasks.values()) if tasks else None,
        exact_match_rows=_mean_of_rows([(t.rows, t.exact_match) for t in tasks.values()]),
        score=_mean_of_rows([(t.rows, t.score) for t in tasks.values()]),
        metric=_metric({t.way for t in tasks.values()}),
        tasks=tasks,
        answers=answers,
    )


def scored(
    said: Sequence[tuple[Conversation, str, str]],
    settings: EvalSettings = DEFAULTS,
    breaks: Breaks | None = None,
) -> tuple[tuple[Answered, ...], dict[str, TaskScore]]:
    """(row, answer, reference) as `answer_questions` gives them, in the same order with what each
    is worth; and the scores of each task, by name."""
    parts: dict[str, list[int]] = {}
    for number, (row, _, _) in enumerate(said):
        parts.setdefault(row.tags.get("task", NO_TASK), []).append(number)
    answers: dict[int, Answered] = {}
    tasks = {}
    for task, numbers in sorted(parts.items()):
        scorer = scorer_for([said[n][2] for n in numbers], settings.score, settings.pattern)
        pairs = [Pair(said[n][1], said[n][2]) for n in numbers]
        for n, pair in zip(numbers, pairs, strict=True):
            answers[n] = Answered(
                row=said[n][0],
                task=task,
                **vars(pair),
                way=scorer.way,
                is_right=scorer.is_right(pair),
                token_f1=token_f1(pair.answer, pair.reference),
                fault=json_fault(pair.answer, breaks) if scorer.way == "json" else None,
            )
        objects = json_score(pairs, breaks) if scorer.way == "json" else None
        tasks[task] = _task_score(scorer, pairs, [answers[n] for n in numbers], objects)
    return tuple(answers[n] for n in range(len(said))), tasks


def kept_rows(
    results: Mapping[str, EvalResult], grades: Mapping[str, Sequence[int | None]]
) -> Iterator[dict[str, Any]]:
    """Every answer of the last model as a row that `data import` reads: with what was asked, the
    reference, the score, and what the others ("base") answered. grades: a judge's, by model."""
    *others, last = results
    for n, each in enumerate(results[last].answers):
        row = {
            "row": each.row.origin,
            "task": None if each.task == NO_TASK else each.task,
            **asked_row(each.asked),
            **({"tools": list(each.row.tools)} if each.row.tools else {}),
            "reference": each.reference,
            "answer": each.answer,
            "score": int(each.is_right),
            "token_f1": round(each.token_f1, 4),
            **({"fault": each.fault} if each.fault else {}),
        }
        for name in others:
            other = results[name].answers[n]
            row |= {name: other.answer, f"{name}_score": int(other.is_right)}
        for name, given in grades.items():
            row["judge" if name == last else f"{name}_judge"] = given[n]
        yield row


def _task_score(
    scorer: Scorer, pairs: Sequence[Pair], answers: Sequence[Answered], objects: JsonScore | None
) -> TaskScore:
    return TaskScore(
        rows=len(pairs),
        exact_match=fmean(exact_match(pair.answer, pair.reference) for pair in pairs),
        token_f1=fmean(each.token_f1 for each in answers),
        way=scorer.way,
        score=fmean(each.is_right for each in answers),
        labels=label_score(scorer, pairs) if scorer.way in ("labels", "choice") else None,
        json=objects,
    )


def _mean_of_rows(parts: Sequence[tuple[int, float]]) -> float | None:
    rows = sum(rows for rows, _ in parts)
    return sum(rows * mean for rows, mean in parts) / rows if rows else None


def _metric(ways: set[str]) -> str | None:
    """What a share of right rows is called."""
    if len(ways) > 1:
        return "rows right"
    return METRICS[ways.pop()] if ways else None


def question(conversation: Conversation, tokenizer: ChatTokenizer) -> tuple[list[int], str] | None:
    """The prompt ids before the last assistant turn, and that turn's text; None without one. A turn
    of tool calls has the text that the chat template gives them."""
    turns, last = conversation.turns, _last_reply(conversation)
    if last is None:
        return None
    prompt = tokenizer.prompt_ids(turns[:last], conversation.tools)
    if not turns[last].tool_calls:
        return prompt, turns[last].content
    example = render(conversation, tokenizer, "last")[-1]
    start, end = example.spans[-1]
    learned = [i for i in example.input_ids[start:end].tolist() if i not in tokenizer.eos_ids]
    return prompt, tokenizer.decode(learned)


def _last_reply(conversation: Conversation) -> int | None:
    """The number of the last assistant turn."""
    replies = (i for i, turn in enumerate(conversation.turns) if turn.role == "assistant")
    return max(replies, default=None)


def answer_questions(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Conversation],
    settings: EvalSettings = DEFAULTS,
    observe: Observe | None = None,
    schema: Mapping[str, Any] | None = None,
) -> list[tuple[Conversation, str, str]]:
    """(row, greedy answer, reference) of the rows that ask something; schema: what answers are held
    to."""
    pairs = ((row, question(row, tokenizer)) for row in conversations)
    asked = [(row, *pair) for row, pair in pairs if pair is not None]
    told = (lambda done: observe("answers", done, len(asked))) if observe else None
    generator = Generator(loaded, tokenizer, batch_size=settings.batch_size, schema=schema)
    most = settings.max_new_tokens or _room(tokenizer, [known for _, _, known in asked], settings)
    answers = generator.batch([ids for _, ids, _ in asked], most, told)
    return [(row, text, known) for (row, _, known), text in zip(asked, answers, strict=True)]


def _room(tokenizer: ChatTokenizer, references: Sequence[str], settings: EvalSettings) -> int:
    """Tokens that are enough for a right answer: a base model writes on until it is stopped."""
    longest = max((len(tokenizer.encode_ids(text)) for text in references), default=0)
    # What is looked for somewhere in an answer may come after many words.
    least = 0 if settings.score in _WHOLE and settings.pattern is None else _MANY_TOKENS
    return max(min(longest + longest // 2 + _SPARE_TOKENS, _MOST_TOKENS), least)


def _padded(
    examples: Sequence[TokenizedExample],
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Length-sorted batches, input_ids (B, T) and weights (B, T); padding carries no weight."""
    batches: list[list[TokenizedExample]] = [[]]
    for row in sorted(examples, key=lambda example: len(example.input_ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(row.input_ids) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    for rows in filter(None, batches):
        shape = len(rows), len(rows[-1].input_ids)
        input_ids, weights = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
        for k, row in enumerate(rows):
            input_ids[k, : len(row.input_ids)] = row.input_ids
            weights[k, : len(row.weights)] = row.weights
        yield input_ids, weights
