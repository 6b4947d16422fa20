"""Addresses of memcacheds: what pymemcache takes, checked before anything is sent there (L4)."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from pymemcache.client import base

# White space and control characters, and what only a URL or a bracketed address has.
_NOT_IN_A_HOST = re.compile(r"[\s\x00-\x1f\x7f/\[\]]")
_LONGEST_SHOWN = 100


def checked(server: Any) -> Any:
    """The (host, port) or the socket's path that pymemcache reads in `server`.

    A relative path keeps its ``unix:``, without which it would be a host's name.
    A port may be a string of digits, which pymemcache hands to `getaddrinfo` as it is.

    Raises:
        ValueError, TypeError: naming the part that is no address. What stands before an ``@`` is
            never named: somebody takes it for a place of passwords.
    """
    if isinstance(server, str):
        return _read(server)
    if not isinstance(server, tuple):
        raise ValueError(f"Unsupported server specification: {_shown(server)}")
    if len(server) != 2:
        raise ValueError(f"a memcached's address is (host, port), not {_shown(server)}")
    _check_port(server[1])
    _check_host(server[0], server[0])
    return server


def _read(text: str) -> Any:
    """The address in a string, as pymemcache splits it."""
    path = text[5:] if text.startswith("unix:") else text
    if path.startswith("/") or path is not text:
        if not path:
            raise ValueError(f"a UNIX socket needs a path, not {text!r}")
        return path if path.startswith("/") else text
    if "@" in text:
        raise ValueError(_no_user_info(text))
    _, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        _check_port_text(port.strip(), text)  # as `int` does
    server = base.normalize_server_spec(text)
    _check_host(server[0], text)
    return server


def _check_port(port: Any) -> None:
    if isinstance(port, str):
        _check_port_text(port, port)
    elif isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"a memcached's port must be a whole number, not {_shown(port)}")
    elif not 1 <= port <= 65535:
        # Python doesn't write out a number of thousands of digits
        number = repr(port) if port.bit_length() < 100 else f"one of {port.bit_length()} bits"
        raise ValueError(f"a memcached's port must be from 1 to 65535, not {number}")


def _check_port_text(port: str, whole: str) -> None:
    digits = port.lstrip("0")
    right = digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535
    if not right:
        raise ValueError(f"a memcached's port must be from 1 to 65535, not {_shown(whole)}")


def _check_host(host: Any, whole: Any) -> None:
    if isinstance(host, str) and "@" in host:
        raise ValueError(_no_user_info(host))
    if not isinstance(host, str):
        raise TypeError(f"a memcached's host must be a string, not {_shown(host)}")
    if not host or _NOT_IN_A_HOST.search(host) or not _can_be_asked(host):
        raise ValueError(f"a memcached's host must be a name or an IP address, not {_shown(whole)}")


def _can_be_asked(host: str) -> bool:
    """Whether a resolver can be asked for it: IPv6, or a name that has an encoding."""
    try:
        if ":" in host:
            ipaddress.IPv6Address(host)
        else:
            host.encode("idna")
    except ValueError:
        return False
    return True


def _no_user_info(text: str) -> str:
    return f"a memcached's address has no user-info: {_shown(text)}"


def _shown(value: Any) -> str:
    """`value` for an error: short, and without anything before an ``@``."""
    text = repr(value)
    _, at, after = text.rpartition("@")
    if at:
        text = "'…@" + after
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def show(server: Any) -> str:
    """A server's address as people write it."""
    if isinstance(server, tuple):
        host, port = server
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(server)
