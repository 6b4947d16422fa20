"""A client process that is stopped (SIGSTOP) with its calls in flight; run by its test.

It warms up, stops the server, starts one `get` on each of its threads, and once all are in flight
stops itself. Continued, it prints how they ended and what `stats()` said before and after.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

CALLS = 16
WARM_UP = 40


def _until_in_flight(count: int) -> None:
    import timedblock

    end = time.monotonic() + 10
    while timedblock.stats()["blocks"]["memcache.get"]["in_flight"] < count:
        if time.monotonic() > end:
            raise SystemExit(f"not {count} calls in flight: {timedblock.stats()['blocks']}")
        time.sleep(0.0005)


def _one_get(client: Any, number: int, results: list[dict[str, Any]]) -> None:
    from timedblock import Unavailable

    began = time.monotonic()
    try:
        right = client.get(f"key-{number}") == b"%d" % number
        outcome = "right" if right else "wrong"
    except Unavailable as error:
        outcome = type(error).__name__
    results.append({"outcome": outcome, "elapsed": time.monotonic() - began})


def _on_all_threads(work: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(CALLS)]
    for thread in threads:
        thread.start()
    return threads


def _warm_up(client: Any) -> None:
    """Until the limit of `get` is learnt, and steady; each thread has a connection of its own."""
    import timedblock

    end = time.monotonic() + 20
    steady = None
    while True:
        _work_together(client)
        time.sleep(0.6)  # limits are learnt anew each half second,
        client.get("key-0")  # by a call: without this one, what was just measured would be
        # learnt from by the calls that the test stops
        block = timedblock.stats()["blocks"]["memcache.get"]
        now = (block["limit_source"], block["limit"])
        if now == steady and now[0] == "learnt":
            return
        if time.monotonic() > end:
            raise SystemExit(f"the limit is not steady: {now}")
        steady = now


def _work_together(client: Any) -> None:
    together = threading.Barrier(CALLS)

    def work(number: int) -> None:
        for _ in range(WARM_UP):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(5)
            client.set(f"key-{number}", b"%d" % number)
            client.get(f"key-{number}")

    for thread in _on_all_threads(work):
        thread.join()


def _main(host: str, port: int, server_pid: int) -> None:
    import timedblock
    from tests.servers.memcached import stop
    from timedblock import memcache

    client = memcache.Client((host, port), max_pool_size=CALLS)
    _warm_up(client)
    before = timedblock.stats()
    results: list[dict[str, Any]] = []
    stop(server_pid)
    threads = _on_all_threads(lambda number: _one_get(client, number, results))
    _until_in_flight(CALLS)
    os.kill(os.getpid(), signal.SIGSTOP)
    for thread in threads:
        thread.join()
    after = timedblock.stats()
    print(json.dumps({"results": results, "before": before, "after": after}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
