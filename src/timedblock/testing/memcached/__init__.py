"""A small memcached server in a process of its own, for tests and drills without Debian's.

It speaks the classic ASCII protocol over real TCP (IPv4, IPv6), UNIX sockets and TLS, and answers
byte for byte like memcached 1.6.18, which ``tests/servers`` checks. It does not have the meta and
binary protocols, slabs, or persistence::

    with EmbeddedMemcached() as server:
        client = pymemcache.Client(server.address)

By hand: ``python -m timedblock.testing.memcached --listen 127.0.0.1:11211``. It ends when its
standard input does, so it never outlives the process that started it.
"""

from .embedded import EmbeddedMemcached
from .store import Store

__all__ = ["EmbeddedMemcached", "Store"]
