"""One cell of the contract: an operation under a fault, and everything that is wrong with it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.contract.faults import Expected, Trouble
from tests.contract.store import Address, Operation, Store
from tests.servers.limits import LIMIT, RECOVERY, Ended, recovered, timed
from timedblock import Unavailable
from timedblock.faults.injector import Link

_numbers = itertools.count()


@dataclass(frozen=True)
class Cell:
    """What to run: an operation under a fault, on a new or an open connection."""

    store: Store
    server: Address
    operation: Operation
    warm: bool
    trouble: Trouble | None = None

    def __str__(self) -> str:
        state = "warm" if self.warm else "cold"
        fault = self.trouble.name if self.trouble else "no fault"
        return f"{self.operation.name}, {state}, {fault}"

    @property
    def expected(self) -> Expected | None:
        if self.trouble is None:
            return None
        return self.store.expected(self.trouble, self.warm)


def run(cell: Cell, link: Link) -> list[str]:
    """Run the cell through `link`; what went wrong, one line each."""
    problems = []
    try:
        for problem in _run(cell, link):
            problems.append(f"{cell}: {problem}")
    except Exception as error:  # whatever isn't Unavailable is a failure of the contract
        problems.append(f"{cell}: {type(error).__name__}: {error}")
    return problems


def _run(cell: Cell, link: Link) -> Iterator[str]:
    store = cell.store
    with closing(store.raw(cell.server)) as raw:
        scene = store.scene(raw, f"{store.name}-{next(_numbers)}")
        before = store.data(raw, scene)
        with closing(store.client(link.address, LIMIT)) as client:
            if cell.warm:
                recovered(lambda: store.warm_up(client, scene), limit=store.patience)
            if cell.trouble is not None:
                link.inject(cell.trouble.fault)
            ended = timed(lambda: cell.operation.call(client, scene))
            yield from judge(cell, scene, ended)
            yield from judge_data(cell, scene, ended, before, store.data(raw, scene))
            link.clear()
            wrong = recovered(lambda: store.follow_up(client, scene), limit=store.patience)
            if wrong:
                yield f"the next call after the fault: {wrong}"
            if isinstance(ended.error, Unavailable) and not ended.error.sent:
                now = store.data(raw, scene)
                if now != before:
                    yield f"sent=False, and yet the server has {_differs(before, now)}"
            if cell.operation.in_the_end is not None:
                yield from judge_the_end(cell.operation.in_the_end, raw, scene, ended)
            if store.busy(client, link.address):
                busy = store.busy(client, link.address)
                yield f"{busy} slots are taken after the last call ended"


def judge(cell: Cell, scene: Any, ended: Ended) -> Iterator[str]:
    """The answer is right, or the error is one that this fault may cause, and honest."""
    expected, operation = cell.expected, cell.operation
    if ended.error is None:
        blind = operation.opaque and expected is not None
        if not blind and not operation.right(ended.value, scene):
            yield f"wrong answer {ended.value!r:.200}"
        if expected is not None and not expected.answers and operation.replies and not blind:
            yield f"answered {ended.value!r:.200} under a fault that lets no answer through"
    elif expected is None:
        yield f"no answer without a fault: {ended.error!r}"
    else:
        if not isinstance(ended.error, expected.errors):
            yield f"{ended.error!r} is not one of {[one.__name__ for one in expected.errors]}"
        if expected.sent not in (None, ended.error.sent):
            yield f"sent={ended.error.sent}, not {expected.sent}: {ended.error!r}"


def judge_data(cell: Cell, scene: Any, ended: Ended, before: Any, now: Any) -> Iterator[str]:
    """Each datum is as it was, or as the operation makes it; after a success it is the latter."""
    after = {**before, **(cell.operation.writes(scene) if cell.operation.writes else {})}
    sure = cell.operation.replies and not (cell.operation.acknowledges and cell.trouble)
    if ended.error is None and now != after and sure:
        yield f"said {ended.value!r:.80}, but the server has {_differs(after, now)}"
    for key, value in now.items():
        if value not in (before[key], after[key]):
            yield f"the server has {value!r:.80} where {before[key]!r:.80} was"


def judge_the_end(
    wrong: Callable[[Any, Any, bool], str | None], raw: Any, scene: Any, ended: Ended
) -> Iterator[str]:
    """What takes a while, because the driver does it in the background, comes true after all."""
    until = time.monotonic() + RECOVERY
    while found := wrong(raw, scene, ended.error is None):
        if time.monotonic() > until:
            yield f"{RECOVERY} s after the fault: {found}"
            return
        time.sleep(0.05)


def _differs(one: Any, other: Any) -> str:
    keys = [key for key in other if one.get(key) != other[key]]
    return ", ".join(f"{key}: {other[key]!r:.60} (not {one.get(key)!r:.60})" for key in keys)
