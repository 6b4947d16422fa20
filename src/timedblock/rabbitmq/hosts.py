"""What the user calls hosts, as pika's parameters (L4)."""

from __future__ import annotations

import copy
from typing import Any

import pika

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


def show(parameters: pika.ConnectionParameters) -> str:
    """A host as people write it, without user-info."""
    host = parameters.host
    return f"[{host}]:{parameters.port}" if ":" in host else f"{host}:{parameters.port}"


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
