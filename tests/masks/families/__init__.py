"""The families by name."""

from __future__ import annotations

from masks.families import guided, marked, mistral, plain, reasoning, tooled
from masks.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (marked, mistral, plain, reasoning, tooled, guided)
    for family in module.FAMILIES
}
