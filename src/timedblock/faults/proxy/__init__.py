"""Faults on the wire: a TCP relay that stands between a client and its server.

How it is made, from below: `loop` waits; `door` listens; `connection` pairs a client with the
upstream and carries bytes; `link` puts them together with `toxics`, which decide what becomes of
connections and bytes. `process` and `front` are the relay that a test starts (`Relay`), `api` and
`command` the one that a user starts and Toxiproxy's clients drive.
"""

from __future__ import annotations

from .front import Link, Relay

__all__ = ["Link", "Relay"]
