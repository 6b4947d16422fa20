"""Faults that change on a link all the time, for the soaks."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence

from timedblock import faults
from timedblock.faults.proxy import Link


class Weather(threading.Thread):
    """Changes the fault of one link about every `change` seconds, from its own seed; for a share
    `calm` of the time there is none."""

    def __init__(
        self, link: Link, seed: str, kinds: Sequence[faults.Fault], *, change: float, calm: float
    ) -> None:
        super().__init__(daemon=True)
        self.link, self.kinds = link, kinds
        self.change, self.calm = change, calm
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(self.change * self.random.uniform(0.5, 1.5)):
            self.link.clear()
            if self.random.random() > self.calm:
                fault = self.random.choice(self.kinds)
                self.seen[fault.name] += 1
                self.link.inject(fault)
        self.link.clear()
