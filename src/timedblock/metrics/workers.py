"""Metrics of several worker processes, merged by prometheus-client's multiprocess mode (L5).

A collector sees one process, and a scrape of a pre-fork server reaches any of them: counters would
jump back and forth. prometheus-client's answer is a file per worker that whoever is scraped merges.
We write ours through its value class, once a second from one thread, so that calls pay nothing.

Lock: `_state.lock` is held while values are written, and across a fork: no lock of
prometheus-client is left locked in the child by our thread.
"""

from __future__ import annotations

import atexit
import errno
import glob
import logging
import os
import re
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from .. import events
from .prometheus import BUCKETS, PREFIX, Family, Sample, samples
from .readings import Readings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

logger = logging.getLogger("timedblock")

INTERVAL = 1.0
#: A file never loses a value: endpoints that come and go must not fill the disk.
MOST_VALUES = 40_000
#: A fork, a scrape or the process's end waits no longer (seconds) for a writer.
_PATIENCE = 1.0
_Key = tuple[str, ...]
_PID = re.compile(r"gauge_live\w*_(\d+)\.db")


class _Publisher:
    """Copies this process's readings to prometheus-client's values."""

    def __init__(self) -> None:
        self._readings = Readings(keep=True)
        self._values: dict[_Key, Any] = {}
        self._written: dict[_Key, float] = {}
        # those that were written last
        self._gauges: set[_Key] = set()

    def start_here(self) -> None:
        """In a forked child: what the parent counted is in the parent's file."""
        self._readings.start_here()
        self._written.clear()

    def write(self) -> None:
        """Write every value; gauges of what is gone become 0."""
        there: set[_Key] = set()
        for sample in samples(self._readings):
            family = sample.family
            if family.kind == "histogram":
                self._write_histogram(sample)
            elif family.kind == "counter":
                self._set(family, "_total", family.labels, sample.labels, sample.value)
            else:
                there.add(self._set(family, "", family.labels, sample.labels, sample.value))
        for gone in self._gauges - there:
            self._write(gone, 0.0)
        self._gauges = there

    def _write_histogram(self, sample: Sample) -> None:
        family, labels = sample.family, sample.labels
        for bound, count in zip(BUCKETS, sample.buckets, strict=True):
            self._set(family, "_bucket", (*family.labels, "le"), (*labels, bound), count)
        self._set(family, "_sum", family.labels, labels, sample.value)

    def _set(
        self,
        family: Family,
        suffix: str,
        names: tuple[str, ...],
        labels: tuple[str, ...],
        value: float,
    ) -> _Key:
        key = (family.kind, family.name, suffix, *labels)
        if key not in self._values and self._has_room():
            name = PREFIX + family.name
            self._values[key] = values.ValueClass(
                family.kind, name, name + suffix, names, labels, family.text, family.merge
            )
        self._write(key, float(value))
        return key

    def _has_room(self) -> bool:
        if len(self._values) < MOST_VALUES:
            return True
        events.log_state(
            time.monotonic(),
            logging.WARNING,
            "metrics",
            "full",
            f"more than {MOST_VALUES} values in one process; new ones are left out",
        )
        return False

    def _write(self, key: _Key, value: float) -> None:
        before = self._written.get(key)
        if before == value or key not in self._values:
            return
        if key[0] == "gauge":
            self._values[key].set(value)
        else:  # an earlier process with our number may have left its counts: they stay
            self._values[key].inc(value - (before or 0.0))
        self._written[key] = value


class _State:
    """What this process publishes; `lock` is held while it writes, and across a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.publisher: _Publisher | None = None
        self.held = False
        self.failing = False


_state = _State()


def active() -> bool:
    """Whether prometheus-client is in its multiprocess mode."""
    return bool(values.ValueClass._multiprocess)


def directory() -> str:
    """Where the workers' files are."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")


def publish() -> None:
    """See `timedblock.metrics.prometheus.publish`."""
    where = directory()
    if not active():
        raise RuntimeError(
            "prometheus-client is not in its multiprocess mode: PROMETHEUS_MULTIPROC_DIR must be "
            "set before it is imported"
        )
    if not os.path.isdir(where) or not os.access(where, os.W_OK):
        raise RuntimeError(f"PROMETHEUS_MULTIPROC_DIR={where!r} is no directory to write to")
    if _state.publisher is not None:  # a writer may hold the lock for as long as its disk is slow
        return
    with _state.lock:
        if _state.publisher is not None:
            return
        _state.publisher = _Publisher()
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_in_child
    )
    atexit.register(write_now)
    _start()


def _start() -> None:
    threading.Thread(target=_write_for_ever, name="timedblock-metrics", daemon=True).start()


def _write_for_ever() -> None:
    pause = threading.Event()
    while True:
        write_now()
        pause.wait(INTERVAL)


def write_now() -> None:
    """Bring this process's files up to date; with a writer that is stuck they stay as they are."""
    lock = _state.lock
    if lock.acquire(timeout=_PATIENCE):
        try:
            _write()
        finally:
            lock.release()


def _write() -> None:
    try:
        if _state.publisher is not None:
            _state.publisher.write()
        _state.failing = False
    except Exception as error:  # the disk is full, say: metrics are late, calls go on
        if not _state.failing:
            logger.warning("%s could not be written: %s", directory(), type(error).__name__)
        _state.failing = True


def _before_fork() -> None:
    _state.held = _state.lock.acquire(timeout=_PATIENCE)


def _after_fork_in_parent() -> None:
    if _state.held:
        _state.lock.release()


def _in_child() -> None:
    _state.lock = threading.Lock()
    if _state.publisher is not None:
        _state.publisher.start_here()
        _start()


def merged() -> Iterable[Metric]:
    """The metrics of all workers, those that ended included."""
    _bury_dead()
    files = [path for path in _files("*.db") if _has_begun(path)]
    return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call, no-any-return]


def _files(pattern: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(directory()), pattern))


def _has_begun(path: str) -> bool:
    """A file is empty for a moment when it is made, or for ever when its worker was killed then."""
    try:
        return os.path.getsize(path) > 0
    except FileNotFoundError:  # another worker buried a dead one's
        return False


def _bury_dead() -> None:
    """Forget the gauges of workers that ended, however they did."""
    for path in _files("gauge_live*_*.db"):
        found = _PID.fullmatch(os.path.basename(path))
        if found is not None and _is_dead(int(found[1])):
            with suppress(FileNotFoundError):  # another worker was quicker
                mark_process_dead(int(found[1]))  # type: ignore[no-untyped-call]


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
