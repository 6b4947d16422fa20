"""Faults of a server's process, by signals: it is paused, or killed and started again (L3)::

    with Process(pid, address=("127.0.0.1", 11211), restart=["memcached", "-p", "11211"]) as server:
        link = server.listen()
        link.inject(Pause(duration=10))
        link.inject(Kill(duration=2))

Only the process that was named gets a signal, and none that took its number later. However it
ends, a paused process goes on and a killed one is started again: see `reaper`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import undoing, vocabulary
from .injector import CannotInject
from .plan import Kill
from .reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from .plan import Fault

#: Seconds that a process may take to stop, to be gone, or to accept connections again.
PATIENCE = 10.0
_PAUSED = {"T", "t"}
_GONE = {"Z", "X"}


class ProcessLink:
    """The way to a server whose process can be faulted. Thread-safe."""

    prefix: tuple[str, ...] = ()

    def __init__(
        self,
        reaper: Reaper,
        pid: int,
        address: tuple[str, int],
        restart: Sequence[str],
        accepts_within: float = PATIENCE,
    ) -> None:
        #: Where the server listens, as it was given.
        self.address = address
        #: The server's process; another one after a kill.
        self.pid = pid
        self._birth = undoing.born(pid) or ""
        self._reaper = reaper
        self._restart = restart
        self._accepts_within = accepts_within
        self._directory = os.getcwd()
        self._key: str | None = None
        self._lock = threading.Lock()

    def inject(self, fault: Fault) -> None:
        """See `injector.Link.inject`. ValueError for a kill when there is no command that starts
        the server again; RuntimeError if the process is gone."""
        vocabulary.check("process", fault)
        if isinstance(fault, Kill) and not self._restart:
            raise ValueError("kill needs the command that starts the server again: restart=")
        with self._lock:
            self._clear()
            if undoing.born(self.pid) != self._birth:
                raise RuntimeError(f"process {self.pid} is gone")
            self._kill() if isinstance(fault, Kill) else self._pause()
            if fault.duration is not None and self._key is not None:
                self._reaper.release_after(self._key, fault.duration)

    def clear(self) -> None:
        """See `injector.Link.clear`. After a kill it returns once the server accepts connections
        at its address, if that was given. RuntimeError if it doesn't."""
        with self._lock:
            self._clear()

    def _pause(self) -> None:
        goes_on = undoing.to_signal(self.pid, self._birth, signal.SIGCONT)
        self._key = self._reaper.hold(goes_on)
        os.kill(self.pid, signal.SIGSTOP)
        _wait(lambda: _states(self.pid) <= _PAUSED, f"process {self.pid} doesn't stop")

    def _kill(self) -> None:
        self._key = self._reaper.hold(undoing.to_start(self._restart, self._directory))
        os.kill(self.pid, signal.SIGKILL)
        _wait(lambda: _states(self.pid) <= _GONE, f"process {self.pid} doesn't end")

    def _clear(self) -> None:
        key, self._key = self._key, None
        if key is None:
            return
        started = self._reaper.release(key).get("pid")
        if started is not None:
            self.pid, self._birth = started, undoing.born(started) or ""
            if self.address[1]:
                problem = f"the restarted server doesn't accept at {self.address}"
                _wait(self._accepts, problem, self._accepts_within)

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, timeout=1.0).close()
            return True
        return False


class Process:
    """Faults one process, for the time of a ``with`` block.

    Args:
        pid: the server's process.
        address: where it listens; what clients are given.
        restart: the command that starts it again, for `Kill`. It runs with this process's
            user, environment and working directory, in a session of its own.
        accepts_within: seconds that it may take then until it accepts connections.

    Raises:
        ValueError: `pid` is no process, or this one.
        CannotInject: at entry, where the process may not be signalled.
    """

    name = "process"

    def __init__(
        self,
        pid: int,
        *,
        address: tuple[str, int] = ("", 0),
        restart: Sequence[str] = (),
        accepts_within: float = PATIENCE,
    ) -> None:
        if isinstance(pid, bool) or not isinstance(pid, int) or pid < 2:
            raise ValueError(f"pid must be the number of a process, not {pid!r}")
        if pid in (os.getpid(), os.getppid()):
            raise ValueError(f"pid {pid} is this process or its parent, which must not be paused")
        if not undoing.alive(pid):
            raise ValueError(f"there is no process {pid}")
        self._pid = pid
        self._address = address
        self._restart = tuple(restart)
        self._accepts_within = accepts_within
        self._reaper: Reaper | None = None
        self._link: ProcessLink | None = None

    def __enter__(self) -> Process:
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            raise ValueError(f"there is no process {self._pid}") from None
        except PermissionError:
            raise CannotInject(
                f"process {self._pid} is another user's: run as that user, or as root. "
                "The injector 'proxy' needs no right"
            ) from None
        self._reaper = Reaper()
        self._link = ProcessLink(
            self._reaper, self._pid, self._address, self._restart, self._accepts_within
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._reaper is not None and self._link is not None
        try:
            self._link.clear()
        finally:
            self._link = None
            self._reaper.stop()

    def listen(self) -> ProcessLink:
        """The way to the server. There is one: its faults are felt by every client."""
        if self._link is None:
            raise RuntimeError("a process is faulted inside the `with` block only")
        return self._link


def _states(pid: int) -> set[str]:
    """The states of a process's threads; empty if it is gone, or the system doesn't tell."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def _wait(happened: Callable[[], bool], problem: str, within: float = PATIENCE) -> None:
    end = time.monotonic() + within
    while not happened():
        if time.monotonic() > end:
            raise RuntimeError(f"{problem} within {within:g} s")
        time.sleep(0.002)
