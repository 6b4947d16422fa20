"""Bits to flip in memcached's replies: what "corrupt" does, in every injector (L2)."""

from __future__ import annotations

import random


def flip_framing(reply: bytes, draw: random.Random) -> bytes:
    """The reply with one byte of its first line flipped, so that a client which checks the
    protocol can see it: in the first word, the line's end, or the length of a VALUE. Keys, flags
    and cas numbers stay, because there a flip makes another valid reply."""
    end = reply.find(b"\n") + 1 or len(reply)
    words = reply[:end].split(b" ")
    where = (*range(len(words[0].rstrip())), end - 1)
    places: list[tuple[int, tuple[int, ...]]] = [(place, (0x40, 0x80)) for place in where]
    if words[0] == b"VALUE" and len(words) >= 4:
        start = sum(len(word) + 1 for word in words[:3])
        length = len(words[3].rstrip())
        places += [(start + at, (0x01, 0x02, 0x04, 0x40)) for at in range(length)]
    place, masks = draw.choice(places)
    return _flipped(reply, place, draw.choice(masks))


def flip_payload(reply: bytes, draw: random.Random) -> bytes:
    """The reply with one bit of the data after its first line flipped, if there is any."""
    start = reply.find(b"\n") + 1
    words = reply[:start].split()
    if not start or words[0] != b"VALUE" or len(words) < 4 or not words[3].isdigit():
        return reply
    size = min(int(words[3]), len(reply) - start)
    if size <= 0:
        return reply
    return _flipped(reply, start + draw.randrange(size), 1 << draw.randrange(8))


def _flipped(data: bytes, place: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= mask
    return bytes(changed)
