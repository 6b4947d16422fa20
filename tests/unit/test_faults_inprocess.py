"""`faults.inject` as far as it needs no connection: targets, scopes, nesting, the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from timedblock import faults
from timedblock.clock import SYSTEM
from timedblock.faults.taps import Injection, Tap
from timedblock.net import seam
from timedblock.net.sockets import DeadlineSocket
from timedblock.net.wire import Wire

SITE = seam.Site("memcache", "sessions", "127.0.0.1:11211")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no fault stays in force."""
    assert seam.injector is None
    yield
    assert seam.injector is None


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        ("memcache", True),
        ("sessions", True),
        ("memcache@127.0.0.1:11211", True),
        ("sessions@127.0.0.1:11211", True),
        ("sessions@127.0.0.1:11212", False),
        ("session", False),
        ("rabbitmq", False),
    ],
)
def test_target_reaches_a_wrapper_a_client_and_an_endpoint(target: str, reached: bool) -> None:
    """A target is the wrapper's name or the client's own, and an endpoint narrows it."""
    assert Injection(target, faults.Hang()).reaches(SITE) is reached


@pytest.mark.parametrize("target", ["", " ", "@127.0.0.1:11211", "memcache@", "memcache@ "])
def test_bad_target_is_named_at_once(target: str) -> None:
    """A target without a name or endpoint is refused before the block begins."""
    with pytest.raises(ValueError, match="target must be") as caught:
        faults.inject(target, faults.Hang())
    assert repr(target) in str(caught.value)


def test_what_is_no_fault_or_no_name_is_refused() -> None:
    """The class in place of the fault, or a client in place of its name, is a TypeError."""
    with pytest.raises(TypeError, match="fault must be a Fault"):
        faults.inject("memcache", faults.Hang)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target must be a name"):
        faults.inject(7, faults.Hang())  # type: ignore[arg-type]


def test_nothing_is_in_force_before_the_block() -> None:
    """`inject` alone does nothing; only entering its block does."""
    faults.inject("memcache", faults.Refuse())
    assert seam.injector is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_fault_is_rolled_back_however_the_block_ends(error: type[BaseException]) -> None:
    """An exception passes through the block, and takes the fault with it."""
    with pytest.raises(error), faults.inject("memcache", faults.Refuse()):
        assert seam.injector is not None
        raise error


def connect() -> None:
    """What a wrapper does before it connects."""
    if seam.injector is not None:
        seam.injector.connecting(SITE, 0.001)


def test_fault_that_meets_nobody_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt target is logged at the end of the block; one that was there isn't."""
    with faults.inject("memcahce", faults.Hang()) as injection:
        connect()
    assert not injection.met
    with faults.inject("memcache", faults.Latency(0.0)) as injection:
        connect()
    assert injection.met
    (line,) = caplog.messages
    assert line == "the fault 'hang' met no connection of 'memcahce'"


def test_newest_fault_acts_and_the_older_one_comes_back() -> None:
    """Blocks nest: the inner fault stands in front of the outer one while it lasts."""
    with faults.inject("memcache", faults.Refuse()):
        with faults.inject("sessions", faults.Hang()):
            connect()
        with pytest.raises(ConnectionRefusedError):
            connect()
    connect()


def test_blocks_may_end_in_any_order() -> None:
    """Two threads' blocks overlap: each end takes its own fault away, and no other."""
    first = faults.inject("memcache", faults.Refuse())
    second = faults.inject("memcache", faults.Blackhole())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(TimeoutError):
        connect()
    second.__exit__(None, None, None)
    connect()


def test_faults_of_names_and_of_connections_stand_side_by_side() -> None:
    """A newer fault of names doesn't lift one of connections."""
    with (
        faults.inject("memcache", faults.Refuse()),
        faults.inject("memcache", faults.DnsFail()),
    ):
        assert seam.injector is not None
        lookup = seam.injector.lookup(SITE)
        assert lookup is not None
        with pytest.raises(OSError, match="not known"):
            lookup("cache.example", 11211)
        with pytest.raises(ConnectionRefusedError):
            connect()


class Own(socket.socket):
    """A socket class of the user's own, which the watchdog guards."""


@pytest.mark.parametrize("kind", [Own, DeadlineSocket])
def test_fault_ends_after_the_connection_was_forgotten(kind: type[socket.socket]) -> None:
    """What was held back for a connection that nobody has any more is not sent by anybody."""
    ours, peer = socket.socketpair()
    with kind(fileno=ours.detach()) as sock, peer:
        wire = Wire(sock, SYSTEM)
        tap = Tap(wire)
        injection = Injection("memcache", faults.Hang(direction="up"))
        tap.add(injection)
        wire.send(b"get key\r\n")
        del wire
        tap.finish(injection)
        peer.settimeout(5.0)
        assert peer.recv(10) == b""  # and what nobody has is closed


def test_fault_ends_by_itself() -> None:
    """A fault is over after its duration, inside its block too."""
    with faults.inject("memcache", faults.Refuse(duration=1e-6)):
        connect()


def import_with(setting: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Another process with TIMEDBLOCK_FAULTS set imports the wrapper and runs `code`."""
    return subprocess.run(
        [sys.executable, "-c", f"from timedblock import memcache\n{code}"],
        env={**os.environ, seam.VARIABLE: setting},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("memcache", "'memcache'"),
        ("memcache=hnag@10s", "'hnag'"),
        ("memcache=hang@10 parsecs", "'10 parsecs'"),
        ("memcache=hang@10s;memcache=drip:0", "drip:0"),
        ("memcache@=hang", "'memcache@'"),
    ],
)
def test_bad_setting_is_an_error_that_names_it(setting: str, named: str) -> None:
    """The import of a wrapper fails with the variable's name and the bad part."""
    done = import_with(setting)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: TIMEDBLOCK_FAULTS: ")
    assert named in last


def test_warning_comes_once_and_says_what_is_on() -> None:
    """The process says at the first wrapper's import which faults it has, and only then."""
    code = (
        "import importlib, timedblock.memcache\n"
        "importlib.reload(timedblock.memcache)\n"
        "from timedblock.net import seam\n"
        "print(type(seam.injector).__name__)\n"
    )
    done = import_with("memcache=hang@10s; memcache@127.0.0.1:11211=latency:0.2", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_Injector"]
    (line,) = done.stderr.splitlines()
    assert "FAULTS ARE ON" in line
    assert "memcache: hang for 10 s" in line
    assert "memcache@127.0.0.1:11211: latency for 60 s" in line


def test_no_setting_imports_no_injector() -> None:
    """Without the variable a wrapper's import loads nothing that makes faults."""
    code = "import sys; print('timedblock.faults' in sys.modules)"
    assert import_with("", code).stdout.split() == ["False"]
