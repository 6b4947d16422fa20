"""Virtual time: simpy's, as the `Clock` of blocks, deadlines and policies."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NoReturn

import simpy
from simpy.events import Timeout

from .. import clock as _clock

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class SimClock:
    """The clock of a simulation. Nothing can wait on it: what waits is an event of simpy."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        # kept by blocks; the attribute behind `Environment.now`, one call less each read
        self.monotonic: Callable[[], float] = lambda: env._now

    def sleep(self, seconds: float) -> NoReturn:
        """Raises RuntimeError: a simulation has no thread that could sleep."""
        raise RuntimeError("nothing sleeps in a simulation; yield env.timeout(seconds)")

    def wait(self, lock: _clock.Lock, seconds: float) -> NoReturn:
        """Raises RuntimeError, as `sleep` does."""
        self.sleep(seconds)

    def timer(
        self, loop: asyncio.AbstractEventLoop, at: float, callback: Callable[[], object]
    ) -> NoReturn:
        """Raises RuntimeError, as `sleep` does."""
        self.sleep(at)


class Simulation:
    """One world: its time, its chance, its faults.

    Args:
        seed: the same seed gives the same run, to the last bit.

    Attributes:
        env: simpy's environment, for processes of your own.
        clock: the time, as a `Clock`.
        random: where the world's chance comes from.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.env = simpy.Environment()
        self.clock = SimClock(self.env)
        self.random = random.Random(seed)

    @property
    def now(self) -> float:
        """Seconds since the simulation began."""
        return float(self.env.now)

    def after(self, seconds: float, do: Callable[..., object], *arguments: Any) -> None:
        """Call ``do(*arguments)`` when `seconds` have passed."""
        event = Timeout(self.env, seconds)
        assert event.callbacks is not None

        def come(_: object) -> None:
            do(*arguments)

        event.callbacks.append(come)

    def at(self, instant: float, do: Callable[..., object], *arguments: Any) -> None:
        """Call ``do(*arguments)`` at `instant` (seconds since the simulation began)."""
        self.after(instant - self.now, do, *arguments)

    def every(self, seconds: float, do: Callable[[], object]) -> None:
        """Call `do` again and again, `seconds` apart."""

        def once() -> None:
            do()
            self.after(seconds, once)

        self.after(seconds, once)

    def run(self, until: float) -> None:
        """Let time pass until the instant `until`."""
        # tenacity draws its waits from the module's own generator
        state = random.getstate()
        random.seed(self.random.random())
        _clock.push(self.clock)
        try:
            self.env.run(until)
        finally:
            _clock.pop(self.clock)
            random.setstate(state)
