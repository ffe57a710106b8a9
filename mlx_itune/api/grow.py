"""Drafts of a teacher: asked for in rounds, every answer kept, until there are enough."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.api.answers import opening_of
from mlx_itune.dataset.drafts import material as materials
from mlx_itune.dataset.drafts.calls import Call, CallLog, Said
from mlx_itune.dataset.drafts.grow import Grade, Growth, Wanted
from mlx_itune.dataset.drafts.grow import grow as growing
from mlx_itune.dataset.drafts.material import Material
from mlx_itune.dataset.drafts.recipe import Recipe, find_recipe
from mlx_itune.dataset.drafts.records import DRAFTS, Draft
from mlx_itune.inference.judge import GRADE_TOKENS, RUBRIC, Judge, grade_of, graded
from mlx_itune.inference.openai_client import Server
from mlx_itune.inference.opening import open_model, rows_of
from mlx_itune.inference.teacher import LocalTeacher, ServerTeacher, Teacher
from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.files import sha256_file, storage_errors, write_durably
from mlx_itune.kit.json_files import canonical, plain, read_object, write_object
from mlx_itune.kit.lock import locked
from mlx_itune.kit.settings import records

RECORD = "grow.json"
_LOCK = ".lock"
_OF_ROWS = 100
_DRAFT_RUBRIC = RUBRIC.replace("against a reference", "against a reference text")
PathLike = str | Path
Observe = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GrowSettings:
    """What is asked for. count: None is one a passage, or 100 of rows; temperature: None is the
    recipe's; labels and schema: those of a recipe that wants them; agreement: whether a second
    sample is asked for."""

    recipe: str | None = None
    count: int | None = None
    temperature: float | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    schema: Path | None = None
    agreement: bool = True
    batch_size: int = 32
    server: str | None = None
    server_model: str = "default_model"
    judge: str | None = None
    judge_model: str = "default_model"
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UsageError(f"--count must be at least 1, not {self.count}")


@dataclass(frozen=True)
class Grown:
    """drafts: asked for; accepted: kept after the filters; rejected: by reason; calls: in the log,
    asked: of them now; ended: why there are fewer than --count."""

    out: str
    drafts: int
    accepted: int
    rejected: dict[str, int]
    calls: int
    asked: int
    recipe: str
    mean_doubt: float | None
    ended: str | None
    wall_s: float


def grow(
    source: PathLike,
    out: PathLike,
    *,
    model: str | None = None,
    adapter: PathLike | None = None,
    observe: Observe = lambda stage, done, total: None,
    **settings: Any,
) -> Grown:
    """Draft rows from passages of `ingest`, or from a few rows, into the folder `out`; the same
    again goes on where it was. `settings`: recipe (a name or FILE.toml), count, temperature, seed,
    labels, schema, agreement, batch_size; server, server_model, judge, judge_model, allow_remote;
    template, system, compute of a model. Raises UsageError, DataError, ModelError, StorageError;
    whatever ends it, what the teacher said is kept."""
    names = {
        name: settings.pop(name) for name in [*settings] if name in GrowSettings.__annotations__
    }
    (asked,) = records(names, GrowSettings)
    began, out = time.monotonic(), Path(out)
    recipe, source_file, found, given, count = _of(Path(source), asked)
    judge = Judge(asked.judge, asked.judge_model, asked.allow_remote) if asked.judge else None
    if (asked.server is None) == (model is None and adapter is None):
        raise UsageError("a teacher is needed: --model (or --adapter), or --server")
    if asked.server is not None:
        server = Server(asked.server, asked.server_model, asked.allow_remote)
        teacher: dict[str, Any] = {"url": server.url, "model": server.model}
    else:
        opening = opening_of(model, adapter, settings)
        teacher = {"model": opening.model, "adapter": plain(opening.adapter)}
    wanted = Wanted(count, asked.seed, teacher, asked.agreement)
    record = {
        "made_by": "mlx-itune data grow",
        "source": str(source),
        "source_sha256": sha256_file(source_file) if source_file else None,
        "recipe": recipe,
        "teacher": teacher,
        "seed": asked.seed,
        "agreement": asked.agreement,
        "judge": {"url": asked.judge, "model": asked.judge_model} if judge else None,
    }
    with _folder(out, record) as log:
        if asked.server is not None:
            who: Teacher = ServerTeacher(server)
        else:
            who = _Late(lambda: LocalTeacher(*open_model(opening), batch_size=asked.batch_size))
        total = [0]

        def ask(calls: Sequence[Call], of: Teacher = who) -> list[Said]:
            def answered(call: Call, text: str, finish: str) -> None:
                log.add(call, text, finish)
                observe("calls", log.asked, total[0])

            fresh = {call.key: call for call in calls if log.get(call) is None}
            total[0] = log.asked + len(fresh)
            if fresh:
                of.ask([*fresh.values()], answered)
            return [said for call in calls if (said := log.get(call)) is not None]

        grade = _judging(judge, ask) if judge else None
        growth, is_whole = Growth(), False
        try:
            for growth in growing(recipe, found, given, wanted, ask, grade=grade):
                observe("drafts", len(growth.drafts), count)
            is_whole = True
        finally:
            _write(out, growth, {**record, "count": count}, is_whole=is_whole)
        return _told(out, growth, log, recipe, began)


class _Late:
    """A teacher that is loaded when something is asked that nobody knows."""

    def __init__(self, load: Callable[[], Teacher]) -> None:
        self._load, self._teacher = load, None

    def ask(self, calls: Sequence[Call], answered: Callable[[Call, str, str], None]) -> None:
        self._teacher = self._teacher or self._load()  # type: ignore[assignment]
        self._teacher.ask(calls, answered)  # type: ignore[attr-defined]


def _of(
    source: Path, asked: GrowSettings
) -> tuple[Recipe, Path | None, Iterator[Material], list[str], int]:
    """(recipe, the file that the source is, materials, texts that no draft repeats, how many)."""
    named = (asked.schema, tuple(asked.labels))
    path = source if source.name == materials.PASSAGES else source / materials.PASSAGES
    if path.is_file():
        passages = materials.read_passages(path.parent)
        recipe = _heated(
            find_recipe(asked.recipe, "passages", schema=named[0], labels=named[1]), asked
        )
        made = materials.of_passages(passages, recipe, asked.seed)
        return recipe, path, made, [], asked.count or len(passages)
    rows = rows_of(source, "train" if source.is_dir() else "auto")[1]
    labels = named[1] or materials.labels_of(rows)
    name = asked.recipe or ("classification" if labels else "instructions")
    recipe = _heated(find_recipe(name, "rows", schema=named[0], labels=labels), asked)
    examples = materials.examples_of(rows)
    made = materials.of_examples(examples, recipe, asked.seed)
    own = source if source.is_file() else None
    return recipe, own, made, [each.user for each in examples], asked.count or _OF_ROWS


def _heated(recipe: Recipe, asked: GrowSettings) -> Recipe:
    return recipe if asked.temperature is None else replace(recipe, temperature=asked.temperature)


@contextmanager
def _folder(out: Path, record: dict[str, Any]) -> Iterator[CallLog]:
    """The log of a folder, new or of the same settings. Raises UsageError, StorageError."""
    known = out / RECORD
    if out.exists() and not out.is_dir():
        raise StorageError("is a file, not a directory", where=str(out), hint="choose another name")
    if out.is_dir() and not known.is_file() and any(p.name != _LOCK for p in out.iterdir()):
        hint = "choose another name or remove it first"
        raise StorageError("already exists and is not empty", where=str(out), hint=hint)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out / _LOCK, str(out)):
        if known.is_file():
            then, now = read_object(known, error=StorageError), json.loads(canonical(record))
            if other := [name for name in now if name != "source" and then.get(name) != now[name]]:
                what = f"was grown with another {', '.join(other)}"
                raise UsageError(what, where=str(out), hint="choose another --out")
        else:
            write_object(known, record)
        log = CallLog(out)
        try:
            yield log
        finally:
            log.close()


def _judging(judge: Judge, ask: Callable[[Sequence[Call], Teacher], list[Said]]) -> Grade:
    of = canonical({"url": judge.url, "model": judge.model}).decode()
    teacher = ServerTeacher(judge.server)

    def grade(drafts: Sequence[Draft], made: Sequence[Material]) -> list[float | None]:
        calls = []
        for draft, each in zip(drafts, made, strict=True):
            *_, user, answer = (message["content"] for message in draft.messages)
            reference = each.fields.get("passage") or each.fields.get("label") or ""
            said = graded(_DRAFT_RUBRIC, user, reference, answer)
            calls.append(Call(said, of, max_tokens=GRADE_TOKENS))
        found = [grade_of(said.text) for said in ask(calls, teacher)]
        return [None if mark is None else (mark - 1) / 4 for mark in found]

    return grade


def _write(out: Path, growth: Growth, record: dict[str, Any], *, is_whole: bool) -> None:
    """Write what there is; of a run that was ended no less than there was."""
    before = (out / DRAFTS).read_bytes().count(b"\n") if (out / DRAFTS).is_file() else 0
    if not is_whole and len(growth.drafts) < before:
        return
    lines = [orjson.dumps(plain(each), option=orjson.OPT_APPEND_NEWLINE) for each in growth.drafts]
    write_durably(out / DRAFTS, lines)
    counts = {"tried": growth.tried, "accepted": len(growth.drafts), "rejected": growth.rejected}
    write_object(out / RECORD, {**record, "counts": counts})


def _told(out: Path, growth: Growth, log: CallLog, recipe: Recipe, began: float) -> Grown:
    doubts = [draft.doubt for draft in growth.drafts]
    return Grown(
        out=str(out),
        drafts=growth.tried,
        accepted=len(growth.drafts),
        rejected=dict(growth.rejected.most_common()),
        calls=len(log),
        asked=log.asked,
        recipe=recipe.name,
        mean_doubt=sum(doubts) / len(doubts) if doubts else None,
        ended=growth.ended,
        wall_s=time.monotonic() - began,
    )
