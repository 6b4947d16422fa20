"""What ``import timedblock`` costs a process that starts, and that it imports no driver.

python -m benchmarks.imports [--json FILE]

The clean environment is a new virtual environment that sees timedblock and what it depends on,
and nothing else. Whether a driver is imported is asked where the drivers *can* be imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib import metadata, util
from pathlib import Path

from benchmarks import _harness as harness

RUNS = 10
# What a wrapper of the project may import, one day, and `import timedblock` never.
DRIVERS = ("pymemcache", "pika", "kazoo", "elasticsearch", "cassandra", "pymysql", "nsq")
HEAVY = ("rich", "click", "asyncio", "concurrent.futures", "ssl", "prometheus_client")

TIME_IT = """
import time
started = time.perf_counter()
import timedblock
print(time.perf_counter() - started)
"""
LOADED = "import json, sys; import timedblock; print(json.dumps(sorted(sys.modules)))"


def runtime_dependencies() -> list[str]:
    """The distributions that a plain install of timedblock brings, transitively."""
    found: list[str] = []
    waiting = ["tenacity", "pybreaker", *(["tomli"] if sys.version_info < (3, 11) else [])]
    while waiting:
        name = waiting.pop()
        found.append(name)
        for line in metadata.requires(name) or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker and requirement.strip().isidentifier():
                waiting.append(requirement.strip())
    return found


def clean_environment(folder: Path) -> Path:
    """A new virtual environment with links to timedblock and its dependencies; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    package = util.find_spec("timedblock")
    assert package is not None and package.submodule_search_locations is not None
    sources = [Path(package.submodule_search_locations[0])]
    for name in runtime_dependencies():
        files = metadata.files(name) or []
        tops = {file.parts[0] for file in files if file.suffix == ".py"}
        sources += [Path(str(metadata.distribution(name).locate_file(top))) for top in tops]
    for source in sources:
        (site / source.name).symlink_to(source)
    return folder / "bin" / "python"


def run(python: Path, code: str) -> str:
    """What ``python -I -c code`` prints."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = [str(python), "-I", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def process(python: Path, code: str) -> float:
    """Seconds from start to end of an interpreter."""
    started = time.perf_counter()
    run(python, code)
    return time.perf_counter() - started


def timings(python: Path) -> list[harness.Figure]:
    """The import alone, and a whole process less a bare one."""
    run(python, TIME_IT)  # writes the bytecode
    alone, whole, bare = [], [], []
    for _ in range(RUNS):
        alone.append(float(run(python, TIME_IT)) * 1e3)
        bare.append(process(python, "pass") * 1e3)
        whole.append(process(python, "import timedblock") * 1e3)
    differences = [a - b for a, b in zip(whole, bare, strict=True)]
    note = f"median {statistics.median(alone):.3g} ms"
    start = f"bare start {min(bare):.3g} ms"
    return [
        harness.absolute("import timedblock", min(alone), "ms", 60.0, high=max(alone), note=note),
        harness.shown(
            "process with the import - bare process",
            statistics.median(differences),
            "ms",
            low=min(differences),
            high=max(differences),
            note=start,
        ),
    ]


def loaded(python: Path) -> list[harness.Figure]:
    """Which drivers came with the import, and which heavy modules (printed, not judged)."""
    here = set(json.loads(run(Path(sys.executable), LOADED)))
    drivers = sorted(here & set(DRIVERS))
    there = set(json.loads(run(python, LOADED)))
    heavy = ", ".join(sorted(there & set(HEAVY))) or "none"
    note = ", ".join(drivers) or f"{sum(util.find_spec(d) is not None for d in DRIVERS)} installed"
    return [
        harness.count("drivers imported by timedblock", len(drivers), 0, note=note),
        harness.shown("modules imported in all", len(there), "", note=f"heavy ones: {heavy}"),
    ]


def measure(_: argparse.Namespace) -> list[harness.Figure]:
    """Both, in one new environment."""
    with tempfile.TemporaryDirectory() as folder:
        python = clean_environment(Path(folder))
        return timings(python) + loaded(python)


if __name__ == "__main__":
    sys.exit(harness.main("imports", __doc__, measure))
