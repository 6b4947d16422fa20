"""Learnt limits that outlive their process (L3): saved, aged, and taken up by a new one.

The file is JSON: ``{"format": "timedblock-learnt", "version": 1, "limits": [{"block", "endpoint",
"limit", "median", "at"}]}``, seconds all of them, `at` since the epoch; and ``"key"`` where the
limit is that of a tag or a size class. What can't be used is logged and left out: a snapshot never
breaks a start.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any

from . import fork, registry
from .deadline import check_seconds
from .policy.timeout import Learnt, Percentile

if TYPE_CHECKING:
    from .block import TimedBlock

logger = logging.getLogger("timedblock")

FORMAT, VERSION = "timedblock-learnt", 1
#: Seconds after which a limit says nothing any more: it should have seen the same hour of the day.
MAX_AGE = 24 * 3600.0
_MOST_BYTES = 10_000_000
_MOST_LIMITS = 10_000

# Wall time, the only one that two processes share. Replaced by tests.
_wall = time.time

Key = tuple[str, "str | None", "str | None"]
# when each of `registry.warm` was learnt
_learnt_at: dict[Key, float] = {}
_guard = fork.Guard()


def save_learnt(path: str | os.PathLike[str]) -> int:
    """Write the learnt limit of every block to `path`, atomically; returns how many.

    What was loaded and not learnt anew since is kept, with its age.

    Raises:
        OSError: the file can't be written; the one before stays as it was.
    """
    import json  # here and below: `import timedblock` is to stay cheap

    with _guard.lock:
        limits = _limits()
        document = {"format": FORMAT, "version": VERSION, "limits": limits}
        _replace(os.fspath(path), json.dumps(document, indent=1, allow_nan=False).encode())
    return len(limits)


def _limits() -> list[dict[str, Any]]:
    now = _wall()
    found: dict[Key, tuple[Learnt, float]] = {
        key: (learnt, _learnt_at.get(key, now))
        for key, learnt in registry.warm.items()
        if now - _learnt_at.get(key, now) <= MAX_AGE
    }
    for block in _blocks():
        learnt = block.learnt
        if learnt.source == "learnt" and _is_news(block):
            key = block.identity
            # of several clients' blocks, the most patient
            if key not in found or found[key][1] != now or found[key][0].limit < learnt.limit:
                found[key] = (learnt, now)
    return [
        {"block": name, "endpoint": where, "limit": one.limit, "median": one.median, "at": at}
        | ({} if key is None else {"key": key})
        for (name, where, key), (one, at) in list(found.items())[-_MOST_LIMITS:]
    ]


def _blocks() -> list[TimedBlock]:
    """All there are, each with its parts."""
    whole = list(registry.BLOCKS)
    return whole + [part for block in whole for part in block.parts().values()]


def _is_news(block: TimedBlock) -> bool:
    """Whether this process learnt it: a limit that was only taken up keeps its age."""
    timeout = block.policy.timeout
    return isinstance(timeout, Percentile) and block.histogram.answered_total >= timeout.min_samples


def _replace(path: str, content: bytes) -> None:
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def load_learnt(path: str | os.PathLike[str], *, max_age: float = MAX_AGE) -> int:
    """Let blocks start from the limits in `path`; returns how many there are.

    Blocks that exist and have learnt nothing yet take theirs up at once, others when they are
    made; each is clipped to its policy's floor and ceiling. A missing, foreign or broken file is
    logged and changes nothing.

    Args:
        path: what `save_learnt` wrote.
        max_age: seconds; what was learnt longer ago is left out.

    Raises:
        ValueError, TypeError: `max_age` is no duration.
    """
    check_seconds("load_learnt(max_age)", max_age)
    try:
        usable = _usable(_read(path), max_age)
    except FileNotFoundError:
        logger.info("%s: no learnt limits yet", path)
        return 0
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) else f"no snapshot of ours: {error}"
        logger.warning("%s: %s; limits are learnt anew", path, text)
        return 0
    with _guard.lock:
        for key, (learnt, at) in usable.items():
            registry.warm[key] = learnt
            _learnt_at[key] = at
    _take_up(usable)
    return len(usable)


def _read(path: str | os.PathLike[str]) -> list[Any]:
    import json

    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("it is something else")
    if document.get("version") != VERSION:
        raise ValueError(f"version {document.get('version')!r}, not {VERSION}")
    if not isinstance(document.get("limits"), list):
        raise ValueError("it has no limits")
    limits: list[Any] = document["limits"]
    return limits[-_MOST_LIMITS:]


def _usable(limits: list[Any], max_age: float) -> dict[Key, tuple[Learnt, float]]:
    now = _wall()
    found: dict[Key, tuple[Learnt, float]] = {}
    for entry in limits:
        name, where, key = entry["block"], entry["endpoint"], entry.get("key")
        if not isinstance(name, str) or not all(
            one is None or isinstance(one, str) for one in (where, key)
        ):
            raise TypeError(f"no name of a block: {name!r} on {where!r}, key {key!r}")
        limit = check_seconds("limit", entry["limit"])
        median = entry["median"]
        if median is not None:
            median = check_seconds("median", median, zero=True)
        at = entry["at"]
        if isinstance(at, bool) or not isinstance(at, (int, float)) or not math.isfinite(at):
            raise TypeError(f"at must be seconds since the epoch, not {at!r}")
        # a clock that was set back makes the future: worth as little as the distant past
        if abs(now - at) <= max_age:
            found[name, where, key] = (Learnt(limit, "learnt", median), at)
    return found


def _take_up(usable: dict[Key, tuple[Learnt, float]]) -> None:
    for block in _blocks():
        key = block.identity
        if key in usable and block.learnt.source == "initial":
            block.adopt(usable[key][0])
