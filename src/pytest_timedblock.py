"""timedblock's pytest plugin: a store, proxies, faults and health for the tests of a service.

pytest imports this module in every run where timedblock is installed, so it imports nothing of
timedblock (which it stands beside for that reason) until a test or an option asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from timedblock.audit.plugin import PytestAudit
    from timedblock.faults import Fault
    from timedblock.testing import EmbeddedMemcached
    from timedblock.testing.fixtures import Faults, Health, Proxies, Within

MARKER = "timedblock_faults"
FAULT = "timedblock_fault"
_AUDIT: pytest.StashKey[PytestAudit] = pytest.StashKey()
_STORE: pytest.StashKey[EmbeddedMemcached] = pytest.StashKey()
_PROXIES: pytest.StashKey[Proxies] = pytest.StashKey()
_FAULTS: pytest.StashKey[Faults] = pytest.StashKey()


# Options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --timedblock-audit and its neighbours."""
    group = parser.getgroup("timedblock")
    group.addoption(
        "--timedblock-audit",
        action="store_true",
        help="fail if a connection or name look-up is made with no deadline in force; list them",
    )
    group.addoption(
        "--timedblock-audit-ignore",
        action="append",
        default=[],
        choices=("loopback", "unix"),
        help="leave out loopback addresses, or UNIX sockets; repeatable",
    )
    group.addoption(
        "--timedblock-audit-allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out a file, file:line, file:function, library or destination; repeatable",
    )
    group.addoption(
        "--timedblock-audit-app",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="an installed package that is the application, not a library; repeatable",
    )
    parser.addini("timedblock_audit_app", "as --timedblock-audit-app", "args", [])
    parser.addini("timedblock_audit_ignore", "as --timedblock-audit-ignore", "args", [])
    parser.addini("timedblock_audit_allow", "as --timedblock-audit-allow", "linelist", [])
    parser.addini("timedblock_slack", "seconds that a slow machine adds to each limit", default="0")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Record before a conftest.py can connect."""
    _begin_audit(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*faults, target='memcache', proxy=None): run the test under each fault ('all', "
        "or names such as 'hang' and 'latency:0.2'), at the sockets of target, or in the proxy "
        "that the fixture of that name gives",
    )
    _begin_audit(config, config.option)


def _begin_audit(config: pytest.Config, options: Any) -> None:
    # a worker of pytest-xdist records because its environment says so; its controller reports
    worker = "PYTEST_XDIST_WORKER" in os.environ
    if getattr(options, "timedblock_audit", False) and _AUDIT not in config.stash and not worker:
        from timedblock.audit.plugin import PytestAudit

        for name in ("allow", "app"):
            for value in getattr(options, f"timedblock_audit_{name}"):
                if not value.strip():
                    raise pytest.UsageError(f"--timedblock-audit-{name}: {value!r} is empty")
        apps = [*options.timedblock_audit_app, *config.getini("timedblock_audit_app")]
        audit = config.stash[_AUDIT] = PytestAudit(apps)
        config.add_cleanup(audit.close)  # also where a bad option ends the run before it begins


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What the audit found is a failure."""
    audit = session.config.stash.get(_AUDIT, None)
    if audit is None:
        return
    config = session.config
    ignore = [*config.option.timedblock_audit_ignore, *config.getini("timedblock_audit_ignore")]
    allow = [*config.option.timedblock_audit_allow, *config.getini("timedblock_audit_allow")]
    if audit.finish(ignore, allow) and exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What the audit found, by call site."""
    audit = config.stash.get(_AUDIT, None)
    if audit is not None and audit.lines:
        terminalreporter.section("timedblock audit", red=audit.found, green=not audit.found)
        for line in audit.lines:
            terminalreporter.write_line(line)


# Fixtures


@pytest.fixture(scope="session")
def timedblock_store(request: pytest.FixtureRequest) -> Iterator[EmbeddedMemcached]:
    """A memcached in a process of its own, at ``.address``: running and empty for each test that
    asks for it; ``.kill()`` and ``.start()`` end it and bring it back."""
    from timedblock.testing import EmbeddedMemcached

    with EmbeddedMemcached() as store:
        request.config.stash[_STORE] = store
        yield store
        del request.config.stash[_STORE]


@pytest.fixture(scope="session")
def timedblock_proxy(request: pytest.FixtureRequest) -> Iterator[Proxies]:
    """Makes proxies: ``timedblock_proxy(("127.0.0.1", 11211))`` has an ``.address`` to connect to,
    and ``.inject("blackhole")``. Their faults end with each test."""
    from timedblock.testing.fixtures import Proxies

    proxies = request.config.stash[_PROXIES] = Proxies()
    yield proxies
    del request.config.stash[_PROXIES]
    proxies.close()


@pytest.fixture
def timedblock_faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """Makes faults by name: ``timedblock_faults("memcache", "hang")`` at this process's own
    sockets, ``timedblock_faults(proxy, "hang")`` on the wire; until the end of the test, or of a
    ``with`` block."""
    from timedblock.testing.fixtures import Faults

    faults = request.node.stash[_FAULTS] = Faults()
    yield faults
    faults.clear()


@pytest.fixture
def timedblock_fault(request: pytest.FixtureRequest) -> Fault | None:
    """The fault that the marker ``timedblock_faults`` runs this test under, or None."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session")
def timedblock_health(pytestconfig: pytest.Config) -> Health:
    """This process's health, or with ``timedblock_health(url)`` a service's:
    ``.becomes("degraded", within=2)``."""
    from timedblock.testing.fixtures import Health

    return Health(slack=_slack(pytestconfig))


@pytest.fixture(scope="session")
def timedblock_within(pytestconfig: pytest.Config) -> Callable[[float], Within]:
    """``with timedblock_within(0.3):`` fails, and ends, a block that takes more seconds."""
    from timedblock.testing.fixtures import Within

    slack = _slack(pytestconfig)
    return lambda seconds: Within(seconds, slack)


@pytest.fixture
def timedblock_no_leaks() -> Iterator[None]:
    """The test leaves no thread and no descriptor behind."""
    from timedblock.testing.leaks import no_leaks

    with no_leaks():
        yield


def _slack(config: pytest.Config) -> float:
    text = config.getini("timedblock_slack")
    try:
        return float(text)
    except ValueError:
        raise pytest.UsageError(f"timedblock_slack must be seconds, not {text!r}") from None


# The marker, and what ends with a test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each fault of the marker."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None:
        return
    from timedblock.testing import marks

    faults = marks.faults_of(marker)
    if FAULT not in metafunc.fixturenames:
        metafunc.fixturenames.append(FAULT)
    metafunc.parametrize(FAULT, faults.values(), ids=faults.keys(), indirect=True)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The marker's fault is in force while the test runs, not while its fixtures do."""
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return (yield)
    from timedblock.testing import marks

    with marks.in_force(item, marker, FAULT):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """A test's faults end before its fixtures are torn down; the next one finds a fresh store."""
    if (faults := item.stash.get(_FAULTS, None)) is not None:
        faults.clear()
    if (proxies := item.config.stash.get(_PROXIES, None)) is not None:
        proxies.clear()
    result = yield
    store = item.config.stash.get(_STORE, None)
    if store is not None and "timedblock_store" in getattr(item, "fixturenames", ()):
        from timedblock.testing.fixtures import make_fresh

        make_fresh(store)
    return result
