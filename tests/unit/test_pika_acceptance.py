"""The script that runs pika's acceptance tests tells a good run from a bad one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "pika_acceptance.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pika_acceptance", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"T1.test": "failed"}, "failed: T1.test"),
        ({"Known.test": "passed"}, "stale exclusion, it passes: Known.test"),
        ({f"T{n}.test": "failed" for n in range(3)}, "82.4% pass, 90% are needed"),
    ],
    ids=["all-well", "a-failure", "stale", "too-few"],
)
def test_the_script_tells_what_is_wrong(
    script: ModuleType, change: dict[str, str], problem: str | None
) -> None:
    """It finds nothing in a good run, and names a failure, a stale exclusion, a low share."""
    outcomes = {f"T{number}.test": "passed" for number in range(16)}
    outcomes |= {"Known.test": "failed", "Skipped.test": "skipped", **change}
    found = list(script.problems(outcomes, {"Known.test": "why"}))
    if problem is None:
        assert not found
    elif "needed" in problem:
        assert any("pass, 90% are needed" in line for line in found), found
    else:
        assert problem in found


def test_the_script_misses_an_excluded_test_that_is_gone(script: ModuleType) -> None:
    """An exclusion for a test that no longer exists is stale; and no test at all is a problem."""
    outcomes = {f"T{number}.test": "passed" for number in range(20)}
    assert list(script.problems(outcomes, {"Gone.test": "why"})) == [
        "stale exclusion, no such test: Gone.test"
    ]
    assert list(script.problems({}, {})) == ["no test was run"]


def test_the_script_wants_a_checkout_of_the_pika_that_is_installed(tmp_path: Path) -> None:
    """Without one, or with another version: exit code 2 and the reason."""
    (tmp_path / "pika").mkdir()
    (tmp_path / "pika" / "__init__.py").write_text("__version__ = '0.1'\n")
    for reason in ("has no tests/acceptance", "is not of pika"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        (tmp_path / "tests" / "acceptance").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / "acceptance" / "blocking_adapter_test.py").touch()
