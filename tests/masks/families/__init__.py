"""The families by name."""

from __future__ import annotations

from masks.families import plain, reasoning, thinking, tooled
from masks.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (plain, reasoning, tooled, thinking)
    for family in module.FAMILIES
}
