"""Jobs of the project: `nox -l` lists them, `nox -s NAME` runs one."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "docs", "tests"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# Tests and typed usage are in the tree; timedblock itself is always the built package.
EXTRAS = ".[memcache,rabbitmq,drill,simulate,prometheus,otel]"

#: What CI measures: little time, and no other server.
CORE_FIGURES = ("overhead", "histogram", "concurrency", "imports")


def _install(session: nox.Session, *requirements: str, package: bool = True) -> None:
    files = [part for name in requirements for part in ("-r", f"requirements/{name}.txt")]
    session.install("-q", *([EXTRAS] if package else []), *files)


def _lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


def _docs(session: nox.Session) -> None:
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-E", "docs", "docs/_build/html")


def _tests(session: nox.Session, *arguments: str) -> None:
    session.run("pytest", *(session.posargs or arguments))


def _covered_tests(session: nox.Session) -> None:
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests on the built package, on each Python that is present."""
    _install(session, "test")
    _tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, its formatter, and mypy --strict on src and the typed-usage file."""
    _install(session, "lint")
    _lint(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; a warning is an error."""
    _install(session, "docs")
    _docs(session)


@nox.session
def bench(session: nox.Session) -> None:
    """Print the project's figures, as ratios to the raw client and to peers."""
    _install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def prove(session: nox.Session) -> None:
    """Simulate what the learnt limits promise; fails where a row of the table does not hold."""
    _install(session, "prove")
    session.run("python", "-m", "benchmarks.prove", *session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """Run lint, docs, the tests with coverage, and the figures of the core (ratios as they are,
    absolutes three times), in one environment on the default Python."""
    _install(session, "lint", "docs", "test", "bench")
    _lint(session)
    _docs(session)
    _covered_tests(session)
    session.run("python", "-m", "benchmarks", *CORE_FIGURES, env={"CI": "true"})
