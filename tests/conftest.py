"""What every test shares: the rules for CI and for wall time, hypothesis, the check for leaks."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.stalls import STALL, Stalls
from timedblock.endpoint import endpoints
from timedblock.net.resolve import RESOLVER
from timedblock.testing import leaks

pytest_plugins = ["pytester"]

IN_CI = os.environ.get("CI", "").lower() == "true"

# A slow example says nothing on a shared machine, so no profile has a deadline. CI replays the
# same examples in every run; `HYPOTHESIS_PROFILE=explore` looks for new ones.
_QUIET = [HealthCheck.too_slow]
settings.register_profile("dev", deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", parent=settings.get_profile("dev"), max_examples=200, print_blob=True
)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=_QUIET
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "dev"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test of a real server has to run: its skip is a failure."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and not expected and item.get_closest_marker("server"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where real servers must be there: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI no module may skip itself whole: that would hide the markers of its tests."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"module skipped in CI: {report.longrepr}"
    return report


# A test that measures wall time is run again if it failed while the machine stood still: what it
# measured then was the machine. Nothing else is ever run again.
_STALLS = pytest.StashKey[Stalls]()


def pytest_configure(config: pytest.Config) -> None:
    """The probe of stalls runs beside the tests. Ctrl-C ends what the tests start, also when a
    shell started us in the background, where it isn't heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stalls = config.stash[_STALLS] = Stalls()
    config.add_cleanup(stalls.end)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only tests of wall time are run again."""
    again = pytest.mark.flaky(reruns=2, condition=config.stash[_STALLS].seen)
    for item in items:
        if item.get_closest_marker("wall"):
            item.add_marker(again)


def pytest_collection_finish() -> None:
    """What was collected stays: the collector needn't look at it before every test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What the machine did before this test is not its excuse, and no earlier test is its past.

    The kernel gives ports again. A client's blocks are a cycle with it, and would keep the breaker
    of their port until they are collected; the resolver would keep the addresses of its name.
    """
    item.config.stash[_STALLS].forget()
    _forget_tracebacks()
    RESOLVER.forget()
    if endpoints():
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What a test made ends with it, also when it failed: the next one may count blocks."""
    result = yield
    getattr(item, "_rerun_condition_excinfos", {}).clear()  # pytest-rerunfailures keeps them
    return result


def _forget_tracebacks() -> None:
    """pytest keeps the last failure for a debugger, and with it every object of that test."""
    if hasattr(sys, "last_value"):
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A test that was run again is named, with what it had failed for."""
    for report in terminalreporter.stats.get("rerun", []):
        line = f"{report.nodeid} was run again: the machine stood still for over {STALL:g} s"
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash else report.longrepr).partition("\n")[0]
        terminalreporter.write_line(f"{line}; it failed with {why}")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves no thread and no descriptor behind."""
    with leaks.no_leaks():
        yield


@pytest.fixture
def untraced() -> Iterator[None]:
    """No tracer, for interrupts and for threads that take turns every few microseconds.

    Coverage's takes a lock in Python, which an interrupt would leave locked, and CPython 3.11 can't
    install it in two threads at once.
    """
    before = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    yield
    sys.settrace(before[0])
    threading.settrace(before[1])  # type: ignore[arg-type]
