"""The real memcached: where it is, and a process of it that a test may pause, kill and restart."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ENVIRONMENT = "TIMEDBLOCK_TEST_MEMCACHED"
START_SECONDS = 10.0

Address = tuple[str, int]


def binary() -> str | None:
    """The path of memcached, or None."""
    return shutil.which("memcached") or shutil.which("memcached", path="/usr/bin:/usr/sbin")


def given_address() -> Address | None:
    """The server named by TIMEDBLOCK_TEST_MEMCACHED=HOST:PORT, or None. ValueError if it's bad."""
    text = os.environ.get(ENVIRONMENT)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{ENVIRONMENT}={text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _states(pid: int) -> set[str]:
    """The states of a process's threads, as /proc has them: T is stopped."""
    stats = (task / "stat" for task in Path(f"/proc/{pid}/task").iterdir())
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


def stop(pid: int) -> None:
    """SIGSTOP, and wait until every thread has stopped: the signal alone doesn't."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 5
    while _states(pid) != {"T"}:
        assert time.monotonic() < end, f"process {pid} did not stop"
        time.sleep(0.0005)


class Memcached:
    """Debian's memcached on `address`, started at entry, ended by its pid at exit.

    `prefix` is a command that runs another one, such as `ip netns exec NAME`; `reachable` is
    the address to wait for when the server listens on all of them.
    """

    def __init__(
        self,
        address: Address,
        *,
        prefix: Sequence[str] = (),
        reachable: Address | None = None,
        options: Sequence[str] = (),
    ) -> None:
        found = binary()
        assert found is not None
        host, port = address
        self.address = reachable or address
        self.command = [*prefix, found, "-u", "nobody", "-l", host, "-p", str(port)]
        self.command += ["-m", "16", "-c", "4096", "-t", "1", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Memcached:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, options: Sequence[str] = ()) -> None:
        """Start the process and wait until it accepts connections."""
        assert self._process is None
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [*self.command, *options], stdin=quiet, stdout=quiet, stderr=quiet
        )
        try:
            self._wait_until_up()
        except BaseException:
            self.kill()
            raise

    def _wait_until_up(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(self.address, timeout=1).close()
                return
            time.sleep(0.01)
        raise RuntimeError(f"memcached did not start on {self.address}")

    def pause(self) -> None:
        """SIGSTOP: the kernel still accepts connections and bytes, nobody reads them."""
        stop(self.pid)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, which ends a paused process too. Its data is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, options: Sequence[str] = ()) -> None:
        """Kill it and start it again on the same address, empty."""
        self.kill()
        self.start(options)
