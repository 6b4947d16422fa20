"""An interrupt at every line of a piece of code, one after the other."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any


class Interrupt(BaseException):
    """Like KeyboardInterrupt: nobody catches it by accident."""


def struck_at(number: int, module: ModuleType, action: Callable[[], object]) -> bool:
    """Do `action`, struck before the `number`-th line that it runs in `module`; False: it ended.

    A package's lines are those of all its modules.
    """
    left = number
    where = str(module.__file__).removesuffix("__init__.py")

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(where):
            return None
        if event == "line" and not _leaves_with(frame):
            if not left:
                sys.settrace(None)
                raise Interrupt(f"{frame.f_code.co_name}, line {frame.f_lineno}")
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def _leaves_with(frame: FrameType) -> bool:
    """Whether this may be the way out of a ``with``, where CPython lets no interrupt in.

    Nor does it at a ``try``; and 3.11 would not leave the ``with`` around it for one.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith(("with ", "try:"))


def every_line(module: ModuleType, prepare: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """For each line that `prepare()`'s action runs in `module`: strike there, and yield its number.

    What is looked at after each yield is what the interrupted action left behind.
    """
    number = 0
    while struck_at(number, module, prepare()):
        yield number
        number += 1
    assert number, "the action ran no line of the module"
