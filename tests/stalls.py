"""Whether the machine stood still while a test measured wall time.

A process that does nothing but sleep notes how late it was woken at the worst. It is no part of
the tests' process, so neither our threads nor a tracer can make it late: only the machine can.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import subprocess
import sys
import tempfile

#: A machine that wakes a process so late (seconds) can't keep the time of any test.
STALL = 0.05
_NAP = 0.005

_PROBE = f"""
import mmap, os, select, struct, sys, time
shared = mmap.mmap(int(sys.argv[1]), 8)
while True:
    began = time.monotonic()
    if select.select([sys.stdin], [], [], {_NAP})[0]:
        break
    late = time.monotonic() - began - {_NAP}
    if late > struct.unpack("d", shared)[0]:
        shared[:] = struct.pack("d", late)
"""


class Stalls:
    """The worst lateness of the probe since `forget`, in seconds; `end` is always called."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self._file.truncate(8)
        self._shared = mmap.mmap(self._file.fileno(), 8)
        self._probe = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROBE, str(self._file.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[self._file.fileno()],
            start_new_session=True,  # Ctrl-C is for the tests
        )

    @property
    def worst(self) -> float:
        seconds: float = struct.unpack("d", self._shared)[0]
        return seconds

    def forget(self) -> None:
        self._shared[:] = struct.pack("d", 0.0)

    def seen(self) -> bool:
        return self.worst >= STALL

    def end(self) -> None:
        assert self._probe.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._probe.stdin.close()
        self._probe.wait()
        self._shared.close()
        self._file.close()
