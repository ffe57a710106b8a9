"""A recipe: how a teacher is asked for a draft, what it may answer, what row comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mlx_itune.dataset.schema import faults_by, read_schema
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import did_you_mean, listing

_SHIPPED = Path(__file__).with_name("recipes")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_TEMPLATES = "system prompt row_system user assistant distinct found again".split()
# What materials fill in, besides what the teacher answers.
_MATERIAL = frozenset("passage heading label labels style user assistant".split())

Share = Annotated[float, Interval(ge=0, le=1)]
Whole = Annotated[int, Interval(ge=0, le=1 << 16)]


@dataclass(frozen=True)
class Recipe:
    """`prompt`, `user`, ... are texts with {fields}: those of the material, and of the answer,
    {answer}, the keys of its schema, or {label}. distinct: what must not repeat among
    drafts; found: what must be in the passage; again: how a second sample is asked for, the first
    prompt unless given; again_with: what it should say. A schema holds answers to it, and {json} is
    then all of one."""

    prompt: str
    assistant: str
    source: Literal["passages", "rows"] = "passages"
    about: str = ""
    system: str = ""
    user: str = "{passage}"
    row_system: str = ""
    distinct: str = "{passage}"
    found: str = ""
    min_found: Share = 0.0
    again: str = ""
    again_with: Literal["answer", "yes", "no"] = "answer"
    styles: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    schema: dict[str, Any] = field(default_factory=dict)
    shots: Whole = 4
    min_words: Whole = 1
    max_words: Whole = 150
    forbidden: tuple[str, ...] = ()
    max_rouge: Share = 0.7
    temperature: Annotated[float, Interval(ge=0, le=10)] = 0.8
    top_p: Share = 0.95
    max_tokens: Annotated[int, Interval(ge=1, le=1 << 15)] = 200
    name: str = ""

    @property
    def held(self) -> dict[str, Any] | None:
        """The JSON Schema that answers are held to."""
        if self.schema:
            return self.schema
        if "{label}" in self.assistant and self.labels and self.source == "passages":
            return {"enum": [*self.labels]}
        return None

    @property
    def held_again(self) -> dict[str, Any] | None:
        """That of the second sample."""
        if not self.again:
            return self.held
        if self.again_with != "answer":
            return {"enum": ["yes", "no"]}
        return {"enum": [*self.labels]} if "{label}" in self.assistant else None

    @property
    def fields(self) -> frozenset[str]:
        """What its texts may name."""
        return _MATERIAL | {"answer", "json", *self.schema.get("properties", {})}


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A text with its {fields} filled in, once: what is filled in is not looked at again."""
    return _FIELD.sub(lambda found: fields.get(found[1], ""), template).strip()


def shipped() -> dict[str, Recipe]:
    """The recipes that come with the package, by file name."""
    return {path.stem: _read(path) for path in sorted(_SHIPPED.glob("*.toml"))}


def find_recipe(
    name: str | None, source: str, *, schema: Path | None = None, labels: tuple[str, ...] = ()
) -> Recipe:
    """The recipe of a name, or a user's own file, for this kind of source. Raises UsageError, with
    file and line, DataError for a schema that is none, StorageError."""
    if name and (name.endswith(".toml") or "/" in name):
        made = _read(Path(name))
    else:
        fitting = {
            stem.removesuffix(".rows"): recipe
            for stem, recipe in shipped().items()
            if recipe.source == source
        }
        if name not in fitting:
            near = name and did_you_mean(name, fitting)
            said = f"--recipe: there is no {name!r} for {source}" if name else "--recipe is needed"
            hint = f"{near or 'one'} of {listing(fitting, 20)}, or your own FILE.toml"
            raise UsageError(said, hint=hint)
        made = fitting[str(name)]
    if made.source != source:
        raise UsageError(f"--recipe {name}: is for {made.source}, and the source has {source}")
    made = replace(made, schema=read_schema(schema) if schema else made.schema)
    made = replace(made, labels=labels or made.labels)
    if made.source == "passages" and "{label}" in made.assistant and len(made.labels) < 2:
        hint = "--label NAME for each, or `labels = [...]` in a recipe of your own"
        raise UsageError(f"--recipe {name}: has no labels to choose from", hint=hint)
    return made


def _read(path: Path) -> Recipe:
    values: dict[str, Any] = from_toml(path, Recipe)
    for name in ("prompt", "assistant"):
        if name not in values:
            raise UsageError(f"{name} is missing", where=str(path))
    recipe = Recipe(**{**values, "name": values.get("name") or path.stem.removesuffix(".rows")})
    if recipe.schema:
        faults_by(recipe.schema, where=str(path))
    text = path.read_text(encoding="utf-8")
    for name in _TEMPLATES:
        for field_name in _FIELD.findall(getattr(recipe, name)):
            if field_name not in recipe.fields:
                near = did_you_mean(field_name, recipe.fields)
                lines = text[: max(0, text.find("{" + field_name + "}"))].count("\n") + 1
                hint = near or f"known are {listing(sorted(recipe.fields), 20)}"
                what = f"{name}: there is no {{{field_name}}}"
                raise UsageError(what, where=f"{path}:{lines}", hint=hint)
    return recipe
