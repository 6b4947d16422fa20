"""memcached's operations: which are administrative, may be repeated, cost more (L4)."""

from __future__ import annotations

#: memcached has no default of its own for these; everything else is learnt
ADMINISTRATIVE = frozenset(
    ("cache_memlimit", "flush_all", "quit", "raw_command", "shutdown", "stats", "version")
)
ADMINISTRATIVE_LIMIT = 10.0
#: a second execution changes neither the store nor the answer
REPEATABLE = frozenset(("get", "get_many", "gets", "gets_many", "stats", "touch", "version"))

#: Requests of fewer keys and fewer kilobytes than this cost about the same.
SMALL = 10
#: Those of this many or more are one class.
LARGE = 1000


def size_class(keys: int, size: int = 0) -> str | None:
    """The key of a request that costs more than most, or None.

    By its keys or its kilobytes, of which it has more, in powers of ten: ``100_keys``, ``10_kB``.
    """
    kilobytes = size // 1000
    if keys < SMALL and kilobytes < SMALL:
        return None
    many, unit = (keys, "keys") if keys >= kilobytes else (kilobytes, "kB")
    return f"{min(LARGE, 10 ** (len(str(many)) - 1))}_{unit}"
