"""A process of our own, started, spoken to in lines of JSON, and ended (L0).

It runs a module of this package, whose part is to end when its standard input does: so it never
outlives the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, Any


class Gone(RuntimeError):
    """The process has ended, or said nothing for too long."""


class Child:
    """``python -m module arguments``, from its start to `end`, which is always called.

    After `Gone`, only `end` makes sense: a late answer would be taken for the next one's. Of
    several threads, one at a time may `ask` or `hear`.
    """

    def __init__(self, module: str, *arguments: str, start_new_session: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            start_new_session=start_new_session,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout

    @property
    def pid(self) -> int:
        """The process, also when it has ended."""
        return self._process.pid

    def ask(self, request: object, within: float) -> Any:
        """Send `request` as a line of JSON and `hear` the answer."""
        line = json.dumps(request).encode() + b"\n"
        try:
            self._input.write(line)
            self._input.flush()
        except (OSError, ValueError) as error:  # ValueError: another thread has ended it
            raise Gone(f"the process is gone: {error}") from error
        return self.hear(within)

    def hear(self, within: float) -> Any:
        """The next line that it prints, as JSON; `Gone` if none comes within so many seconds."""
        try:
            line = self._output.readline() if readable(self._output, within) else b""
        except (OSError, ValueError) as error:
            raise Gone(f"the process is gone: {error}") from error
        if not line:
            raise Gone("the process is gone, or doesn't answer")
        return json.loads(line)

    def end(self, within: float = 2.0) -> None:
        """Close its standard input, and kill it if it hasn't ended `within` seconds."""
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:  # it may have been stopped by a signal
            self.kill()
        self._output.close()

    def kill(self) -> None:
        """End the process as a crash would; `end` still closes what is left of it."""
        self._process.kill()
        self._process.wait()


def readable(stream: IO[bytes], within: float) -> bool:
    """Whether there is something to read, or its end, within so many seconds."""
    poll = select.poll()  # select.select can't wait for a descriptor past 1,023
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(within * 1000))


def _environment() -> dict[str, str]:
    """Ours, plus where this package is, which need not be installed."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not before else root + os.pathsep + before}
