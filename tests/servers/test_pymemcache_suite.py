"""The measure of the drop-in: pymemcache's own tests on our classes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.servers.memcached import Address

SCRIPT = Path(__file__).parents[2] / "scripts" / "pymemcache_suite.py"


def _run(*options: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.server
def test_pymemcaches_own_tests_pass_on_our_classes(memcached_address: Address) -> None:
    """All its integration tests, and 90 % of the clients', pass on a real memcached."""
    host, port = memcached_address
    _run("--server", host, "--port", str(port))


def test_pymemcaches_own_tests_pass_on_the_embedded_server() -> None:
    """pymemcache's own classes and their tests find the embedded server like the real one."""
    _run("--baseline", "--embedded")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pymemcache_suite", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"test_client.py::t0": "failed"}, "failed: test_client.py::t0"),
        ({"test_client.py::excluded": "passed"}, "stale exclusion, it passes"),
        ({"test_integration.py::t0": "failed"}, "test_integration.py: 95.0% pass, 100% are needed"),
        ({f"test_client.py::t{n}": "failed" for n in range(2)}, "90% are needed"),
    ],
    ids=["all-well", "a-failure", "stale", "integration", "too-few"],
)
def test_the_script_tells_what_is_wrong(
    script: ModuleType, change: dict[str, str], problem: str | None
) -> None:
    """It finds nothing in a good run, and names a failure, a stale exclusion, a low share."""
    suite = script.Suite({"test_client.py::excluded": "a private attribute"})
    files = ("test_client.py", "test_client_hash.py", "test_integration.py")
    suite.outcomes = {f"{file}::t{n}": "passed" for file in files for n in range(20)}
    suite.outcomes["test_client.py::excluded"] = "failed"
    suite.outcomes.update(change)
    suite.details = dict.fromkeys(suite.outcomes, "why")
    found = list(script._problems(suite, script._table(suite)))
    assert not found if problem is None else any(problem in line for line in found), found


def test_the_script_misses_an_excluded_test_that_is_gone(script: ModuleType) -> None:
    """An exclusion for a test that no longer exists is stale."""
    suite = script.Suite({"test_client.py::gone": "a private attribute"})
    suite.outcomes = {f"{file}::t": "passed" for file in script.NEEDED}
    found = list(script._problems(suite, script._table(suite)))
    assert found == ["stale exclusion, no such test: test_client.py::gone"]
