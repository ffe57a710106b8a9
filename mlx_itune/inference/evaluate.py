"""How good is a model on a data set: exact loss on every row, and its own answers scored."""

from __future__ import annotations

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.rendering.render import TokenizedExample, render
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import Generator
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import parse_object
from mlx_itune.model.engine.probe import choose_nll
from mlx_itune.model.loading.base import LoadedModel

# Padded tokens per forward pass; a speed setting, the sums do not depend on it.
_BATCH_TOKENS = 8192
NO_TASK = "all"
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Observe = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvalSettings:
    """Rows longer than max_length are cut; generate: write answers, and score them."""

    max_length: int = 2048
    max_new_tokens: int = 256
    batch_size: int = 32
    generate: bool = True


DEFAULTS = EvalSettings()


@dataclass(frozen=True)
class TaskScore:
    """Mean scores of the generated answers of one task."""

    rows: int
    exact_match: float
    token_f1: float


@dataclass(frozen=True)
class EvalResult:
    """``loss`` is the mean NLL per supervised token over all rows (nats), ``perplexity`` its exp.
    ``exact_match`` and ``token_f1`` are means over tasks, so that a frequent task does not drown a
    rare one; None where no answers were generated."""

    rows: int
    supervised_tokens: int
    loss: float
    perplexity: float
    exact_match: float | None
    token_f1: float | None
    tasks: dict[str, TaskScore]


def evaluate(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Conversation],
    settings: EvalSettings = DEFAULTS,
    observe: Observe | None = None,
) -> EvalResult:
    """Evaluate on all rows; nothing is sampled and nothing left out. ``observe(stage, done,
    total)`` is told of progress. Raises DataError when no row has anything to learn."""
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
    pairs: dict[str, list[tuple[str, str]]] = {}
    if settings.generate:
        scored = answer_questions(loaded, tokenizer, conversations, settings, observe)
        for row, answer, reference in scored:
            pairs.setdefault(row.tags.get("task", NO_TASK), []).append((answer, reference))
    tasks = {
        task: TaskScore(
            rows=len(rows),
            exact_match=fmean(exact_match(*pair) for pair in rows),
            token_f1=fmean(token_f1(*pair) for pair in rows),
        )
        for task, rows in sorted(pairs.items())
    }
    return EvalResult(
        rows=len(conversations),
        supervised_tokens=sum(int(np.count_nonzero(e.weights[1:])) for e in examples),
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        exact_match=fmean(t.exact_match for t in tasks.values()) if tasks else None,
        token_f1=fmean(t.token_f1 for t in tasks.values()) if tasks else None,
        tasks=tasks,
    )


def question(conversation: Conversation, tokenizer: ChatTokenizer) -> tuple[list[int], str] | None:
    """The prompt ids before the last assistant turn, and that turn's text; None without one. A turn
    of tool calls has the text that the chat template gives them."""
    turns = conversation.turns
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return None
    prompt = tokenizer.prompt_ids(turns[:last], conversation.tools)
    if not turns[last].tool_calls:
        return prompt, turns[last].content
    example = render(conversation, tokenizer, "last")[-1]
    start, end = example.spans[-1]
    learned = [i for i in example.input_ids[start:end].tolist() if i not in tokenizer.eos_ids]
    return prompt, tokenizer.decode(learned)


def answer_questions(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Conversation],
    settings: EvalSettings = DEFAULTS,
    observe: Observe | None = None,
) -> list[tuple[Conversation, str, str]]:
    """(row, greedy answer, reference) of the rows that ask something."""
    pairs = ((row, question(row, tokenizer)) for row in conversations)
    asked = [(row, *pair) for row, pair in pairs if pair is not None]
    told = (lambda done: observe("answers", done, len(asked))) if observe else None
    generator = Generator(loaded, tokenizer, batch_size=settings.batch_size)
    answers = generator.batch([ids for _, ids, _ in asked], settings.max_new_tokens, told)
    return [(row, text, known) for (row, _, known), text in zip(asked, answers, strict=True)]


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


def normalize(text: str) -> str:
    """Unicode NFC, outer whitespace stripped, each inner run of whitespace one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(answer: str, reference: str) -> bool:
    """Are both the same text after :func:`normalize`? Where the reference is a JSON object the
    answer is compared as JSON: key order, spacing and ``1`` against ``1.0`` do not matter; a
    repeated key does."""
    wanted = _json_object(reference)
    if wanted is not None:
        return bool(_json_object(answer) == wanted)
    return normalize(answer) == normalize(reference)


def token_f1(answer: str, reference: str) -> float:
    """Bag-of-words F1 as in SQuAD (1606.05250 section 6.1), but articles count. Words are
    lower-cased and lose ASCII punctuation. Two empty texts score 1, one empty text 0."""
    given, wanted = (
        Counter(normalize(text).lower().translate(_PUNCTUATION).split())
        for text in (answer, reference)
    )
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def _json_object(text: str) -> Any:
    """What :func:`exact_match` compares; None for a text that is no JSON object."""
    try:
        return _canonical(parse_object(text, where=None, error=DataError))
    except DataError:
        return None


def _canonical(value: Any) -> Any:
    """The value with its types told apart (``True`` is not ``1``) and its strings normalized."""
    if isinstance(value, dict):
        return {normalize(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, str):
        return normalize(value)
    return (isinstance(value, bool), value)
