"""A worker's process, seen from the drill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from timedblock.child import readable
from timedblock.drill.errors import DrillError
from timedblock.drill.history import HUNG, Call
from timedblock.drill.store import find
from timedblock.drill.worker import READY_WITHIN, Records, Task

#: Seconds between "go" and the loads' start.
_LEAD = 0.1
#: Seconds that reading a worker's records may take, however late it has become.
_READING = 2.0


class Worker:
    """A load in a process of its own. ``end`` is always called."""

    def __init__(self, task: Task, prefix: Sequence[str] = ()) -> None:
        self.task = task
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        # A session of its own: Ctrl-C reaches the drill alone, which then ends its workers.
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "timedblock.drill.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,
        )
        self._send(task.to_json())

    def wait_ready(self, until: float) -> None:
        """DrillError if the client didn't answer before any fault."""
        assert self._process.stdout is not None
        left = max(0.0, until - time.monotonic())
        if not readable(self._process.stdout, left):
            raise DrillError(f"{self._name}: no answer within {READY_WITHIN:g} s")
        if self._process.stdout.readline() != b"ready\n":
            raise DrillError(f"{self._name}: {self._last_words()}")

    def go(self, start: float, lifted: float) -> None:
        """The load starts at ``start``, and its fault is lifted at ``lifted`` (monotonic)."""
        self._send(f"{start!r} {lifted!r}")

    def collect(self, until: float) -> Records | None:
        """The records; None if the process itself hangs: it is ended."""
        left = max(_READING, until - time.monotonic())
        try:
            out, _ = self._process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            self.end()
            return None
        if self._process.returncode:
            raise DrillError(f"{self._name}: {self._last_words()}")
        return Records.from_json(out)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def hung(self) -> Call:
        """What stands for the calls of a process that hangs: one that hung through the fault."""
        task, schedule = self.task, self.task.schedule
        since, until = schedule.fault_at, schedule.clear_at
        op = find(task.store).operation.rpartition(".")[2]
        return Call(task.fault, task.variant, 0, op, "", None, since, since, until, HUNG)

    @property
    def _name(self) -> str:
        return f"{self.task.fault} with {self.task.variant}"

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise DrillError(f"{self._name}: {self._last_words()}") from None

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ended without a word"


@contextmanager
def running(tasks: Sequence[tuple[Task, Sequence[str]]]) -> Iterator[list[Worker]]:
    """A worker for each task and prefix, for the time of the block."""
    with ExitStack() as stack:
        workers = []
        for task, prefix in tasks:
            worker = Worker(task, prefix)
            stack.callback(worker.end)
            workers.append(worker)
        yield workers


def start_together(workers: Sequence[Worker]) -> float:
    """The start of all loads. They follow each other by a share of a period, so that their
    requests don't all come due in the same instant on the same few cores."""
    until = time.monotonic() + READY_WITHIN
    for worker in workers:
        worker.wait_ready(until)
    start = time.monotonic() + _LEAD
    for number, worker in enumerate(workers):
        schedule = worker.task.schedule
        period = 1 / schedule.rate if schedule.rate else 0.0
        worker.go(start + number / len(workers) * period, start + schedule.clear_at)
    return start
