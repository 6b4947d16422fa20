"""What a call is about, where its cost depends on that (L1).

The tag in force is kept in a ContextVar, so threads, tasks and greenlets each see their own, and
`bind` and our workers carry it.
"""

from __future__ import annotations

import contextvars
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,99}")

#: Read on the hot path as a truth value: no tag was ever made in this process.
used: list[bool] = []


def check_key(what: str, key: object) -> str:
    """`key` where it is one; TypeError or ValueError naming it where it isn't."""
    if not isinstance(key, str):
        raise TypeError(f"{what} must be a str, not {key!r}")
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"{what} must be up to 100 letters, digits, '_', '.', '-' and '/', not {key!r}"
        )
    return key


class _Entry:
    """One entry of a `tag`."""

    __slots__ = ("left", "maker", "outer", "stale")

    def __init__(self, maker: tag, outer: _Entry | None) -> None:
        self.maker = maker
        self.outer = outer
        self.left = False
        #: left while it was not the innermost one
        self.stale = False


_tag: contextvars.ContextVar[_Entry | None] = contextvars.ContextVar("timedblock_tag", default=None)
get = _tag.get


def _in_force(entry: _Entry | None) -> _Entry | None:
    # One that was left in turn is still in force in a task that was started inside.
    while entry is not None and entry.stale:
        entry = entry.outer
    return entry


def current() -> str | None:
    """The name of the tag in force, or None."""
    entry = _in_force(get())
    return None if entry is None else entry.maker.name


class tag:
    """``with tag("report"):`` gives every call inside the learnt limit of its own kind.

    For work that costs more (or less) than an operation usually does: it has a latency window and
    a limit of its own in each block that learns. Until it has `min_samples` of them it uses the
    block's data as a whole. The innermost tag counts. An endpoint (a block without one: the block)
    has at most 64 keys; what comes after is "other".

    Args:
        name: up to 100 letters, digits, ``_ . - /``. One of few: not a user's id.

    Raises:
        ValueError, TypeError: `name` is none.
    """

    def __init__(self, name: str) -> None:
        self.name = check_key("a tag", name)
        if not used:
            used.append(True)

    def __enter__(self) -> tag:
        _tag.set(_Entry(self, get()))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        innermost = mine = get()
        while mine is not None and (mine.maker is not self or mine.left):
            mine = mine.outer
        if mine is None:
            return  # a generator that was closed in another context than it was entered in
        mine.left = True
        if mine is innermost:
            _tag.set(_in_force(mine.outer))
        else:
            mine.stale = True  # a generator's, left out of turn
