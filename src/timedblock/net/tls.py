"""The user's TLS context on our sockets (L3). The context is never modified."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from .sockets import DeadlineTLSSocket, close_quietly

if TYPE_CHECKING:
    from .sockets import DeadlineSocket


def wrap(
    context: ssl.SSLContext, sock: DeadlineSocket, server_hostname: str | None
) -> DeadlineTLSSocket:
    """A TLS socket of ours over `sock`, which it takes over; the handshake is still to be done.

    ``context.wrap_socket`` would make the context's own `sslsocket_class`, and setting that would
    change the user's context; SSLSocket's own constructor takes the context as it is.
    """
    clock, ceiling, until = sock.clock, sock.ceiling, sock.until
    wrapped: DeadlineTLSSocket = DeadlineTLSSocket._create(  # type: ignore[attr-defined]
        sock=sock,
        server_side=False,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=True,
        server_hostname=server_hostname,
        context=context,
    )
    wrapped.clock, wrapped.ceiling, wrapped.until = clock, ceiling, until
    return wrapped


class Context:
    """Stands in for an `ssl.SSLContext` where a driver calls ``wrap_socket`` on it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def wrap_socket(
        self, sock: DeadlineSocket, server_hostname: str | None = None
    ) -> DeadlineTLSSocket:
        """A deadline TLS socket over `sock`, shaken hands within the deadline in force."""
        wrapped = wrap(self.context, sock, server_hostname)
        try:
            wrapped.do_handshake()
        except BaseException:
            close_quietly(wrapped)
            raise
        return wrapped
