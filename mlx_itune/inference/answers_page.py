"""The page of `eval --html`: each row that was answered wrong, with what it was trained beside."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.inference.evaluate import NO_TASK, Answered, EvalResult
from mlx_itune.inference.prompts import asked_words
from mlx_itune.kit.page import Html, cards, element, grid, join, page, said, section, table
from mlx_itune.kit.wording import brief, count, percent

_SHOWN, _NEAR, _CONFUSIONS = 500, 3, 20
# Longer answers are shown without marks: comparing them takes longer than reading them.
_MARKED_WORDS = 2000
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
_WORDS = re.compile(r"\w+")


class Nearest:
    """Training rows whose questions share the rarest words with another: the cosine of TF-IDF, each
    word counted once."""

    def __init__(self, rows: Sequence[Conversation]) -> None:
        self._rows = rows
        holds = defaultdict[str, list[int]](list)
        for number, row in enumerate(rows):
            for word in _words(row.turns):
                holds[word].append(number)
        self._holds = {word: np.array(numbers) for word, numbers in holds.items()}
        norms = np.zeros(len(rows))
        for word, numbers in self._holds.items():
            norms[numbers] += self._weight(word) ** 2
        self._norms = np.sqrt(norms)
        self._tasks = np.array([row.tags.get("task", NO_TASK) for row in rows])

    def of(self, answer: Answered, most: int = _NEAR) -> list[tuple[float, Conversation]]:
        """(likeness from 0 to 1, row) of the rows that are most like what it answers; of the same
        task, where there are any."""
        words = _words(answer.asked)
        shared = np.zeros(len(self._rows))
        for word in words & self._holds.keys():
            shared[self._holds[word]] += self._weight(word) ** 2
        norm = math.sqrt(sum(self._weight(word) ** 2 for word in words))
        likeness = shared / np.maximum(self._norms * norm, 1e-9)
        if (same := self._tasks == answer.task).any():
            likeness = np.where(same, likeness, 0)
        best = np.argsort(-likeness, kind="stable")[:most].tolist()
        return [(float(likeness[n]), self._rows[n]) for n in best if likeness[n] > 0]

    def _weight(self, word: str) -> float:
        return math.log(1 + len(self._rows) / len(self._holds.get(word, (0,))))


def made(
    name: str,
    results: Mapping[str, EvalResult],
    training: Sequence[Conversation] = (),
    grades: Mapping[str, Sequence[int | None]] | None = None,
) -> str:
    """The page of the rows `name`. results, grades: of "base", if it was run, and of the model that
    is looked at, last. training: what that one learned, where it is at hand."""
    *_, (label, last) = results.items()
    wrong = [n for n, answer in enumerate(last.answers) if not answer.is_right]
    near = Nearest(training) if training else None
    articles = []
    for number, n in enumerate(wrong[:_SHOWN], 1):
        answers = {model: result.answers[n] for model, result in results.items()}
        given = {model: listed[n] for model, listed in (grades or {}).items()}
        articles.append(_article(number, answers, near, given))
    facts = [(f"{last.metric}, {model}", percent(one.score)) for model, one in results.items()]
    facts += [("rows wrong", f"{len(wrong):,} of {len(last.answers):,}")]
    note = "Words that the answer has and the reference has not are underlined, and the reverse. "
    if near:
        note += f"Below: the nearest of {count(len(training), 'training row')}, by their words. "
    if len(wrong) > _SHOWN:
        note += f"The first {_SHOWN} of {len(wrong):,}."
    body = [cards(facts), *_confusions(last)]
    body += [section("Wrong rows", *articles, note=note)] if articles else []
    return page(f"Answers to {name}", join(body), subtitle=f"{label} model; {_about(last)}")


def _about(result: EvalResult) -> str:
    ways = Counter(answer.way for answer in result.answers)
    return "scored by " + ", ".join(f"{way} ({rows:,})" for way, rows in ways.most_common())


def _confusions(result: EvalResult) -> Iterator[Html]:
    for task, score in result.tasks.items():
        if score.labels and score.labels.confused:
            rows = [
                [brief(each.reference, 80), brief(each.answer or "(nothing)", 80), f"{each.rows:,}"]
                for each in score.labels.confused[:_CONFUSIONS]
            ]
            about = "" if task == NO_TASK else f", {task}"
            columns = ["it is", "and was answered with", "rows"]
            yield section(f"Most confused{about}", table(columns, rows, words={1}))


def _article(
    number: int,
    answers: Mapping[str, Answered],
    near: Nearest | None,
    grades: Mapping[str, int | None],
) -> Html:
    *others, (label, last) = answers.items()
    missing, extra = marked(last.reference, last.answer)
    lines = [said("reference", missing, "reference")]
    for model, other in others:
        tick = " ✓" if other.is_right else ""
        lines.append(said(model + tick + _graded(grades, model), _shown(other.answer), "before"))
    lines.append(said(label + _graded(grades, label), extra, "after"))
    lines += [said("fault", last.fault, "like")] if last.fault else []
    learned = [
        said(f"{100 * likeness:.0f} % alike", f"{_brief(row)}", "like")
        for likeness, row in (near.of(last) if near else ())
    ]
    task = "" if last.task == NO_TASK else f", {last.task}"
    heading = element("h3", None, f"{number}. {Path(last.row.origin).name}{task}")
    asked = said("prompt", asked_words(last.asked))
    parts = grid(element("div", None, asked), element("div", None, *lines))
    return element("article", {"class": "sample"}, heading, parts, *learned)


def _graded(grades: Mapping[str, int | None], model: str) -> str:
    return f" {grades[model] or '-'}/5" if model in grades else ""


def _shown(text: str) -> str:
    return text.strip() or "(nothing)"


def _brief(row: Conversation) -> str:
    """A training row: its question, its answer, and where it stands."""
    *asked, answer = row.turns
    question = brief(asked_words(_said_of(asked)) if asked else "", 300)
    return f"{question} → {brief(answer.content, 200)}  ({Path(row.origin).name})"


def marked(reference: str, answer: str) -> tuple[Html, Html]:
    """Both as markup, with what only one of them has in a mark."""
    wanted, given = (_PIECES.findall(text.strip()) for text in (reference, answer))
    if len(wanted) + len(given) > _MARKED_WORDS or not wanted or not given:
        return join([_shown(reference)]), join([_shown(answer)])
    sides: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, wanted, given, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        for side, pieces in zip(
            sides, (wanted[start:end], given[other_start:other_end]), strict=True
        ):
            text = "".join(pieces)
            side.append(text if kind == "equal" or not text else element("mark", None, text))
    return join(sides[0]), join(sides[1])


def _said_of(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Without the system prompt, which a data set's rows share."""
    return turns[1:] if turns[0].role == "system" and len(turns) > 1 else turns


def _words(turns: Sequence[Turn]) -> set[str]:
    asked = [turn.content for turn in turns if turn.role == "user"]
    return set(_WORDS.findall(" ".join(asked).lower()))
