"""memcached behind TLS under the contract: the same client with the user's own context."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymemcache
import pytest
import trustme

from tests.contract.faults import Expected, Trouble
from tests.contract.store import Address
from tests.contract.stores.memcache import OPERATIONS, Memcache
from tests.servers.memcached import Memcached, binary, free_port
from timedblock import ConnectFailed, ConnectionLost, DeadlineExceeded, memcache
from timedblock.testing.memcached import EmbeddedMemcached

# The transport is another, the operations are not: one of each kind is enough.
_NAMES = {"get", "get_many", "set", "set of 900 kB", "incr", "delete_many", "stats"}
# Nothing of a request leaves before the handshake is done.
_NO_HANDSHAKE = Expected((DeadlineExceeded, ConnectFailed), sent=False)
_IN_HANDSHAKE = {
    name: _NO_HANDSHAKE for name in ("hang", "silent", "drip", "reset", "cut", "corrupt")
}
# The fault hits TLS's own records: their length, or what their checksum tells.
_CORRUPT = Expected((ConnectionLost, DeadlineExceeded), sent=True)
# What may be repeated is, once, and then meets the fault in its handshake.
_RESET = Expected((ConnectionLost, ConnectFailed), sent=True)


class MemcacheTls(Memcache):
    """memcached with a certificate of an authority of the test's own."""

    name = "memcache-tls"
    operations = tuple(one for one in OPERATIONS if one.name in _NAMES)

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._context = ssl.create_default_context()
        self._authority.configure_trust(self._context)

    @contextlib.contextmanager
    def _certificate(self) -> Iterator[tuple[Path, Path]]:
        """The files of a chain and its key, readable for memcached's user too."""
        certificate = self._authority.issue_cert("127.0.0.1")
        with tempfile.TemporaryDirectory() as name:
            chain, key = Path(name, "chain.pem"), Path(name, "key.pem")
            for blob in certificate.cert_chain_pems:
                blob.write_to_path(chain, append=True)
            certificate.private_key_pem.write_to_path(key)
            Path(name).chmod(0o755)
            yield chain, key

    @contextlib.contextmanager
    def embedded(self) -> Iterator[Address]:  # type: ignore[override]
        with (
            self._certificate() as (chain, key),
            EmbeddedMemcached(tls_cert=chain, tls_key=key) as server,
        ):
            assert isinstance(server.address, tuple)
            yield server.address

    @contextlib.contextmanager
    def real(self) -> Iterator[Address]:  # type: ignore[override]
        if binary() is None:
            pytest.skip("no memcached here to start with a certificate: install it")
        with self._certificate() as (chain, key):
            options = ["-Z", "-o", f"ssl_chain_cert={chain},ssl_key={key}"]
            with Memcached(("127.0.0.1", free_port()), options=options) as server:
                yield server.address

    def client(self, address: Address, limit: float) -> memcache.Client:
        return memcache.Client(address, timeout=limit, tls_context=self._context)

    def raw(self, address: Address) -> pymemcache.Client:
        return pymemcache.Client(
            address, timeout=10.0, default_noreply=False, tls_context=self._context
        )

    def expected(self, trouble: Trouble, warm: bool) -> Expected:
        if warm and trouble.name in ("corrupt", "reset"):
            return _CORRUPT if trouble.name == "corrupt" else _RESET
        if not warm and trouble.name in _IN_HANDSHAKE:
            return _IN_HANDSHAKE[trouble.name]
        return super().expected(trouble, warm)

    def raw_options(self) -> dict[str, Any]:
        return {"authority": self._authority.cert_pem.bytes().decode()}
