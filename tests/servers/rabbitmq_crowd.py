"""Every operation at once on one broker, for faults that meet all of its clients together.

The contract's cells have a link of the relay each. A paused, killed or starved broker and packets
that are dropped meet everybody: here all cells are prepared, the fault begins once, all of them
call, and when it is over each is judged by the contract's own rules.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import Trouble
from tests.contract.store import Address, Operation
from tests.contract.stores.rabbitmq import OPERATIONS, Hand, Rabbitmq, Scene
from tests.servers.limits import LIMIT, TOLERANCE, Ended, recovered, timed
from tests.servers.raw_call import RawCall, RawOutcome
from timedblock import Unavailable, rabbitmq

STORE = Rabbitmq()
#: Whoever still waits after so long has no limit.
RAW_HANGS_FOR = LIMIT + TOLERANCE + 0.5
_scenes = itertools.count()
PUBLISHES = tuple(one for one in OPERATIONS if one.name.startswith("publish"))
ASKS = tuple(one for one in OPERATIONS if one not in PUBLISHES)


@dataclass
class _One:
    cell: Cell
    scene: Scene
    client: rabbitmq.Client
    before: Mapping[str, Any]
    ended: Ended | None = None
    late: str | None = None


class Crowd:
    """Clients of one broker, one for each operation on a new and on an open connection.

    `address`: what the clients connect to; `hand`: where the suite's own hand does.
    """

    def __init__(
        self,
        address: Address,
        hand: Address,
        trouble: Trouble,
        operations: Iterable[Operation] = OPERATIONS,
    ) -> None:
        self._hand = hand
        self._address = address
        cells = [
            Cell(STORE, address, operation, warm, trouble)
            for operation in operations
            for warm in (False, True)
        ]
        self._all: list[_One] = []
        try:
            for number, one in enumerate(cells):
                self._all.append(self._make(number, one))
            with ThreadPoolExecutor(STORE.together) as threads:
                list(threads.map(self._warm_up, self._all))
        except BaseException:
            self.close()
            raise

    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self._all))

    def _make(self, number: int, one: Cell) -> _One:
        with contextlib.closing(Hand(self._hand)) as hand:
            scene = Scene(f"crowd-{next(_scenes)}")
            hand.make(scene, keep=True)
            before = STORE.data(hand, scene)
        # a name of its own: no cell meets another one's breaker
        client = rabbitmq.Client(one.server, name=f"crowd{number}", timeout=LIMIT)
        return _One(one, scene, client, before)

    def _warm_up(self, one: _One) -> None:
        if one.cell.warm:
            recovered(lambda: STORE.warm_up(one.client, one.scene), limit=STORE.patience)

    def call(self) -> list[Ended]:
        """All calls at the same time, each held to its limit; how they ended."""

        def work(one: _One) -> None:
            try:
                one.ended = timed(lambda: one.cell.operation.call(one.client, one.scene))
            except Exception as error:  # late, or not Unavailable
                one.late = f"{type(error).__name__}: {error}"

        with self._threads() as threads:
            list(threads.map(work, self._all))
        return [one.ended for one in self._all if one.ended is not None]

    def problems(self, *, lost: bool = False) -> list[str]:
        """What is wrong now that the fault is over; `lost`: what was on the broker is gone."""
        with ThreadPoolExecutor(STORE.together) as threads:
            found = list(threads.map(lambda one: list(self._judge(one, lost)), self._all))
        return [problem for problems in found for problem in problems]

    def _judge(self, one: _One, lost: bool) -> Iterator[str]:
        where = str(one.cell)
        if one.ended is None:
            yield f"{where}: {one.late}"
            return
        for problem in cell.judge(one.cell, one.scene, one.ended):
            yield f"{where}: {problem}"
        with contextlib.closing(Hand(self._hand)) as hand:
            hand.make(one.scene) if lost else hand.take_over(one.scene)
            wrong = recovered(lambda: STORE.follow_up(one.client, one.scene), limit=STORE.patience)
            if wrong:
                yield f"{where}: the next call after the fault: {wrong}"
            if not lost:
                yield from (f"{where}: {problem}" for problem in self._judge_data(hand, one))
        if STORE.busy(one.client, self._address):
            yield f"{where}: slots are taken after the last call ended"

    def _judge_data(self, hand: Hand, one: _One) -> Iterator[str]:
        assert one.ended is not None
        now = STORE.data(hand, one.scene)
        yield from cell.judge_data(one.cell, one.scene, one.ended, one.before, now)
        error = one.ended.error
        if isinstance(error, Unavailable) and not error.sent and now != one.before:
            yield f"sent=False, and yet the broker has {now}, not {one.before}"
        if one.cell.operation.in_the_end is not None:
            yield from cell.judge_the_end(one.cell.operation.in_the_end, hand, one.scene, one.ended)

    def close(self) -> None:
        """Close the clients."""
        with self._threads() as threads:
            list(threads.map(lambda one: one.client.close(), self._all))


@contextlib.contextmanager
def raw_pika(address: Address) -> Iterator[Callable[[], RawOutcome | None]]:
    """Plain pika, connected. Entered before the fault; called in it, it begins to call, and what
    that gives is how its call ended, or None: it hangs."""
    with RawCall(address, warm=True, driver="pika") as raw:

        def outcome() -> RawOutcome | None:
            raw.begin()
            return raw.outcome(RAW_HANGS_FOR)

        yield outcome
