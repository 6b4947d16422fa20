"""Signals to a server: only to the process that was named, and it works again whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.memcached import free_port
from timedblock import faults
from timedblock.faults import process, undoing
from timedblock.faults.injector import CannotInject
from timedblock.faults.process import Process
from timedblock.faults.reaper import Reaper

pytestmark = pytest.mark.wall

AGAIN_WITHIN = 15.0
# Accepts and closes, as a server that lives; started again it listens at the same port.
SERVER = textwrap.dedent(
    """
    import socket, sys
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        server.accept()[0].close()
    """
)


class Server:
    """A process of the test's own, that may be paused and killed."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_port())
        self.command = [sys.executable, "-c", SERVER, str(self.address[1])]
        self.process = subprocess.Popen(self.command)
        _becomes(self.serves, "the server is up")

    @property
    def pid(self) -> int:
        return self.process.pid

    def serves(self) -> bool:
        """Whether it answers: a connection is closed at once."""
        try:
            with socket.create_connection(self.address, timeout=0.5) as one:
                return one.recv(1) == b""
        except OSError:
            return False

    def end(self) -> None:
        """Whichever process it is by now."""
        self.process.kill()
        self.process.wait()
        for pid in _pids(self.command):
            os.kill(pid, signal.SIGKILL)


def _pids(command: list[str]) -> list[int]:
    """The processes that run exactly this command line."""
    wanted = "\0".join([*command, ""]).encode()
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (one / "cmdline").read_bytes() == wanted:
                found.append(int(one.name))
    return found


def _becomes(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + AGAIN_WITHIN
    while not true():
        assert time.monotonic() < end, f"{what}: not within {AGAIN_WITHIN} s"
        time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server, ended with the test, also one that was started again."""
    one = Server()
    yield one
    one.end()


@contextlib.contextmanager
def _injected(server: Server, fault: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that makes a fault and waits."""
    code = textwrap.dedent(
        f"""
        import time
        from timedblock import faults
        from timedblock.faults.process import Process
        with Process({server.pid}, address={server.address}, restart={server.command}) as one:
            one.listen().inject(faults.{fault})
            print("on", flush=True)
            time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
@pytest.mark.parametrize("fault", ["Pause()", "Kill()"])
def test_server_works_again_when_we_are_killed(
    server: Server, fault: str, number: signal.Signals
) -> None:
    """A paused server goes on and a killed one is started again, seconds after we died."""
    with _injected(server, fault) as ours:
        assert ours.stdout is not None and ours.stdout.readline() == "on\n"
        server.process.poll()
        assert not server.serves()
        ours.send_signal(number)
        _becomes(server.serves, "the server works again")


def test_newer_fault_replaces_the_one_before(server: Server) -> None:
    """Kill after pause: it is resumed, then killed; clearing starts it again, once."""
    with Process(server.pid, address=server.address, restart=server.command) as one:
        link = one.listen()
        assert one.listen() is link
        link.inject(faults.Pause())
        assert not server.serves()
        link.inject(faults.Kill())
        server.process.wait(5)
        link.clear()
        assert server.serves()
        assert _pids(server.command) == [link.pid] != [server.pid]
        link.inject(faults.Kill(duration=0.3))
        _becomes(lambda: not server.serves(), "it is killed")
        _becomes(server.serves, "it is started again")


def test_nothing_else_gets_the_signal(server: Server) -> None:
    """A process that took the number of a dead one is left alone."""
    birth = undoing.born(server.pid)
    assert birth
    undoing.do_all([undoing.to_signal(server.pid, f"{birth}0", signal.SIGKILL)])
    assert server.serves()
    with Process(server.pid) as one:
        server.process.kill()
        server.process.wait()
        with pytest.raises(RuntimeError, match=f"process {server.pid} is gone"):
            one.listen().inject(faults.Pause())


def test_kill_needs_the_way_back(server: Server) -> None:
    """Without the command that starts it again a server isn't killed."""
    with Process(server.pid) as one, pytest.raises(ValueError, match="restart="):
        one.listen().inject(faults.Kill())
    assert server.serves()


def test_restart_that_fails_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that isn't there, or a server that doesn't come up: an error, not silence."""
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    one = Process(server.pid, address=server.address, restart=["/no/such/server"])
    with one, pytest.raises(RuntimeError, match="/no/such/server"):
        one.listen().inject(faults.Kill())
        server.process.wait(5)
        one.listen().clear()


def test_restart_that_does_not_come_up_is_told(server: Server) -> None:
    """A server that starts and doesn't listen in time: the address is in the error."""
    restart = [sys.executable, "-c", "pass"]
    one = Process(server.pid, address=server.address, restart=restart, accepts_within=0.5)
    with one, pytest.raises(RuntimeError, match=f"{server.address[1]}.* within 0.5 s"):
        one.listen().inject(faults.Kill())
        server.process.wait(5)
        one.listen().clear()


@pytest.mark.parametrize("pid", [0, 1, -1, True, "7", 1 << 22])
def test_what_is_no_process_is_refused(pid: int) -> None:
    """The bad pid is named."""
    with pytest.raises(ValueError, match=str(pid)):
        Process(pid)


def test_we_are_not_paused() -> None:
    """Who stops itself, or its parent, can't go on."""
    for pid in (os.getpid(), os.getppid()):
        with pytest.raises(ValueError, match="this process or its parent"):
            Process(pid)


def test_process_that_ended_meanwhile_is_told(server: Server) -> None:
    """Between the making and the block it died."""
    one = Process(server.pid)
    server.process.kill()
    server.process.wait()
    with pytest.raises(ValueError, match=f"no process {server.pid}"):
        one.__enter__()
    with pytest.raises(RuntimeError, match="inside the `with` block"):
        one.listen()


def test_other_users_process_is_told(server: Server) -> None:
    """No right to signal it: one message, and what to use instead."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    # Imported before: nobody may not be able to read where this is installed.
    code = (
        "import os\nfrom timedblock.faults.process import Process\n"
        f"os.setgroups([])\nos.setuid(65534)\nProcess({server.pid}).__enter__()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        # Another user may not write coverage's data.
        env={name: value for name, value in os.environ.items() if "COVERAGE" not in name},
    )
    last = done.stderr.splitlines()[-1]
    assert CannotInject.__name__ in last and "another user's" in last and "'proxy'" in last


# The reaper


def test_reaper_undoes_the_newest_first(tmp_path: Path) -> None:
    """What was made last is undone first, each thing once, also when another fails."""
    log = tmp_path / "log"

    def write(word: str) -> undoing.Undo:
        return undoing.to_run("sh", "-c", f"echo {word} >> {log}")

    reaper = Reaper()
    first = reaper.hold(write("first"))
    reaper.hold(write("second"))
    reaper.hold(undoing.to_run("sh", "-c", "echo is broken >&2; exit 3"))
    reaper.hold(undoing.to_run("false", may_fail=True), write("third"))
    reaper.release(first)
    reaper.release(first)
    with pytest.raises(RuntimeError, match="is broken"):
        reaper.stop()
    assert log.read_text().split() == ["first", "third", "second"]


def test_what_failed_in_its_time_is_told_later(tmp_path: Path) -> None:
    """The fault's time was over, its undoing failed: whoever clears it hears of it."""
    reaper = Reaper()
    done = tmp_path / "done"
    key = reaper.hold(undoing.to_run("sh", "-c", "exit 3"), undoing.to_run("touch", str(done)))
    reaper.release_after(key, 0.05)
    _becomes(done.exists, "the other step is done")
    with pytest.raises(RuntimeError, match="exit 3"):
        reaper.release(key)
    reaper.stop()


def test_reaper_ends_at_sigterm_and_undoes(tmp_path: Path) -> None:
    """Somebody ends it in the orderly way: everything is undone."""
    done = tmp_path / "done"
    reaper = Reaper()
    reaper.hold(undoing.to_run("touch", str(done)))
    os.kill(reaper.pid, signal.SIGTERM)
    _becomes(done.exists, "it is undone")
    reaper.stop()


def test_reaper_sees_its_parents_end_though_the_pipe_is_open(tmp_path: Path) -> None:
    """A fork of ours holds the pipe's other end: the reaper looks at its parent itself."""
    done = tmp_path / "done"
    code = textwrap.dedent(
        f"""
        import os, signal, time
        from timedblock.faults import undoing
        from timedblock.faults.reaper import Reaper
        reaper = Reaper()
        reaper.hold(undoing.to_run("touch", {str(done)!r}))
        child = os.fork()
        if not child:
            time.sleep(600)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        child = int(ours.stdout.readline())
        try:
            _becomes(done.exists, "it is undone")
        finally:
            os.kill(child, signal.SIGKILL)
