"""The public names are the ones in public_api.txt, so that a change of them is seen in review.

After a wanted change: `python tests/test_public_api.py > tests/public_api.txt`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

LISTED = Path(__file__).with_name("public_api.txt")

# Modules that users import from. Everything else in timedblock is ours to move.
PUBLIC_MODULES = (
    "timedblock",
    "timedblock.errors",
    "timedblock.events",
    "timedblock.faults",
    "timedblock.memcache",
    "timedblock.testing",
)


def _members(cls: type) -> set[str]:
    """Public attributes that our own classes define, inherited ones of ours included."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "timedblock":
            names |= set(vars(base)) | set(getattr(base, "__annotations__", ()))
            if dataclasses.is_dataclass(base):
                names |= {field.name for field in dataclasses.fields(base)}
    return {name for name in names if not name.startswith("_")}


def _public(module: ModuleType) -> Iterator[str]:
    for name in module.__all__:
        value = getattr(module, name)
        yield f"{module.__name__}.{name}"
        home = "timedblock" if hasattr(importlib.import_module("timedblock"), name) else None
        if inspect.isclass(value) and home in (None, module.__name__):
            yield from (f"{module.__name__}.{name}.{member}" for member in _members(value))


def public_names() -> list[str]:
    """Every public name, sorted, one a line: modules' names and their classes' members."""
    return sorted(
        {name for module in PUBLIC_MODULES for name in _public(importlib.import_module(module))}
    )


def test_public_names_are_the_listed_ones() -> None:
    """Nothing becomes public, or stops being it, without a change of public_api.txt."""
    assert public_names() == LISTED.read_text().split()


if __name__ == "__main__":
    print("\n".join(public_names()))
