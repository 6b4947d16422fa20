"""`pytest --timedblock-audit`: a run fails where something is asked of the network unlimited."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytester forgets what a run inside this process imported; the next one would have it twice.
import timedblock.audit.plugin
from timedblock import cli
from timedblock.audit import recorder

ASK = """
import socket
PORT = {port}
def ask():
    socket.create_connection(("127.0.0.1", PORT)).close()
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[pytest.Pytester]:
    """An application that connects somewhere, in `app.py`; of an audit nothing stays behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pytester.makeini("[pytest]\npythonpath = .\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pytester.makepyfile(app=ASK.format(port=listener.getsockname()[1]))
        ours = ("PYTHONPATH", recorder.DIRECTORY, recorder.APPS)
        before = {name: os.environ.get(name) for name in ours}
        yield pytester
    assert {name: os.environ.get(name) for name in ours} == before
    assert not list(Path(tempfile.gettempdir()).glob("timedblock-audit-*"))


def test_what_is_found_fails_the_run(project: pytest.Pytester) -> None:
    """Tests that pass are no excuse; the sites are listed, and nothing is on without the option."""
    project.makepyfile(test_it="import app\ndef test_it(): app.ask(); app.ask()")
    result = project.runpytest("--timedblock-audit")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*= timedblock audit =*",
            "timedblock audit: 2 connections or *without a deadline, from 1 place in *",
            "2 × app.py:* in ask connects to 127.0.0.1:* with no deadline: *",
        ]
    )
    plain = project.runpytest()
    assert plain.ret == 0
    assert "audit" not in plain.stdout.str()


def test_what_has_a_deadline_passes(project: pytest.Pytester) -> None:
    """A run without a finding says so, and keeps its exit code."""
    project.makepyfile(
        test_it="""
        import app, timedblock
        def test_it():
            with timedblock.time_limit(5):
                app.ask()
        """
    )
    result = project.runpytest("--timedblock-audit")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["timedblock audit: nothing without a deadline in 1 Python process"]
    )


def test_a_failed_run_stays_failed_and_an_empty_one_is_told(project: pytest.Pytester) -> None:
    """The audit's verdict never hides another one."""
    project.makepyfile(test_it="import app\napp.ask()\ndef test_it(): assert False")
    assert project.runpytest("--timedblock-audit").ret == pytest.ExitCode.TESTS_FAILED
    assert project.runpytest("--timedblock-audit", "--nonsense").ret == pytest.ExitCode.USAGE_ERROR
    none = project.runpytest("--timedblock-audit", "-k", "nothing")
    assert none.ret == pytest.ExitCode.TESTS_FAILED


def test_conftest_and_child_processes_are_audited(project: pytest.Pytester) -> None:
    """From the first import on, and in every Python that a test starts."""
    project.makeconftest("import app, sys; sys.path.insert(0, '.'); app.ask()")
    project.makepyfile(
        test_it="""
        import subprocess, sys
        def test_it():
            subprocess.run([sys.executable, "-c", "import app\\n\\n\\napp.ask()"], check=True)
        """
    )
    project.makeini("[pytest]\n")
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "--timedblock-audit")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 × app.py:*", "*in 2 Python processes*"][:1])
    result.stdout.fnmatch_lines(["*from 1 place in 2 Python processes"])


@pytest.mark.parametrize(
    "options",
    [
        ["--timedblock-audit-ignore", "loopback"],
        ["--timedblock-audit-allow", "app.py"],
        ["--timedblock-audit-allow", "other", "--timedblock-audit-allow", "app.py:ask"],
        ["-o", "timedblock_audit_ignore=unix loopback"],
        ["-o", "timedblock_audit_allow=other\napp.py:*"],
    ],
)
def test_what_is_known_can_be_left_out(project: pytest.Pytester, options: list[str]) -> None:
    """On the command line, or in the settings."""
    project.makepyfile(test_it="import app\ndef test_it(): app.ask()")
    result = project.runpytest("--timedblock-audit", *options)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*; 1 more ignored or allowed"])


@pytest.mark.parametrize("option", ["--timedblock-audit-allow", "--timedblock-audit-app"])
def test_an_empty_value_is_refused(project: pytest.Pytester, option: str) -> None:
    """It would match nothing: a variable of a script that was empty."""
    project.makepyfile(test_it="import app\ndef test_it(): app.ask()")
    result = project.runpytest("--timedblock-audit", option, "")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {option}: '' is empty"])


def test_an_installed_application_can_be_named(project: pytest.Pytester, tmp_path: Path) -> None:
    """In a test environment the application may be among the libraries."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    os.replace("app.py", installed / "shop.py")
    project.makeini(f"[pytest]\npythonpath = {installed}\n")
    project.makepyfile(test_it="import shop\ndef test_it(): shop.ask()")
    as_library = project.runpytest("--timedblock-audit")
    as_library.stdout.fnmatch_lines(["1 × test_it.py:2 in test_it * through shop with *"])
    named = project.runpytest("--timedblock-audit", "--timedblock-audit-app", "shop")
    named.stdout.fnmatch_lines(["1 × *shop.py:* in ask connects*"])
    settings = project.runpytest("--timedblock-audit", "-o", "timedblock_audit_app=shop")
    settings.stdout.fnmatch_lines(["1 × *shop.py:* in ask connects*"])


def test_our_own_fixtures_are_no_finding(project: pytest.Pytester) -> None:
    """The store, proxies and looks at health of the plugin are limited, and aren't the user's."""
    project.makepyfile(
        test_it="""
        from timedblock.memcache import Client
        def test_it(timedblock_store, timedblock_proxy, timedblock_health):
            proxy = timedblock_proxy(timedblock_store.address)
            assert Client(proxy.address).get("a") is None
            assert timedblock_health("http://127.0.0.1:9/").becomes("no answer (URLError)") < 5
        """
    )
    result = project.runpytest_subprocess("--timedblock-audit")
    assert result.ret == 0, result.stdout.str()


def test_a_worker_of_xdist_leaves_the_report_to_its_controller(
    project: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It has the same options, and records already, because its environment says so."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    project.makepyfile(test_it="import app\ndef test_it(): app.ask()")
    inner = [sys.executable, "-m", "pytest", "--timedblock-audit", "-p", "no:xdist"]
    assert cli.main(["audit", "--", *inner]) == 1
    captured = capfd.readouterr()
    assert "1 × app.py:4 in ask" in captured.err
    assert "audit" not in captured.out


def test_the_recorder_sleeps_afterwards() -> None:
    """A hook can't be taken away; after a run it records nothing."""
    assert sys.modules["timedblock.audit.plugin"] is timedblock.audit.plugin
    assert not recorder._active
