"""The operations on queues, exchanges and bindings (L4)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from .calling import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .topology import Declare, Topology


class Declaring(Caller):
    """The operations on queues, exchanges and bindings."""

    _topology: Topology

    def _rpc(self, operation: str, question: Declare) -> Any:
        return self._ask(operation, lambda channel, request, answered: question(channel, answered))

    def declare_queue(
        self,
        queue: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        passive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Declare a queue (durable, unless said otherwise); its name: "" makes one up.

        It is declared again on every new connection, until it is deleted by this client.
        """
        if queue == "" and not passive:
            # RabbitMQ's own names can't be declared again
            queue = f"timedblock.gen-{secrets.token_urlsafe(16)}"

        def declare(channel: Any, answered: Callable[[Any], None]) -> None:
            channel.queue_declare(
                queue,
                passive=passive,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=dict(arguments or {}),
                callback=answered,
            )

        self._rpc("declare_queue", declare)
        if not passive:
            self._topology.add(("queue", queue), declare, exclusive)
        return queue

    def declare_exchange(
        self,
        exchange: str,
        exchange_type: str = "direct",
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        passive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an exchange (durable, unless said otherwise).

        It is declared again on every new connection, until it is deleted by this client.
        """

        def declare(channel: Any, answered: Callable[[Any], None]) -> None:
            channel.exchange_declare(
                exchange,
                exchange_type,
                passive=passive,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=dict(arguments or {}),
                callback=answered,
            )

        self._rpc("declare_exchange", declare)
        if not passive:
            self._topology.add(("exchange", exchange), declare)

    def bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Have `exchange` send to `queue` what has `routing_key` (or, of a headers exchange, what
        `arguments` say). It is bound again on every new connection, until `unbind`."""

        def bind(channel: Any, answered: Callable[[Any], None]) -> None:
            channel.queue_bind(
                queue, exchange, routing_key, dict(arguments or {}), callback=answered
            )

        self._rpc("bind", bind)
        # what belongs to an exclusive queue can be bound on its own connection only
        exclusive = self._topology.is_exclusive(queue)
        self._topology.add(_binding(queue, exchange, routing_key, arguments), bind, exclusive)

    def unbind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Undo `bind`."""
        self._rpc(
            "unbind",
            lambda channel, answered: channel.queue_unbind(
                queue, exchange, routing_key, dict(arguments or {}), callback=answered
            ),
        )
        self._topology.drop(*_binding(queue, exchange, routing_key, arguments))

    def purge(self, queue: str) -> int:
        """Drop the messages of `queue`; how many there were."""
        frame = self._rpc(
            "purge", lambda channel, answered: channel.queue_purge(queue, callback=answered)
        )
        return int(frame.method.message_count)

    def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete `queue`; how many messages went with it."""
        frame = self._rpc(
            "delete_queue",
            lambda channel, answered: channel.queue_delete(
                queue, if_unused, if_empty, callback=answered
            ),
        )
        self._topology.drop("queue", queue)
        return int(frame.method.message_count)

    def delete_exchange(self, exchange: str, *, if_unused: bool = False) -> None:
        """Delete `exchange`."""
        self._rpc(
            "delete_exchange",
            lambda channel, answered: channel.exchange_delete(
                exchange, if_unused, callback=answered
            ),
        )
        self._topology.drop("exchange", exchange)


def _binding(
    queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
) -> tuple[str, ...]:
    return "bind", queue, exchange, routing_key, repr(sorted((arguments or {}).items()))
