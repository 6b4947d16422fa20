"""The toxic that changes bytes: corrupt."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ...flips import flip_framing, flip_payload
from .base import DOWN, Toxic

if TYPE_CHECKING:
    from ..connection import Flow


class Corrupt(Toxic):
    """A share ``rate`` of replies has bits flipped, in the framing or in the ``payload``."""

    usual_stream = DOWN

    def __init__(self, rate: float, payload: bool, draw: random.Random) -> None:
        super().__init__(draw)
        self._rate = rate
        self._flip = flip_payload if payload else flip_framing

    def received(self, flow: Flow, data: bytes) -> None:
        if flow.begins and self.draw.random() < self._rate:
            data = self._flip(data, self.draw)
        self.give(flow, data)
