"""A caller's deadline by header: in force for its request, and for nothing else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, MutableMapping
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from timedblock import DeadlineExceeded, TimedBlock, remaining, time_limit
from timedblock.deadline import LONGEST, get
from timedblock.middleware import (
    HEADER,
    ASGIDeadlineMiddleware,
    WSGIDeadlineMiddleware,
    deadline_headers,
)
from timedblock.testing import FakeClock

Seen = list["float | None"]


def by_wsgi(header: str | None, ceiling: float | None = None) -> float | None:
    """What is left inside an application that is sent `header`."""
    seen: Seen = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(remaining())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x"]

    body = _ask(WSGIDeadlineMiddleware(app, ceiling), header)
    assert b"".join(body) == b"x"
    return seen[0]


def _environ(header: str | None) -> dict[str, Any]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    if header is not None:
        environ["HTTP_TIMEDBLOCK_DEADLINE_MS"] = header
    return environ


def _ask(app: Any, header: str | None) -> Any:
    return app(_environ(header), lambda status, headers, exc=None: None)


def by_asgi(header: str | None, ceiling: float | None = None) -> float | None:
    """The same under ASGI."""
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(remaining())

    asyncio.run(_call(ASGIDeadlineMiddleware(app, ceiling), header))
    return seen[0]


async def _nothing() -> MutableMapping[str, Any]:
    return {}


async def _to_nobody(message: MutableMapping[str, Any]) -> None:
    return None


async def _call(app: Any, header: str | None, kind: str = "http") -> None:
    headers = [] if header is None else [(HEADER.lower().encode(), header.encode("latin-1"))]
    await app({"type": kind, "headers": headers}, _nothing, _to_nobody)


BOTH = pytest.mark.parametrize("left", [by_wsgi, by_asgi], ids=["wsgi", "asgi"])


@BOTH
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("250", 0.25),
        (" 250 ", 0.25),
        ("0", 0.0),
        ("250, 100", 0.1),  # sent twice: the sooner
        ("250,soon", 0.25),
        ("999999999999", LONGEST),
    ],
)
def test_the_header_is_taken(
    left: Any, header: str | None, expected: float | None, clock: FakeClock
) -> None:
    """Milliseconds that remain, as the deadline in force inside the application."""
    assert left(header) == (None if expected is None else pytest.approx(expected))
    assert get() is None


@BOTH
@pytest.mark.parametrize(
    "header",
    ["", "soon", "-1", "1.5", "1e3", "NaN", "inf", "0x10", "\u0661", "\u00b2", "9" * 13, "1 2"],
)
def test_garbage_is_ignored(left: Any, header: str, clock: FakeClock) -> None:
    """What is no number of milliseconds changes nothing."""
    if not header.isascii():
        header = header.encode().decode("latin-1")
    assert left(header) is None
    assert left(header, 0.5) == pytest.approx(0.5)


@BOTH
def test_the_header_only_shortens(left: Any, clock: FakeClock) -> None:
    """Neither the ceiling nor a limit that is in force is made longer by a caller."""
    assert left("250", 1.0) == pytest.approx(0.25)
    assert left("5000", 1.0) == pytest.approx(1.0)
    assert left(None, 1.0) == pytest.approx(1.0)


def test_nested_middleware_and_limits(clock: FakeClock) -> None:
    """An outer limit, two middlewares and the header: the soonest is in force."""
    seen: Seen = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(remaining())
        return []

    nested = WSGIDeadlineMiddleware(WSGIDeadlineMiddleware(app, 0.2), 0.7)
    _ask(nested, "500")
    with time_limit(0.1):
        _ask(nested, "500")
    assert seen == [pytest.approx(0.2), pytest.approx(0.1)]


@BOTH
@pytest.mark.parametrize("ceiling", [0, -1, math.nan, 1e9])
def test_a_bad_ceiling_is_refused(left: Any, ceiling: float) -> None:
    """When the middleware is made."""
    with pytest.raises(ValueError, match="ceiling"):
        left(None, ceiling)


def test_an_expired_deadline_fails_the_blocks_and_not_the_request(clock: FakeClock) -> None:
    """The application runs: what it does without the store may still be wanted."""
    block = TimedBlock("expired")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        with pytest.raises(DeadlineExceeded) as caught:
            block.call(int)
        assert not caught.value.sent
        return [b"without the store"]

    assert _ask(WSGIDeadlineMiddleware(app), "0") == [b"without the store"]


def test_a_streamed_body_has_the_deadline_and_nobody_else(clock: FakeClock) -> None:
    """It is in force while each piece is made and at the close, and not between them."""
    seen: Seen = []

    class Streamed:
        def __iter__(self) -> Iterator[bytes]:
            for piece in (b"a", b"b"):
                seen.append(remaining())
                yield piece

        def close(self) -> None:
            seen.append(remaining())

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Streamed()

    checked = validator(WSGIDeadlineMiddleware(validator(app)))  # PEP 3333, on both sides
    body = checked({**_environ("1000"), "QUERY_STRING": ""}, lambda s, h, e=None: lambda d: None)
    pieces = iter(body)
    for piece in (b"a", b"b"):
        assert next(pieces) == piece
        assert get() is None
        clock.advance(0.1)
    with pytest.raises(StopIteration):
        next(pieces)
    body.close()  # type: ignore[attr-defined]
    assert get() is None
    assert seen == [pytest.approx(1.0), pytest.approx(0.9), pytest.approx(0.8)]


def test_a_body_that_fails_or_is_left_leaves_no_deadline(clock: FakeClock) -> None:
    """An error in a piece, and a client that went away: the next request has no deadline."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b"a"
        raise KeyError

    body = _ask(WSGIDeadlineMiddleware(app), "1000")
    next(body)
    with pytest.raises(KeyError):
        next(body)
    assert get() is None
    left = _ask(WSGIDeadlineMiddleware(app), "1000")
    next(left)
    left.close()
    assert get() is None


def test_an_application_that_raises_leaves_no_deadline(clock: FakeClock) -> None:
    """The thread's next request is nobody's."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise KeyError

    with pytest.raises(KeyError):
        _ask(WSGIDeadlineMiddleware(app), "1000")
    assert get() is None


def test_what_needs_no_wrapper_is_passed_on(clock: FakeClock) -> None:
    """A list keeps its length, a file its way through sendfile, an iterator without close works."""
    for body in ([b"x"], (b"x",)):
        assert _ask(WSGIDeadlineMiddleware(lambda e, s, body=body: body), "9") is body
    environ = {**_environ("9"), "wsgi.file_wrapper": FileWrapper}
    file = FileWrapper(None)  # type: ignore[arg-type]
    assert WSGIDeadlineMiddleware(lambda e, s: file)(environ, None) is file  # type: ignore[arg-type]
    plain = _ask(WSGIDeadlineMiddleware(lambda e, s: iter([b"x"])), "9")
    assert list(plain) == [b"x"]
    plain.close()


def test_a_cancelled_request_leaves_no_deadline() -> None:
    """Requests one after the other on one task: the one after a cancelled one has no deadline."""
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(remaining())
        await asyncio.sleep(0 if len(seen) > 1 else 60)

    async def requests() -> None:
        middleware = ASGIDeadlineMiddleware(app)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await _call(middleware, "1000")
        assert get() is None
        await _call(middleware, None)

    asyncio.run(requests())
    assert seen[0] is not None and seen[1] is None


def test_concurrent_requests_have_their_own(clock: FakeClock) -> None:
    """Tasks that take turns each see their own deadline."""
    seen: dict[str, Seen] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            left = remaining()
            seen.setdefault(f"{left:.1f}", []).append(left)
            await asyncio.sleep(0)

    async def requests() -> None:
        middleware = ASGIDeadlineMiddleware(app)
        await asyncio.gather(*(_call(middleware, str(ms)) for ms in (100, 200, 300)))

    asyncio.run(requests())
    assert {name: len(left) for name, left in seen.items()} == {"0.1": 3, "0.2": 3, "0.3": 3}


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_only_requests_have_it(kind: str, clock: FakeClock) -> None:
    """A websocket outlives the request that opened it."""
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(remaining())

    asyncio.run(_call(ASGIDeadlineMiddleware(app, 1.0), "100", kind))
    assert seen == [None]


def test_the_header_to_send(clock: FakeClock) -> None:
    """What is left, in whole milliseconds; nothing without a deadline."""
    assert deadline_headers() == {}
    with time_limit(0.25):
        clock.advance(0.1004)
        assert deadline_headers() == {HEADER: "149"}
        sent = deadline_headers()[HEADER]
    assert by_wsgi(sent) == pytest.approx(0.149)
