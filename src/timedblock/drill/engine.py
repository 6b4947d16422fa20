"""Runs loads in parallel waves of worker processes, each through a link of its own of the relay."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO

from timedblock import faults
from timedblock.drill import memcache
from timedblock.drill.errors import DrillError
from timedblock.drill.load import Call, Schedule
from timedblock.drill.verdict import FAULT_FREE, Result, summarise
from timedblock.drill.worker import Task
from timedblock.faults.proxy import Link, Relay

#: Faults that run side by side: three loads each, and two cores stay below about 60 %.
WAVE = 4
#: Seconds that starting a wave's workers may take on a busy machine.
_READY_WITHIN = 20.0
#: Seconds between "go" and the load's start, and between the load's end and its records.
_LEAD = 0.1
#: Seconds that starting a wave usually takes, for the progress bar.
_USUAL_START = 1.5
_REPORT_WITHIN = 5.0
_TICK = 0.1

#: Told the seconds that have passed of the plan, and what is going on.
Progress = Callable[[float, str], None]


class Worker:
    """A load in a process of its own. ``end`` is always called."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        # A session of its own: Ctrl-C reaches the drill alone, which then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "timedblock.drill.worker"],
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
        readable, _, _ = select.select([self._process.stdout], [], [], left)
        if not readable:
            raise DrillError(f"{self._name}: no answer within {_READY_WITHIN:g} s")
        if self._process.stdout.readline() != b"ready\n":
            raise DrillError(f"{self._name}: {self._last_words()}")

    def go(self, start: float) -> None:
        self._send(repr(start))

    def collect(self, until: float) -> list[Call]:
        """The calls; if the process itself hangs, one call that hung through the fault."""
        try:
            out, _ = self._process.communicate(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            schedule = self.task.schedule
            number = schedule.window_requests()[0]
            return [Call(number, schedule.fault_at, schedule.clear_at, "hung")]
        if self._process.returncode:
            raise DrillError(f"{self._name}: {self._last_words()}")
        return [Call(*record) for record in json.loads(out)]

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

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


@dataclass
class Engine:
    """Runs the plan. ``results`` grows wave by wave, so that an interrupted run has some."""

    server: memcache.Address
    schedule: Schedule
    prefix: str
    progress: Progress
    results: list[Result] = field(default_factory=list)

    def run(self, plan: Sequence[str]) -> None:
        """DrillError if it cannot be run."""
        started = time.monotonic()
        waves = memcache.waves(plan, WAVE)
        try:
            with Relay(self.server) as relay:
                for number, names in enumerate(waves, 1):
                    label = f"wave {number} of {len(waves)}: {', '.join(names)}"
                    self._wave(relay, names, label, started)
        except RuntimeError as error:  # what the relay says when it can't
            raise DrillError(str(error)) from error

    def _wave(self, relay: Relay, names: Sequence[str], label: str, started: float) -> None:
        def tell(phase: str) -> None:
            self.progress(time.monotonic() - started, f"{label}: {phase}")

        tell("start")
        links = {(name, variant): relay.listen() for name in names for variant in memcache.VARIANTS}
        tasks = [
            Task(name, variant, link.address, self.prefix, self.schedule)
            for (name, variant), link in links.items()
        ]
        with _workers(tasks) as workers:
            start = _start_together(workers)
            _wait(start + self.schedule.fault_at, lambda: tell("steady"))
            for (name, _), link in links.items():
                _inject(name, link)
            _wait(start + self.schedule.clear_at, lambda: tell("fault"))
            for link in links.values():
                link.clear()
            end = start + self.schedule.end
            _wait(end, lambda: tell("recovery"))
            until = end + self.schedule.grace + _REPORT_WITHIN
            self.results += [_result(worker, until) for worker in workers]


def expected_seconds(plan: Sequence[str], schedule: Schedule) -> float:
    """About how long ``plan`` takes."""
    return len(memcache.waves(plan, WAVE)) * (_USUAL_START + schedule.end)


@contextmanager
def _workers(tasks: Sequence[Task]) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        for task in tasks:
            worker = Worker(task)
            stack.callback(worker.end)
            workers.append(worker)
        yield workers


def _start_together(workers: Sequence[Worker]) -> float:
    """The start of all loads. They follow each other by a share of a period, so that their
    requests don't all come due in the same instant on the same few cores."""
    until = time.monotonic() + _READY_WITHIN
    for worker in workers:
        worker.wait_ready(until)
    start = time.monotonic() + _LEAD
    for number, worker in enumerate(workers):
        worker.go(start + number / len(workers) / worker.task.schedule.rate)
    return start


def _inject(name: str, link: Link) -> None:
    if name == FAULT_FREE:
        return
    if name in memcache.DNS_FAULTS:
        # Names are resolved for new connections only: end the open ones once, for every variant.
        link.inject(faults.Refuse())
        link.clear()
    else:
        link.inject(memcache.FAULTS[name])


def _wait(until: float, tick: Callable[[], None]) -> None:
    while (left := until - time.monotonic()) > 0:
        tick()
        time.sleep(min(left, _TICK))


def _result(worker: Worker, until: float) -> Result:
    task = worker.task
    limit = memcache.VARIANTS[task.variant].limit
    calls = worker.collect(until)
    return summarise(task.fault, task.variant, limit, task.schedule, calls)
