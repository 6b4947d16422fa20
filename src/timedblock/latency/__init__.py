"""What an operation's latency was lately (L1)."""

from .buckets import SIZE, SUB, TINY, ZERO, bucket, middle
from .histogram import SLICE, WINDOW, Histogram, pooled

__all__ = [
    "SIZE",
    "SLICE",
    "SUB",
    "TINY",
    "WINDOW",
    "ZERO",
    "Histogram",
    "bucket",
    "middle",
    "pooled",
]
