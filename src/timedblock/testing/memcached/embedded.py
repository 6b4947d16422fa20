"""`EmbeddedMemcached`: the server as a test sees it (L5)."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from ...child import Child, Gone


class EmbeddedMemcached:
    """The server in a process of its own, for the time of a ``with`` block, or between
    ``start`` and ``stop``. ``port`` 0 takes a free one, and keeps it when started again.

    ``unix`` is the path of a UNIX socket to listen on instead of TCP. ``tls_cert`` and
    ``tls_key`` are files; ``memory`` is in megabytes."""

    START_LIMIT = 10.0

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        memory: int = 64,
        enable_shutdown: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._unix = None if unix is None else os.fspath(unix)
        options: list[str] = ["--memory", str(memory)]
        if tls_cert is not None:
            options += ["--tls-cert", os.fspath(tls_cert)]
        if tls_key is not None:
            options += ["--tls-key", os.fspath(tls_key)]
        if enable_shutdown:
            options.append("--enable-shutdown")
        self._options = options
        self._child: Child | None = None

    @property
    def address(self) -> tuple[str, int] | str:
        """Where it listens: (host, port), or the path of its UNIX socket."""
        return (self._host, self._port) if self._unix is None else self._unix

    @property
    def pid(self) -> int:
        """The process. RuntimeError if it isn't running."""
        if self._child is None:
            raise RuntimeError("the embedded memcached is not running")
        return self._child.pid

    def start(self) -> EmbeddedMemcached:
        """Start the process; returns once it listens. RuntimeError if it can't."""
        if self._child is not None:
            raise RuntimeError("the embedded memcached is already running")
        where = (
            ["--unix", self._unix]
            if self._unix is not None
            else ["--listen", f"{self._host}:{self._port}"]
        )
        self._child = Child("timedblock.testing.memcached", *where, *self._options)
        try:
            report = self._read_report(self._child)
        except BaseException:
            self.stop()
            raise
        if "address" in report:
            self._port = report["address"][1]
        return self

    def _read_report(self, child: Child) -> dict[str, Any]:
        try:
            report: dict[str, Any] = child.hear(self.START_LIMIT)
        except Gone:
            raise RuntimeError(f"the embedded memcached did not start at {self.address}") from None
        return report

    def stop(self) -> None:
        """End the process; harmless when it isn't running."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def kill(self) -> None:
        """End the process as a crash would; ``start`` brings it back, empty, at its address."""
        if self._child is not None:
            self._child.kill()
        self.stop()

    def __enter__(self) -> EmbeddedMemcached:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
