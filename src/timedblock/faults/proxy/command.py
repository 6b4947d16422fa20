"""``timedblock faults proxy``: the relay from the command line."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import closing

import click

from ...ending import ended_by
from .link import Address, resolve
from .loop import Loop
from .process import prepare
from .proxies import Collection, Problem, join, split

#: Where Toxiproxy's clients look for it.
USUAL_API = "127.0.0.1:8474"
#: The name of the proxy that the command line makes.
NAME = "default"
_UPSTREAM_ANSWERS_WITHIN = 2.0


def _address(context: click.Context, option: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    try:
        host, port = split(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
    if not host:
        raise click.BadParameter(f"{value!r} is not HOST:PORT: it names no host.")
    return host, port


@click.command()
@click.option("--listen", callback=_address, metavar="HOST:PORT",
              help="Where clients connect to (default: a free port on loopback).")  # fmt: skip
@click.option("--upstream", callback=_address, metavar="HOST:PORT",
              help="The server that they are led to.")  # fmt: skip
@click.option("--api", callback=_address, default=USUAL_API, show_default=True, metavar="HOST:PORT",
              help="Where it is driven: Toxiproxy's HTTP API.")  # fmt: skip
@click.option("--api-anywhere", is_flag=True,
              help="Let --api be another address than loopback: whoever reaches it drives the "
              "proxy.")  # fmt: skip
@click.option("--unchecked", is_flag=True,
              help="Begin though nobody answers at --upstream yet.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of what is random in toxics.")
def proxy(
    listen: Address | None,
    upstream: Address | None,
    api: Address,
    api_anywhere: bool,
    unchecked: bool,
    seed: int,
) -> int:
    """Stand between clients and a server, and make faults on the way.

    Driven by any client of Toxiproxy. Without --upstream it begins with no proxy; clients make
    them. Ends by SIGINT or SIGTERM, and leaves nothing behind. Exit code: 0; 2 if it could not
    begin.
    """
    if listen is not None and upstream is None:
        raise click.UsageError("--listen needs --upstream: the server that clients are led to")
    if upstream is not None and not unchecked:
        _check_upstream(upstream)
    with closing(_api_listener(api, api_anywhere)) as listener:
        loop = Loop()
        with closing(loop), ended_by(lambda *_: loop.stop()):
            _serve(loop, listener, Collection(loop, seed), listen, upstream)
    return 0


def _check_upstream(upstream: Address) -> None:
    try:
        socket.create_connection(upstream, timeout=_UPSTREAM_ANSWERS_WITHIN).close()
    except OSError as error:
        raise click.UsageError(
            f"nobody answers at the upstream {join(upstream)}: {error} (--unchecked begins anyway)"
        ) from None


def _api_listener(api: Address, anywhere: bool) -> socket.socket:
    """The control port; refused where others than this machine could reach it unasked."""
    try:
        family, where = resolve(api)
    except OSError as error:
        raise click.UsageError(f"--api {join(api)}: {error}") from None
    if not (anywhere or ipaddress.ip_address(where[0].partition("%")[0]).is_loopback):
        raise click.UsageError(
            f"--api {join(api)} is not a loopback address: whoever reaches it drives the proxy "
            "(--api-anywhere allows it)"
        )
    try:
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        raise click.UsageError(f"--api {join(api)}: {error.strerror or error}") from None


def _serve(
    loop: Loop,
    listener: socket.socket,
    proxies: Collection,
    listen: Address | None,
    upstream: Address | None,
) -> None:
    try:
        from .api import served
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error}: pip install 'timedblock[drill]'") from None
    if upstream is not None:
        where = join(listen or ("127.0.0.1", 0))
        try:
            made = proxies.create({"name": NAME, "listen": where, "upstream": join(upstream)})
        except Problem as problem:
            raise click.UsageError(f"--listen {where}: {problem.message}") from None
        click.echo(f"listening on {made.listen}, upstream {made.upstream}")
    try:
        with served(listener, proxies):
            click.echo(f"api on http://{join(listener.getsockname())}")
            prepare()
            loop.run()
    finally:
        proxies.close()
