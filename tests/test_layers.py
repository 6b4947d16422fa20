"""The layers of the design hold: an import goes down, or stays on its floor, never up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module belongs to the longest name here that it starts with. `timedblock` itself (the
# re-exports) is on the top floor.
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("child", "clock", "ending", "errors", "events", "fork", "weak"),
    1: ("deadline", "latency", "tags"),
    2: ("policy", "faults.plan", "faults.flips", "faults.vocabulary"),
    3: (
        "call",
        "block",
        "operation",
        "coroutines",
        "registry",
        "stats",
        "snapshot",
        "endpoint",
        "net",
        "faults",
    ),
    4: ("memcache", "rabbitmq"),
    5: (
        "audit",
        "circuitbreaker",
        "monitor",
        "metrics",
        "middleware",
        "config",
        "drill",
        "simulate",
        "testing",
        "faults.command",
        "faults.inject_command",
        "cli",
    ),
}
# One wrapper a store, and they never import each other.
STORES = LAYERS[4]

DRIVERS = {"pymemcache", "pika", "kazoo", "elasticsearch", "cassandra", "pymysql", "nsq", "redis"}
# Imported only by what needs them: Retry, the command line, the drill, the simulator, metrics.
LATE = {
    "tenacity",
    "click",
    "rich",
    "simpy",
    "prometheus_client",
    "opentelemetry",
    "jinja2",
    "matplotlib",
}

SOURCE = Path(__file__).parent.parent / "src" / "timedblock"


def name_of(path: Path) -> str:
    """The module's name below `timedblock`; empty for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def layer_of(module: str) -> int:
    """The layer of a module, by the longest name in the table that it starts with."""
    if not module:
        return max(LAYERS)
    matches = [
        (len(name), layer)
        for layer, names in LAYERS.items()
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert matches, f"timedblock.{module} is in no layer: add it to LAYERS"
    return max(matches)[1]


def _target(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The absolute module that a `from` import names."""
    if not node.level:
        return node.module or ""
    package = ["timedblock", *module.split(".")] if module else ["timedblock"]
    keep = len(package) - node.level + (path.name == "__init__.py")
    return ".".join([*package[:keep], *([node.module] if node.module else [])])


def _imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything of timedblock that a module imports, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            target = _target(module, path, node)
            for alias in node.names:
                below = f"{target}.{alias.name}".removeprefix("timedblock.")
                yield node.lineno, f"{target}.{alias.name}" if below in MODULES else target


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and name, below `timedblock`, of each module of ours that a module imports."""
    for line, name in _imported(module, path):
        if name == "timedblock" or name.startswith("timedblock."):
            yield line, name.removeprefix("timedblock").removeprefix(".")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """A module imports from its own layer or a lower one."""
    up = [
        f"timedblock.{module}:{line} (layer {layer_of(module)}) imports "
        f"timedblock.{name} (layer {layer_of(name)})"
        for line, name in imports(module, MODULES[module])
        if layer_of(name) > layer_of(module)
    ]
    assert not up, "\n".join(up)


@pytest.mark.parametrize("store", [name for name in STORES if name in MODULES])
def test_stores_do_not_import_each_other(store: str) -> None:
    """The wrapper of one store knows nothing of another's."""
    others = set(STORES) - {store}
    for line, name in imports(store, MODULES[store]):
        assert name.split(".")[0] not in others, f"timedblock.{store}:{line} imports {name}"


def test_relative_and_absolute_imports_are_both_seen(tmp_path: Path) -> None:
    """The check itself resolves every spelling of an import."""
    source = tmp_path / "deadline.py"
    source.write_text(
        "import timedblock.block\nfrom timedblock import block\nfrom . import block\n"
        "from .block import TimedBlock\nimport threading\n"
    )
    assert {name for _, name in imports("deadline", source)} == {"block"}
    assert len(list(imports("deadline", source))) == 4


def test_import_brings_no_driver() -> None:
    """`import timedblock` loads no driver of a store, and nothing that only some users need."""
    code = "import sys, timedblock; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "timedblock" in loaded
    assert not (DRIVERS | LATE) & set(loaded)
