"""Workers: bounded, never waited for, and no slot is lost whatever goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from timedblock import clock as clocks
from timedblock import remaining, time_limit
from timedblock.net import workers as module
from timedblock.net.workers import Full, Job, NoThread, Workers

REAL = clocks.SYSTEM


def _until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        threading.Event().wait(0.001)


@pytest.mark.wall
def test_work_is_done_and_its_outcome_read() -> None:
    """The result is returned, an error is raised, and the slot is free afterwards."""
    workers = Workers("w", 2)
    good, bad = workers.submit(lambda: 7), workers.submit(lambda: 1 // 0)
    assert good.wait(REAL, 5)
    assert bad.wait(REAL, 5)
    assert good.outcome() == 7
    with pytest.raises(ZeroDivisionError):
        bad.outcome()
    _until(lambda: workers.busy == 0)


@pytest.mark.wall
def test_a_full_purpose_refuses_at_once() -> None:
    """As many as size hang: the next is refused; when one ends, the next is taken."""
    workers, release = Workers("hang", 2), threading.Event()
    jobs = [workers.submit(release.wait) for _ in range(2)]
    with pytest.raises(Full, match="all 2 workers of hang"):
        workers.submit(int)
    release.set()
    assert all(job.wait(REAL, 5) for job in jobs)
    _until(lambda: workers.busy == 0)
    assert workers.submit(lambda: 3).wait(REAL, 5)


@pytest.mark.wall
def test_a_wait_ends_before_the_work() -> None:
    """Who waits gets False in time, may wait again, and many may wait for one job."""
    workers, release = Workers("slow", 1), threading.Event()
    job = workers.submit(release.wait)
    assert not job.wait(REAL, 0.01)
    assert not job.wait(REAL, 0)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(job.wait(REAL, 5))) for _ in range(5)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert found == [True] * 5


@pytest.mark.wall
def test_the_callers_context_is_carried() -> None:
    """The work sees the deadline of whoever handed it in."""
    with time_limit(3.0):
        job = Workers("context", 1).submit(remaining)
    assert job.wait(REAL, 5)
    left = job.outcome()
    assert left is not None
    assert 2 < left <= 3


@pytest.mark.wall
def test_a_worker_serves_again() -> None:
    """Work that follows soon runs on the thread that is there."""
    workers = Workers("again", 4)
    names = set()
    for _ in range(20):
        job = workers.submit(threading.get_ident)
        assert job.wait(REAL, 5)
        names.add(job.outcome())
        _until(lambda: workers.busy == 0)
    assert len(names) == 1


@pytest.mark.wall
def test_an_idle_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After lingering its thread is gone, and a new one is made for new work."""
    monkeypatch.setattr(module, "_LINGER", 0.01)
    workers = Workers("linger", 1)
    assert workers.submit(int).wait(REAL, 5)
    _until(lambda: not workers._threads)
    assert workers.submit(int).wait(REAL, 5)


@pytest.mark.wall
def test_a_base_exception_of_the_work_is_its_callers() -> None:
    """SystemExit on a worker ends neither worker nor process."""

    def leave() -> None:
        raise SystemExit(3)

    workers = Workers("exit", 1)
    job = workers.submit(leave)
    assert job.wait(REAL, 5)
    with pytest.raises(SystemExit):
        job.outcome()
    _until(lambda: workers.busy == 0)
    assert workers.submit(lambda: 1).wait(REAL, 5)


@pytest.mark.wall
def test_a_callback_that_raises_keeps_nobody_waiting() -> None:
    """Who waits is woken, and the worker's slot and thread go on serving."""

    def broken(job: Job[int]) -> None:
        raise ValueError

    workers = Workers("callback", 1)
    for _ in range(3):
        job = workers.submit(lambda: 5, broken)
        began = time.monotonic()
        assert job.wait(REAL, 5)
        assert job.outcome() == 5
        _until(lambda: workers.busy == 0)
        assert job._done.acquire(timeout=1), "somebody who waits for the lock would wait for ever"
        job._done.release()
        assert time.monotonic() - began < 1 + 0.25
    assert workers.submit(lambda: 1).wait(REAL, 5)


@pytest.mark.wall
@pytest.mark.parametrize(
    ("error", "raised"),
    [(RuntimeError("can't start new thread"), NoThread), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_thread_that_cant_start_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    """The process is out of threads: the submit fails, the work isn't run later, slots are free."""
    workers, ran = Workers("threads", 1), list[int]()

    def refuse(thread: threading.Thread) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(raised):
            workers.submit(lambda: ran.append(1))
    assert workers.busy == 0
    job = workers.submit(lambda: ran.append(2))
    assert job.wait(REAL, 5)
    assert ran == [2]


@pytest.mark.wall
def test_a_finished_job_keeps_nothing_alive() -> None:
    """The closure may hold a connection: it is gone with the work."""
    import weakref

    class Held:
        pass

    held = Held()
    ref = weakref.ref(held)
    workers = Workers("held", 1)
    job = workers.submit(lambda held=held: None)  # type: ignore[misc]
    del held
    assert job.wait(REAL, 5)
    _until(lambda: workers.busy == 0)
    assert ref() is None


def test_a_forked_childs_workers_are_fresh() -> None:
    """The parent's threads, and the work that was queued, stay in the parent."""
    workers, release = Workers("forked", 1), threading.Event()
    workers.submit(release.wait)
    workers._lock.acquire()
    held = workers._lock
    workers.after_fork()
    assert workers.submit(lambda: 4).wait(REAL, 5)
    held.release()
    release.set()
