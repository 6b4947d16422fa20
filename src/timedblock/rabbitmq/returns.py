"""Which of the messages that are unconfirmed came back, since no queue got it (L4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import Unroutable
from .request import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .request import Item, Publication

_THE_SAME = 3
#: Messages that are looked at after one that is like it, for one that is the same.
_FURTHER = 1000


class Returns:
    """A return has no tag, but comes in the order of publishing and before its confirm. One for
    each channel."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def tell(
        self,
        unconfirmed: Mapping[int, Publication | Item],
        tags: range,
        method: Any,
        properties: Any,
        body: bytes,
    ) -> None:
        """Tell the one of `unconfirmed` (by its tag, one of `tags`) that came back."""
        found: tuple[int, int] | None = None
        for tag in range(max(self._last + 1, tags.start), tags.stop):
            one = unconfirmed.get(tag)
            if one is None or one.settled or one.abandoned:
                continue
            score = _likeness(one, method, properties, body)
            if found is None or score > found[0]:
                found = score, tag
            if score == _THE_SAME or (found[0] > 1 and tag > found[1] + _FURTHER):
                break
        if found is not None and found[0]:
            self._last = found[1]
            unconfirmed[found[1]].fail(Failure(Unroutable(method.reply_code, method.reply_text)))


def _likeness(one: Publication | Item, method: Any, properties: Any, body: bytes) -> int:
    """How much `one` is like the message that came back; 0: it can't be that one.

    RabbitMQ may have read the properties and written them anew (headers in another order).
    """
    envelope = one.envelope
    if envelope.route != (method.exchange, method.routing_key):
        return 0
    if one.body != body:
        return 1
    return _THE_SAME if envelope.properties == vars(properties) else 2
