"""A process of ours: it hears, answers, and is gone when we are told so."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from timedblock.child import Child, Gone

LIMIT = 10.0
#: Says where it is, then does what it is asked.
ECHO = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "session": os.getsid(0)}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request == "leave":
        break
    if request != "be silent":
        print(json.dumps({"heard": request}), flush=True)
"""


@pytest.fixture(autouse=True)
def _echo_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that children can run: what PYTHONPATH said is still said to them."""
    (tmp_path / "echo_for_test.py").write_text(ECHO)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + before)


@pytest.fixture
def child(no_leaks: None) -> Iterator[Child]:
    child = Child("echo_for_test", "one", "two")
    yield child
    child.end()


def test_it_gets_its_arguments_and_answers_what_it_is_asked(child: Child) -> None:
    """Each request has its answer, as JSON."""
    assert child.hear(LIMIT)["arguments"] == ["one", "two"]
    assert child.ask({"a": [1, None]}, LIMIT) == {"heard": {"a": [1, None]}}
    assert child.ask("b", LIMIT) == {"heard": "b"}


def test_it_has_a_session_of_its_own_only_where_one_is_asked_for(child: Child) -> None:
    """Ctrl-C in a terminal is for a session."""
    assert child.hear(LIMIT)["session"] == os.getsid(0)
    apart = Child("echo_for_test", start_new_session=True)
    try:
        assert apart.hear(LIMIT)["session"] == apart.pid
    finally:
        apart.end()


def test_the_package_is_found_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """A module of timedblock runs, whatever PYTHONPATH says."""
    monkeypatch.delenv("PYTHONPATH")
    server = Child("timedblock.testing.memcached", "--listen", "127.0.0.1:0")
    try:
        assert server.hear(LIMIT)["pid"] == server.pid
    finally:
        server.end()


def test_silence_and_an_end_are_gone(child: Child) -> None:
    """No answer within the limit, none before the end, none after it, none once it was ended."""
    child.hear(LIMIT)
    with pytest.raises(Gone, match="doesn't answer"):
        child.ask("be silent", 0.0)
    with pytest.raises(Gone, match="doesn't answer"):
        child.ask("leave", LIMIT)
    child.kill()
    with pytest.raises(Gone, match="is gone: "):
        child.ask("more", LIMIT)
    child.end()
    for use in (lambda: child.ask("more", LIMIT), lambda: child.hear(LIMIT)):
        with pytest.raises(Gone, match=r"is gone: .*closed file"):
            use()


def test_a_child_that_does_not_end_by_itself_is_killed(child: Child) -> None:
    """One that was stopped by a signal can't see that its standard input ended."""
    child.hear(LIMIT)
    os.kill(child.pid, signal.SIGSTOP)
    child.end(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_many_open_descriptors_are_no_hindrance(no_leaks: None) -> None:
    """Descriptors past 1,023, which `select` can't wait for, are waited for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this user may not open so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    held = [socket.socket() for _ in range(1050)]
    try:
        child = Child("echo_for_test")
        try:
            assert child.hear(LIMIT)["arguments"] == []
        finally:
            child.end()
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
