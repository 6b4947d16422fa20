#!/usr/bin/env python3
"""Runs pika's acceptance tests with timedblock's BlockingConnection in place of pika's.

They are in pika's repository and not on PyPI, so this takes the path of a checkout, of the version
that is installed. `tests/acceptance/blocking_adapter_test.py` is imported from there after
timedblock's class has taken the name `pika.BlockingConnection`, on a broker that is started for it.
Each exclusion has its reason in `EXCLUDED`; excluded tests run too, so that an exclusion that is no
longer needed is found.

Exit code 1: less than 90 % pass, a test fails that isn't excluded, or an excluded one passes. 2: no
checkout, no broker, or another pika is installed.

    git clone --branch 1.4.4 https://github.com/pika/pika CHECKOUT
    python scripts/pika_acceptance.py CHECKOUT                      # starts Debian's RabbitMQ
    python scripts/pika_acceptance.py CHECKOUT --server 10.0.0.3:5672
    python scripts/pika_acceptance.py CHECKOUT --baseline           # pika itself, for comparison
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import logging
import re
import sys
import types
import unittest
from collections.abc import Iterator
from pathlib import Path

TESTS = Path("tests/acceptance/blocking_adapter_test.py")
NEEDED = 0.90
#: Where the tests expect the broker.
_PORT = "{'port': 5672}"

#: Tests of pika 1.4 that fail with pika's own class too, on Debian's RabbitMQ 3.10.
UPSTREAM: dict[str, str] = {
    "TestInvalidExchangeTypeRaisesConnectionClosed.test": (
        "wants the channel closed with 406, as RabbitMQ 4 does; 3.10 closes the connection with 503"
    ),
}

#: Tests that can't pass on our class, each with the reason.
EXCLUDED: dict[str, str] = {}

Address = tuple[str, int]


class Result(unittest.TestResult):
    """Keeps each test's outcome by its name; a test that cleans up badly has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes[name_of(test)] = "passed"

    def _keep(self, test: unittest.TestCase, outcome: str, detail: str) -> None:
        self.outcomes[name_of(test)] = outcome
        self.details[name_of(test)] = detail

    def addError(self, test: unittest.TestCase, err: object) -> None:  # type: ignore[override]
        super().addError(test, err)  # type: ignore[arg-type]
        self._keep(test, "failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: object) -> None:  # type: ignore[override]
        super().addFailure(test, err)  # type: ignore[arg-type]
        self._keep(test, "failed", self.failures[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._keep(test, "skipped", reason)


def name_of(test: unittest.TestCase) -> str:
    """`TestBasicGet.test`."""
    return ".".join(test.id().split(".")[-2:])


def problems(outcomes: dict[str, str], excluded: dict[str, str]) -> Iterator[str]:
    """Each reason for exit code 1, as one line."""
    judged = [name for name, outcome in outcomes.items() if outcome != "skipped"]
    passed = [name for name in judged if outcomes[name] == "passed"]
    for name in sorted(set(judged) - set(passed) - set(excluded)):
        yield f"failed: {name}"
    for name in sorted(set(excluded) & set(passed)):
        yield f"stale exclusion, it passes: {name}"
    for name in sorted(set(excluded) - set(outcomes)):
        yield f"stale exclusion, no such test: {name}"
    if not judged:
        yield "no test was run"
    elif len(passed) < NEEDED * len(judged):
        yield f"{len(passed) / len(judged):.1%} pass, {NEEDED:.0%} are needed"


def report(result: Result, excluded: dict[str, str]) -> int:
    """Print what came of it; the exit code."""
    outcomes = result.outcomes
    found = list(problems(outcomes, excluded))
    for name in sorted(set(outcomes) - set(excluded)):
        if outcomes[name] == "failed":
            print(result.details[name])
    for name, reason in sorted(excluded.items()):
        print(f"excluded: {name}: {reason}")
    for problem in found:
        print(problem)
    count = {
        "run": sum(one != "skipped" for one in outcomes.values()),
        "passed": sum(one == "passed" for one in outcomes.values()),
        "failed": sum(one == "failed" and name not in excluded for name, one in outcomes.items()),
        "excluded": sum(name in excluded for name in outcomes),
        "skipped": sum(one == "skipped" for one in outcomes.values()),
    }
    print(", ".join(f"{name} {number}" for name, number in count.items()))
    return 1 if found else 0


def _substitute() -> None:
    """Our class takes the names that the tests use."""
    import pika
    from pika.adapters import blocking_connection

    from timedblock import rabbitmq

    for module in (pika, pika.adapters, blocking_connection):
        module.BlockingConnection = rabbitmq.BlockingConnection  # type: ignore[attr-defined]
    blocking_connection.BlockingChannel = rabbitmq.BlockingChannel  # type: ignore[misc]


def _load(checkout: Path, address: Address) -> types.ModuleType:
    """The tests, with `address` in place of the broker that they expect on port 5672."""
    sys.path.insert(0, str(checkout))
    source = (checkout / TESTS).read_text()
    if _PORT not in source:
        raise SystemExit(f"{TESTS} does not name its broker by {_PORT} any more")
    source = source.replace(_PORT, f"{{'port': {address[1]}}}")
    source = source.replace("@127.0.0.1:", f"@{address[0]}:")
    name = "tests.acceptance.blocking_adapter_test"
    importlib.import_module("tests.acceptance")
    module = types.ModuleType(name)
    module.__file__ = str(checkout / TESTS)
    sys.modules[name] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def _own_broker() -> Iterator[Address]:
    """Debian's RabbitMQ, on a free port of loopback."""
    from timedblock.testing import rabbitmq

    reason = rabbitmq.why_not()
    if reason is not None:
        print(f"{reason}, or give --server HOST:PORT", file=sys.stderr)
        raise SystemExit(2)
    with rabbitmq.Broker() as broker:
        yield broker.address


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of pika's repository")
    parser.add_argument("--server", help="HOST:PORT of a RabbitMQ; without it one is started")
    parser.add_argument("--baseline", action="store_true", help="test pika's own class")
    parser.add_argument("--only", default="", help="run the tests whose names contain this")
    return parser.parse_args()


def _wrong(checkout: Path) -> str | None:
    """Why these tests say nothing about the pika that is installed, or None."""
    import pika

    if not (checkout / TESTS).exists():
        return f"{checkout} has no {TESTS}"
    found = re.search(r"__version__ = '([^']+)'", (checkout / "pika/__init__.py").read_text())
    if found is None or found.group(1) != pika.__version__:
        return f"the checkout is not of pika {pika.__version__}, which is installed"
    return None


def main() -> int:
    """Run the tests and print what came of them; the exit code."""
    options = _options()
    # the installed pika must be found before the checkout's
    if wrong := _wrong(options.checkout.resolve()):
        print(wrong, file=sys.stderr)
        return 2
    import pika

    logging.getLogger("pika").setLevel(logging.CRITICAL)
    if not options.baseline:
        _substitute()
    server: contextlib.AbstractContextManager[Address] = _own_broker()
    if options.server:
        host, _, port = options.server.rpartition(":")
        server = contextlib.nullcontext((host, int(port)))
    result = Result()
    with server as address:
        module = _load(options.checkout.resolve(), address)
        suite = unittest.defaultTestLoader.loadTestsFromModule(module)
        for group in suite:
            for test in group:  # type: ignore[union-attr]
                if options.only in test.id():
                    test.run(result)
    upstream = {} if pika.__version__.startswith("1.3.") else UPSTREAM
    excluded = upstream if options.baseline else {**upstream, **EXCLUDED}
    return report(result, {} if options.only else excluded)


if __name__ == "__main__":
    sys.exit(main())
