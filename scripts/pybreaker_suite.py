#!/usr/bin/env python3
"""Runs pybreaker's own tests with timedblock's `CircuitBreaker` in place of the original.

pybreaker's packages ship no tests, so a checkout is needed (https://github.com/danielfm/pybreaker,
v1.4.1), and tornado and fakeredis beside it. A test that needs what is different by design stands
in `DIFFERENT` with its reason; it runs too, so that a difference that is gone is seen.

Exit code 1: a test fails that isn't listed. 2: something is missing.

    python scripts/pybreaker_suite.py CHECKOUT
    python scripts/pybreaker_suite.py CHECKOUT --baseline       # pybreaker itself, for comparison
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

EVIDENCE = "calls in flight together are one piece of evidence, so fewer failures count"
BACKGROUND = "a storage that isn't in this process is read in the background, within 1 s"
LISTENERS = "no lock is held while listeners run: one that counts must lock by itself"

#: What differs by design, by test.
DIFFERENT: dict[str, str] = {
    "CircuitBreakerTestCase::test_no_tornado_raises": "asyncio's coroutines need no tornado",
    "CircuitBreakerTestCase::test_notify_called_on_state_change": (
        "asks for notify=True of a private constructor; listeners are told all the same"
    ),
    "CircuitBreakerRedisTestCase::test_fallback_state": BACKGROUND,
    "CircuitBreakerRedisTestCase::test_missing_state": BACKGROUND,
    "CircuitBreakerThreadsTestCase::test_fail_thread_safety": EVIDENCE,
    "CircuitBreakerThreadsTestCase::test_fail_max_thread_safety": EVIDENCE,
    "CircuitBreakerThreadsTestCase::test_success_thread_safety": LISTENERS,
    "CircuitBreakerRedisConcurrencyTestCase::test_fail_thread_safety": EVIDENCE,
    "CircuitBreakerRedisConcurrencyTestCase::test_success_thread_safety": LISTENERS,
}


class Outcomes:
    """The pytest plugin: keeps each test's outcome."""

    def __init__(self) -> None:
        self.by_test: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::", 1)[-1]
        if report.when == "call" or report.outcome != "passed":
            self.by_test[name] = report.outcome
            self.details[name] = str(report.longrepr)


def run(tests: Path) -> Outcomes:
    """Run the file; its own configuration is not read."""
    outcomes = Outcomes()
    options = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-W", "ignore"]
    pytest.main([*options, "-c", "/dev/null", f"--rootdir={tests.parent}", str(tests)], [outcomes])
    return outcomes


def report(outcomes: Outcomes, different: dict[str, str]) -> int:
    """Print the figures; the exit code."""
    results = list(outcomes.by_test.values())
    print(f"collected {len(results)}, passed {results.count('passed')}", end=", ")
    print(f"skipped {results.count('skipped')}, failed {results.count('failed')}")
    unexpected = 0
    for name, outcome in sorted(outcomes.by_test.items()):
        if outcome == "failed":
            reason = different.get(name)
            unexpected += reason is None
            print(f"  {name}: {reason or 'NOT EXPECTED'}")
            print("" if reason else outcomes.details[name], end="")
        elif name in different:
            print(f"  {name}: passed this time ({different[name]})")
    return 1 if unexpected or not results else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of pybreaker")
    parser.add_argument("--baseline", action="store_true", help="run pybreaker's own class")
    arguments = parser.parse_args()
    tests = arguments.checkout / "tests" / "pybreaker_test.py"
    missing = [name for name in ("tornado", "fakeredis") if not importlib.util.find_spec(name)]
    if missing or not tests.is_file():
        print(f"missing: {', '.join(missing) or tests}", file=sys.stderr)
        return 2
    import pybreaker

    if not arguments.baseline:
        from timedblock import CircuitBreaker

        pybreaker.CircuitBreaker = CircuitBreaker  # type: ignore[misc]
    return report(run(tests), {} if arguments.baseline else DIFFERENT)


if __name__ == "__main__":
    sys.exit(main())
