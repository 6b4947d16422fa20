"""Parts of the drop-in `BlockingConnection` that need no broker."""

from __future__ import annotations

import inspect
import socket
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from timedblock import Breaker, Fixed, Percentile, Policy, Retry, Unavailable, errors, rabbitmq
from timedblock.rabbitmq.blocking import errors as ours
from timedblock.rabbitmq.blocking.lines import LINES, UNGUARDED, Line

HERE = pika.ConnectionParameters("127.0.0.1", 1)


@pytest.mark.parametrize("kind", sorted(ours.KINDS.values(), key=lambda kind: kind.__name__))
def test_every_error_is_what_pikas_callers_catch(kind: type[Unavailable]) -> None:
    """Code that connects again after an AMQPConnectionError does so after ours."""
    assert issubclass(kind, pika.exceptions.AMQPConnectionError)


def test_an_error_is_that_of_the_client_too() -> None:
    """One `except rabbitmq.DeadlineExceeded` serves `Client` and `BlockingConnection`."""
    for core, kind in ours.KINDS.items():
        assert issubclass(kind, core)
        assert issubclass(kind, getattr(rabbitmq, core.__name__))
    closed = ours.ClosedByBroker(code=541, text="INTERNAL_ERROR")
    assert (closed.reply_code, closed.reply_text) == (541, "INTERNAL_ERROR")


def _methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (rabbitmq.BlockingChannel, BlockingChannel),
        (rabbitmq.BlockingConnection, BlockingConnection),
    ],
)
def test_signatures_are_pikas(mine: type, theirs: type) -> None:
    """The same arguments, in the same order, with the same defaults."""
    for name, method in _methods(mine).items():
        if name == "after_fork":
            continue
        expected = inspect.signature(getattr(theirs, name)).parameters.values()
        found = inspect.signature(method).parameters.values()
        assert [(one.name, one.default, one.kind) for one in found] == [
            (one.name, one.default, one.kind) for one in expected
        ], name


def test_every_question_of_pikas_channel_has_a_limit() -> None:
    """What waits for RabbitMQ in pika's channel is one of our operations."""
    waiting = {
        name
        for name, method in _methods(BlockingChannel).items()
        if "_flush_output(" in inspect.getsource(method)
    }
    assert waiting <= set(_methods(rabbitmq.BlockingChannel)), "a method that could hang"
    assert len(waiting) > 20


def test_what_asks_rabbitmq_is_guarded_and_what_ends_something_is_not() -> None:
    """The breaker never refuses an acknowledgement or the end."""
    line = Line("nowhere:1", "parts", Policy(breaker=Breaker(failures=3)), 2.0)
    assert {"close", "close_channel", "basic_ack", "publish_unconfirmed"} <= UNGUARDED
    for operation in sorted(UNGUARDED):
        assert line.block(operation).policy.breaker is None
    for operation in ("connect", "channel", "publish", "get", "queue_declare"):
        assert line.block(operation).policy.breaker == Breaker(failures=3)


def test_limits_are_generous_by_default_and_the_policys_where_there_is_one() -> None:
    """A cut costs the connection: nothing below a second is learnt."""
    usual = Line("nowhere:2", "rabbitmq", None, 15.0)
    learnt = Percentile(floor=1.0, ceiling=10.0)
    assert usual.block("publish").policy.timeout == usual.block("get").policy.timeout == learnt
    assert usual.block("channel").policy.timeout == Fixed(10.0)
    assert usual.block("connect").policy.timeout == Fixed(15.0)
    own = Line("nowhere:3", "rabbitmq", Policy(timeout=Percentile(ceiling=3.0)), 15.0)
    assert own.block("publish").policy.timeout == Percentile(ceiling=3.0)
    assert own.block("queue_declare").policy.timeout == Fixed(3.0)
    none = Line("nowhere:4", "rabbitmq", Policy(timeout=None), 15.0)
    assert none.block("publish").policy.timeout == Fixed(10.0)


def test_a_line_is_kept_for_the_next_connection_and_not_for_ever() -> None:
    """What was learnt outlives a connection; of many RabbitMQs the last few are known."""
    first = LINES.get([HERE], "kept", None, 15.0)
    assert LINES.get([HERE], "kept", None, 15.0) is first
    assert LINES.get([HERE], "kept", Policy(), 15.0) is not first
    for port in range(2, 80):
        LINES.get([pika.ConnectionParameters("127.0.0.1", port)], "kept", None, 15.0)
    assert LINES.get([HERE], "kept", None, 15.0) is not first
    LINES.forget()


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (7, "must be a Policy, not 7"),
        (Policy(retry=Retry()), r"can't have Policy\(retry=\.\.\.\)"),
        (Policy(fallback=None), r"can't have Policy\(fallback=\.\.\.\)"),
        (Policy(isolation="thread"), r"can't have Policy\(isolation=\.\.\.\)"),
    ],
)
def test_what_can_not_be_had_is_named(policy: Any, named: str) -> None:
    """Before any I/O."""
    with pytest.raises((TypeError, ValueError), match=named):
        rabbitmq.BlockingConnection(HERE, policy=policy)


def test_other_breaker_settings_need_another_name() -> None:
    """As with every client of an endpoint."""
    LINES.get([HERE], "rabbitmq", None, 15.0)
    with pytest.raises(ValueError, match="needs a name= of its own"):
        rabbitmq.BlockingConnection(HERE, policy=Policy(breaker=Breaker(failures=2)))
    LINES.forget()


def test_no_host_is_pikas_error() -> None:
    """The same ValueError."""
    with pytest.raises(ValueError, match="non-empty sequence of connection parameters"):
        rabbitmq.BlockingConnection([])


def test_nobody_there_is_told_at_once() -> None:
    """ConnectFailed, which is pika's AMQPConnectionError; nothing was sent."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(pika.exceptions.AMQPConnectionError) as caught:
            rabbitmq.BlockingConnection(pika.ConnectionParameters(*nobody.getsockname()))
    assert isinstance(caught.value, errors.ConnectFailed)
    assert not caught.value.sent
    LINES.forget()
