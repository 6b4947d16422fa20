"""`PooledClient`: pymemcache's, over one thread-safe `Client`."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from pymemcache.client import base

from ..policy import UNSET
from .addresses import checked
from .client import Client

if TYPE_CHECKING:
    from types import TracebackType


class _OnePool:
    """pymemcache's pool, as far as `PooledClient` uses it: our `Client` pools by itself."""

    def __init__(self, owner: PooledClient) -> None:
        self._owner = owner
        self._client: Client | None = None

    def get(self) -> Client:
        """The one client, made at first use."""
        if self._client is None:
            self._client = self._owner._create_client()
        return self._client

    def release(self, client: Client, silent: bool = True) -> None:
        """Nothing to do: connections go back by themselves."""

    def destroy(self, client: Client, silent: bool = True) -> None:
        """Close its idle connections."""
        client.close()

    def clear(self) -> None:
        """Close the idle connections."""
        if self._client is not None:
            self._client.close()

    def get_and_release(self, destroy_on_fail: bool = False) -> _OnePool:
        """A context that yields the client."""
        return self

    def __enter__(self) -> Client:
        return self._client or self.get()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class PooledClient(base.PooledClient):
    """A drop-in for `pymemcache.client.base.PooledClient`; see `Client` for its limits and errors.

    `max_pool_size` is 32 by default (pymemcache: unbounded); past it callers wait within their
    deadline. `lock_generator` is accepted and not needed.
    """

    client_class = Client

    def __init__(
        self,
        server: Any,
        serde: Any = None,
        serializer: Any = None,
        deserializer: Any = None,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        no_delay: bool = False,
        ignore_exc: bool = False,
        socket_module: Any = socket,
        socket_keepalive: Any = None,
        key_prefix: bytes = b"",
        max_pool_size: int | None = None,
        pool_idle_timeout: float = 0,
        lock_generator: Any = None,
        default_noreply: bool = False,
        allow_unicode_keys: bool = False,
        encoding: str = "ascii",
        tls_context: Any = None,
        *,
        name: str = "memcache",
        policy: Any = None,
        on_unavailable: Any = UNSET,
    ) -> None:
        self._address = checked(server)
        super().__init__(
            self._address,
            serde,
            serializer,
            deserializer,
            connect_timeout,
            timeout,
            no_delay,
            ignore_exc,
            socket_module,
            socket_keepalive,
            key_prefix,
            None,
            pool_idle_timeout,
            lock_generator,
            default_noreply,
            allow_unicode_keys,
            encoding,
            tls_context,
        )
        self._own = {
            "name": name,
            "policy": policy,
            "on_unavailable": on_unavailable,
            "max_pool_size": max_pool_size,
            "pool_idle_timeout": pool_idle_timeout,
        }
        self.client_pool = _OnePool(self)  # type: ignore[assignment]
        self._create_client()  # bad arguments are refused now, not at the first use

    def _create_client(self) -> Client:
        return self.client_class(
            self._address,
            serde=self.serde,
            connect_timeout=self.connect_timeout,
            timeout=self.timeout,
            no_delay=self.no_delay,
            socket_module=self.socket_module,
            socket_keepalive=self.socket_keepalive,
            key_prefix=self.key_prefix,
            default_noreply=self.default_noreply,
            allow_unicode_keys=self.allow_unicode_keys,
            encoding=self.encoding,
            tls_context=self.tls_context,
            **self._own,
        )
