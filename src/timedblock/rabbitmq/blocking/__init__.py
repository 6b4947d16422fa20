"""pika's BlockingConnection and its channel, none of whose calls hangs (L4)."""

from __future__ import annotations

from .channel import BlockingChannel
from .connection import BlockingConnection

__all__ = ["BlockingChannel", "BlockingConnection"]
