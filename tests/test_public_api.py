"""The public names are the ones in public_api.txt, so that a change of them is seen in review.

After a wanted change: `python tests/test_public_api.py > tests/public_api.txt`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

LISTED = Path(__file__).with_name("public_api.txt")

# Modules that users import from. Everything else in timedblock is ours to move.
PUBLIC_MODULES = (
    "timedblock",
    "timedblock.circuitbreaker",
    "timedblock.config",
    "timedblock.errors",
    "timedblock.events",
    "timedblock.faults",
    "timedblock.faults.injector",
    "timedblock.faults.netfilter",
    "timedblock.faults.process",
    "timedblock.faults.vocabulary",
    "timedblock.faults.proxy",
    "timedblock.memcache",
    "timedblock.metrics.otel",
    "timedblock.metrics.prometheus",
    "timedblock.middleware",
    "timedblock.monitor",
    "timedblock.rabbitmq",
    "timedblock.simulate",
    "timedblock.testing",
    "timedblock.testing.fixtures",
    "timedblock.testing.rabbitmq",
)


def _names(module: ModuleType) -> list[str]:
    """What a module says is public; one that says nothing: what it defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    return list(getattr(module, "__all__", own))


def public_names() -> list[str]:
    """Every public name with its module, sorted."""
    return sorted(
        f"{module}.{name}"
        for module in PUBLIC_MODULES
        for name in _names(importlib.import_module(module))
    )


def test_public_names_are_the_listed_ones() -> None:
    """Nothing becomes public, or stops being it, without a change of public_api.txt."""
    assert public_names() == LISTED.read_text().split()


def test_public_names_are_there() -> None:
    """What a module says is public can be imported from it."""
    for module in map(importlib.import_module, PUBLIC_MODULES):
        missing = [name for name in _names(module) if not hasattr(module, name)]
        assert not missing, f"{module.__name__} has no {missing}"


if __name__ == "__main__":
    print("\n".join(public_names()))
