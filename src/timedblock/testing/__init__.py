"""For tests: time that is advanced by hand, and embedded servers (L5)."""

from .clock import FakeClock
from .memcached import EmbeddedMemcached

__all__ = ["EmbeddedMemcached", "FakeClock"]
