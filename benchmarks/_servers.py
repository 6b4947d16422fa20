"""A memcached for the benchmarks: the real one where it is installed, else the embedded one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """Where it listens, and what it is (printed beside every figure)."""

    address: tuple[str, int]
    kind: str


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(address: tuple[str, int], seconds: float = 5.0) -> None:
    """Until somebody listens there."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=seconds).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def memcached(megabytes: int = 16) -> Iterator[Server]:
    """A private memcached on loopback, ended on the way out."""
    program = shutil.which("memcached")
    if program is None:
        from timedblock.testing.memcached import EmbeddedMemcached

        with EmbeddedMemcached() as server:
            where = server.address
            assert isinstance(where, tuple)
            yield Server(where, "embedded server: memcached isn't installed")
        return
    address = (LOOPBACK, free_port())
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [program, *user, "-l", LOOPBACK, "-p", str(address[1])]
    command += ["-m", str(megabytes), "-c", "4096", "-t", "1"]
    # its stderr only tells that clients hung up
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(address)
        yield Server(address, "real memcached")
    finally:
        process.terminate()
        process.wait(5)
