"""What every test shares: the rule for CI, hypothesis profiles, and the check for leaks."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

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


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves no thread and no descriptor behind."""
    with leaks.no_leaks():
        yield
