#!/usr/bin/env python3
"""Runs pymemcache's own tests with timedblock's classes in place of its three clients.

The wheel of pymemcache ships its tests. This program puts timedblock's `Client`, `PooledClient` and
`HashClient` into `pymemcache.client` before the tests are imported, runs all of them, and prints
for each file how many were collected, passed and excluded. Each exclusion has its reason in
`EXCLUDED`; excluded tests run too, so that an exclusion that is no longer needed is found.

Exit code 1: an integration test doesn't pass, less than 90 % of test_client.py or of
test_client_hash.py passes, a test fails that isn't excluded, or an excluded one passes. 2: no
server, or a package is missing.

    python scripts/pymemcache_suite.py                      # starts Debian's memcached for itself
    python scripts/pymemcache_suite.py --server 10.0.0.3 --port 11211
    python scripts/pymemcache_suite.py --embedded           # timedblock's own embedded server
    python scripts/pymemcache_suite.py --baseline           # pymemcache itself, for comparison
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PINNED = "4.0.0"
NEEDED = {"test_integration.py": 1.0, "test_client.py": 0.90, "test_client_hash.py": 0.90}
# A test that hangs is a failure, not a run without end.
SECONDS_PER_TEST = 30

#: Tests that fail with pymemcache's own classes too.
UPSTREAM: dict[str, str] = {
    "test_benchmark.py::test_bench_delete[pymemcache]": "calls next() on a dict: TypeError",
}

#: Tests that can't pass on our classes, each with the private attribute or behaviour it needs.
EXCLUDED: dict[str, str] = {
    "test_client.py::TestClient::test_serialization": (
        "expects 'noreply' in what set sends by default: default_noreply is False here"
    ),
    "test_client.py::TestPooledClientIdleTimeout::test_free_idle": (
        "its server sends no reply to a set without noreply: default_noreply is False here"
    ),
    "test_client.py::TestClient::test_default_noreply_flush_all": (
        "wants False for the reply '__FAKE_RESPONSE__': here it is a ConnectionLost, as any reply"
        " that can't belong to the request"
    ),
    "test_client.py::TestPooledClient::test_default_noreply_flush_all": (
        "wants False for the reply '__FAKE_RESPONSE__': here it is a ConnectionLost, as any reply"
        " that can't belong to the request"
    ),
    "test_client_hash.py::TestHashClient::test_dead_server_comes_back": (
        "wants the only server in _dead_clients: at most half of the nodes are taken out here"
    ),
    "test_client_hash.py::TestHashClient::test_ignore_exec_set_many": (
        "wants [] (all stored) with ignore_exc when the reply is 'UNKNOWN': here the keys of a node"
        " without an answer count as not stored"
    ),
}

Address = tuple[str, int]


class Suite:
    """The pytest plugin: registers marks, keeps each test's outcome."""

    def __init__(self, excluded: dict[str, str]) -> None:
        self.excluded = excluded
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}
        self.collection_errors: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        for mark in ("unit", "integration", "benchmark"):
            config.addinivalue_line("markers", f"{mark}: a mark of pymemcache's tests")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.collection_errors.append(f"{report.nodeid}: {report.longrepr}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _short(report.nodeid)
        if report.when == "call" or report.outcome != "passed":
            if self.outcomes.get(name) != "failed":
                self.outcomes[name] = report.outcome
            if report.failed:
                self.details[name] = report.longreprtext.strip()

    def names(self, outcome: str, *, excluded: bool) -> list[str]:
        """The tests with this outcome, of those that are excluded or of the others."""
        return sorted(
            name
            for name, found in self.outcomes.items()
            if found == outcome and (name in self.excluded) is excluded
        )


def _short(nodeid: str) -> str:
    """`test_client.py::TestClient::test_x`, wherever pymemcache is installed."""
    path, separator, rest = nodeid.partition("::")
    return f"{Path(path).name}{separator}{rest}"


def _row(suite: Suite, name: str) -> dict[str, int]:
    found = {test: one for test, one in suite.outcomes.items() if test.startswith(f"{name}::")}
    counts = Counter(one for test, one in found.items() if test not in suite.excluded)
    return {
        "collected": len(found),
        "skipped": counts["skipped"],
        "passed": counts["passed"],
        "excluded": sum(test in suite.excluded for test in found),
        "failed": counts["failed"],
    }


def _share(row: dict[str, int]) -> float:
    """Passed, of those that pymemcache doesn't skip itself."""
    judged = row["collected"] - row["skipped"]
    return row["passed"] / judged if judged else 1.0


def _table(suite: Suite) -> dict[str, dict[str, int]]:
    names = {test.partition("::")[0] for test in suite.outcomes}
    return {name: _row(suite, name) for name in sorted(names)}


def _print_table(table: dict[str, dict[str, int]]) -> None:
    columns = ["collected", "skipped", "passed", "excluded", "failed"]
    total = {column: sum(row[column] for row in table.values()) for column in columns}
    print("file".ljust(24) + "".join(column.rjust(11) for column in columns) + "      share")
    for name, row in {**table, "all": total}.items():
        cells = "".join(str(row[column]).rjust(11) for column in columns)
        print(name.ljust(24) + cells + f"{_share(row):.1%}".rjust(11))


def _problems(suite: Suite, table: dict[str, dict[str, int]]) -> Iterator[str]:
    """Each reason for exit code 1, as one line."""
    for error in suite.collection_errors:
        yield f"not collected: {error}"
    for name in suite.names("failed", excluded=False):
        yield f"failed: {name}\n{suite.details[name]}"
    for name in suite.names("passed", excluded=True):
        yield f"stale exclusion, it passes: {name}"
    for name in sorted(set(suite.excluded) - set(suite.outcomes)):
        yield f"stale exclusion, no such test: {name}"
    for name, least in NEEDED.items():
        if name not in table:
            yield f"{name} was not collected"
        elif _share(table[name]) < least:
            yield f"{name}: {_share(table[name]):.1%} pass, {least:.0%} are needed"


def _report(suite: Suite) -> int:
    table = _table(suite)
    for name in sorted(suite.excluded):
        print(f"excluded: {name}: {suite.excluded[name]}")
    problems = list(_problems(suite, table))
    for problem in problems:
        print(problem)
    print()
    _print_table(table)
    return 1 if problems else 0


def _substitute() -> None:
    """Our classes take the names that the tests import. Ours come first: they need the originals.

    `set` and its like wait for the reply by default, where pymemcache's don't: the one changed
    default. Tests that count on the old one are in `EXCLUDED`.
    """
    from pymemcache import client
    from pymemcache.client import base
    from pymemcache.client import hash as hashed

    from timedblock import memcache

    for module in (base, client):
        module.Client = memcache.Client  # type: ignore[misc]
        module.PooledClient = memcache.PooledClient  # type: ignore[misc]
    for module in (hashed, client):
        module.HashClient = memcache.HashClient  # type: ignore[misc]


def _run_tests(suite: Suite, address: Address, count: int) -> None:
    import pymemcache

    tests = Path(pymemcache.__file__).parent / "test"
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tests}"]
    options += [f"--server={address[0]}", f"--port={address[1]}", f"--count={count}"]
    options += [f"--timeout={SECONDS_PER_TEST}", "--import-mode=prepend"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, str(tests)], plugins=[suite])


def _missing_packages() -> list[str]:
    needed = ("pymemcache", "faker", "zstd", "pytest_timeout")
    return [name for name in needed if importlib.util.find_spec(name) is None]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(address: Address, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.02)
    raise SystemExit(f"memcached did not start on {address[0]}:{address[1]}")


@contextlib.contextmanager
def _own_memcached() -> Iterator[Address]:
    """Debian's memcached on a free port of loopback, ended by its pid."""
    binary = shutil.which("memcached") or shutil.which("memcached", path="/usr/bin:/usr/sbin")
    if binary is None:
        print("no memcached here: install it, or give --server and --port", file=sys.stderr)
        raise SystemExit(2)
    address = ("127.0.0.1", _free_port())
    command = [binary, "-u", "nobody", "-l", address[0], "-p", str(address[1])]
    with subprocess.Popen([*command, "-m", "64", "-c", "1024", "-t", "1"]) as process:
        try:
            _wait_for(address, process)
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def _embedded_memcached() -> Iterator[Address]:
    from timedblock.testing.memcached import EmbeddedMemcached

    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        yield server.address


def _server(options: argparse.Namespace) -> contextlib.AbstractContextManager[Address]:
    if options.server:
        return contextlib.nullcontext((options.server, options.port))
    return _embedded_memcached() if options.embedded else _own_memcached()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", help="host of a memcached; without it one is started")
    parser.add_argument("--port", type=int, default=11211)
    parser.add_argument("--embedded", action="store_true", help="use timedblock's own server")
    parser.add_argument("--baseline", action="store_true", help="test pymemcache's own classes")
    parser.add_argument("--count", type=int, default=100, help="rounds of pymemcache's benchmarks")
    return parser.parse_args()


def main() -> int:
    """Run the suite and print its table; the exit code."""
    options = _options()
    if missing := _missing_packages():
        print(f"missing packages: {', '.join(missing)}", file=sys.stderr)
        return 2
    import pymemcache

    if pymemcache.__version__ != PINNED:
        print(f"pymemcache {PINNED} is expected, not {pymemcache.__version__}", file=sys.stderr)
        return 2
    if not options.baseline:
        _substitute()
    suite = Suite(UPSTREAM if options.baseline else {**UPSTREAM, **EXCLUDED})
    with _server(options) as address:
        _run_tests(suite, address, options.count)
    return _report(suite)


if __name__ == "__main__":
    sys.exit(main())
