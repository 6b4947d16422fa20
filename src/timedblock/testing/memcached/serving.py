"""The server's process: its arguments, where it listens, and when it ends (L5)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import threading
from collections.abc import Callable

from .engine import Engine
from .session import Session
from .store import Store


def _end_with_stdin(end: Callable[[], object]) -> None:
    """Call ``end`` when standard input ends: whoever started us is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            end()

    threading.Thread(target=wait, daemon=True, name="stdin-watch").start()


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT") from None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="timedblock.testing.memcached", description="A small memcached for tests."
    )
    parser.add_argument("--listen", type=_host_port, metavar="HOST:PORT", help="port 0: any")
    parser.add_argument("--unix", metavar="PATH", help="listen on a UNIX socket")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--memory", type=int, default=64, metavar="MB", help="default 64")
    parser.add_argument("--enable-shutdown", action="store_true", help="allow `shutdown`")
    options = parser.parse_args(argv)
    if options.listen is None and options.unix is None:
        options.listen = ("127.0.0.1", 11211)
    return options


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    engine = Engine(Store(options.memory << 20), allow_shutdown=options.enable_shutdown)

    def session() -> Session:
        return Session(engine, done.set)

    tls = _tls(options)
    report: dict[str, object] = {"pid": os.getpid()}
    servers = []
    if options.listen is not None:
        host, port = options.listen
        server = await loop.create_server(session, host, port, backlog=1024, ssl=tls)
        report["address"] = server.sockets[0].getsockname()[:2]
        servers.append(server)
    if options.unix is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.unix)
        servers.append(await loop.create_unix_server(session, options.unix, backlog=1024, ssl=tls))
        report["unix"] = options.unix
    _end_with_stdin(lambda: loop.call_soon_threadsafe(done.set))
    print(json.dumps(report), flush=True)
    await done.wait()
    for server in servers:
        server.close()


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends. The first line of output is JSON: ``pid``, ``address``
    (host and port), ``unix`` (path)."""
    options = _arguments(argv)
    # Ctrl-C is for whoever started us; our standard input ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(options))
    if options.unix is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.unix)
    return 0
