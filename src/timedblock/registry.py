"""Which blocks there are (L3): bounded names, weakly held; and where their settings come from.

Configuration lies above the blocks, so it is handed in: `find_source` makes the `Source` when the
first block is made, and a program that makes none reads no file.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Protocol

from .weak import WeakMembers

if TYPE_CHECKING:
    from collections.abc import Callable

    from .block import TimedBlock
    from .policy import Policy
    from .policy.timeout import Learnt

logger = logging.getLogger("timedblock")

#: Past so many different names, new ones are folded into "other".
MOST_NAMES = 1000
OTHER = "other"

BLOCKS: WeakMembers[TimedBlock] = WeakMembers()
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


def check_name(name: str) -> str:
    """`name` where it is one, or "other" when there are too many; ValueError naming a bad one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a block's name is up to 100 letters, digits, '_', '.' and '-', not {name!r}"
        )
    names = {block.name for block in list(BLOCKS)}
    if name in names or len(names) < MOST_NAMES:
        return name
    if OTHER not in names:  # once, not for each of thousands
        logger.warning("more than %d block names; the new ones are counted as 'other'", MOST_NAMES)
    return OTHER


class Source(Protocol):
    """Where a block's policy and mode come from, besides the code."""

    @property
    def observing(self) -> bool:
        """Whether learnt limits and breakers decide on paper only."""

    def policy(self, block: TimedBlock) -> Policy:
        """What configuration makes of ``block.given``; raises nothing."""


#: Makes the source when the first block is made; `timedblock` sets it.
find_source: Callable[[], Source] | None = None
source: Source | None = None

#: What an earlier process had learnt, by block, endpoint and key: see `timedblock.snapshot`.
warm: dict[tuple[str, str | None, str | None], Learnt] = {}


def observing() -> bool:
    """Whether learnt limits and breakers decide on paper only."""
    return source is not None and source.observing


def settings(block: TimedBlock) -> tuple[Policy, bool]:
    """The policy of a new block, and whether it only observes.

    Raises:
        ValueError: the configuration can't be read (told to whoever makes the first block).
    """
    global source
    if source is None:
        if find_source is None:
            return block.given, False
        source = find_source()
    return source.policy(block), source.observing
