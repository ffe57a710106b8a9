"""Settings that are declared once: fields of a frozen dataclass that flags are made of."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Any


def setting(default: Any, help: str, metavar: str | None = None, *flags: str) -> Any:
    """A field of a record of settings: its default, and what its flag's help says.

    `flags` are its names on the command line where the field's own name will not do.
    """
    return field(default=default, metadata={"help": help, "metavar": metavar, "flags": flags})


def asked_for(settings: Any) -> dict[str, Any]:
    """What a record of settings asks for, as the flags are called: all but what is empty."""
    values = {name.replace("_", "-"): value for name, value in asdict(settings).items()}
    return {k: v for k, v in values.items() if v is not None and v is not False and v != ()}
