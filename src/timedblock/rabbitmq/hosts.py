"""What the user calls hosts, as pika's parameters (L4)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import pika

from ..net.resolve import literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: An IP address and a port.
Place: TypeAlias = "tuple[str, int]"

#: Seconds between heartbeats, where the user's parameters don't say.
HEARTBEAT = 10


def read(hosts: Any) -> list[pika.ConnectionParameters]:
    """Connection parameters of each host.

    Args:
        hosts: an AMQP URL, a (host, port) pair or pika's parameters; or several of them.

    Raises:
        ValueError, TypeError: naming what is no host, without its user-info.
    """
    one = isinstance(hosts, (str, pika.connection.Parameters)) or _is_pair(hosts)
    given = [hosts] if one else list(hosts)
    if not given:
        raise ValueError("hosts must name at least one RabbitMQ")
    return [_read_one(host) for host in given]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int)


def _read_one(host: Any) -> pika.ConnectionParameters:
    parameters: Any
    if isinstance(host, str):
        if not host.startswith(("amqp://", "amqps://")):
            raise ValueError("a RabbitMQ's URL begins with amqp:// or amqps://")
        try:
            parameters = pika.URLParameters(host)
        except Exception as error:
            raise ValueError(
                f"a RabbitMQ's URL is not understood: {type(error).__name__}"
            ) from None
    elif _is_pair(host):
        name, port = host
        if not isinstance(name, str) or not name:
            raise TypeError(f"a RabbitMQ's host must be a name or an IP address, not {name!r}")
        if isinstance(port, bool) or not 1 <= port <= 65535:
            raise ValueError(f"a RabbitMQ's port must be from 1 to 65535, not {port!r}")
        parameters = pika.ConnectionParameters(name, port)
    elif isinstance(host, pika.connection.Parameters):
        parameters = copy.copy(host)
    else:
        raise TypeError(f"a RabbitMQ is a URL or (host, port), not a {type(host).__name__}")
    if parameters.heartbeat is None:
        parameters.heartbeat = HEARTBEAT
    found: pika.ConnectionParameters = parameters
    return found


def show(parameters: pika.ConnectionParameters, ip: str | None = None) -> str:
    """A host as people write it, without user-info; of a name, at which `ip`."""
    host = parameters.host
    shown = f"[{host}]:{parameters.port}" if ":" in host else f"{host}:{parameters.port}"
    return shown if ip in (None, host) else f"{shown} ({ip})"


class Places:
    """Where the hosts are: a name may stand for all nodes of a cluster. On the I/O thread."""

    def __init__(self, hosts: Sequence[pika.ConnectionParameters]) -> None:
        self._of: dict[tuple[str, int], list[Place]] = {}
        for host in hosts:
            if literal(host.host, host.port) is not None:
                self.learn(host, (host.host,))

    def learn(self, host: pika.ConnectionParameters, ips: Iterable[str]) -> None:
        """What its name was resolved to."""
        self._of[host.host, host.port] = [(ip, host.port) for ip in ips]

    def of(self, host: pika.ConnectionParameters) -> list[Place]:
        """Those of one host; none where it was never resolved."""
        return self._of.get((host.host, host.port), [])

    def all(self) -> list[Place]:
        """Those of all hosts, each once."""
        return list(dict.fromkeys(place for places in self._of.values() for place in places))


def at(parameters: pika.ConnectionParameters, ip: str, seconds: float) -> Any:
    """`parameters` for one attempt at one address, at most so long."""
    one: Any = copy.copy(parameters)
    one.connection_attempts = 1
    one.retry_delay = 0
    one.blocked_connection_timeout = None
    one.socket_timeout = one.stack_timeout = seconds
    if parameters.ssl_options is not None:
        name = parameters.ssl_options.server_hostname or parameters.host
        one.ssl_options = pika.SSLOptions(parameters.ssl_options.context, name)
    one.host = ip
    return one
