"""Which blocks there are (L3): bounded names, weakly held."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from .weak import WeakMembers

if TYPE_CHECKING:
    from .block import TimedBlock

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
