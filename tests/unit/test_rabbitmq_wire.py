"""RabbitMQ's frames: written as pika writes them, confirms read as pika reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from timedblock.rabbitmq.connection import Connection
from timedblock.rabbitmq.encoding import CHANNEL, END, SMALL, Encoder, Envelope, frames

names = st.text(max_size=60)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**31), 2**31 - 1), st.text(max_size=20),
    st.decimals(-100, 100, places=2), st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip
properties = st.builds(
    pika.BasicProperties,
    content_type=st.one_of(st.none(), names),
    headers=st.one_of(st.none(), st.dictionaries(names, values, max_size=4)),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.one_of(st.none(), st.integers(0, 255)),
    message_id=st.one_of(st.none(), names),
    timestamp=st.one_of(st.none(), st.integers(0, 2**40)),
)


def as_pika_does(
    exchange: str, key: str, body: bytes, given: pika.BasicProperties, mandatory: bool, most: int
) -> bytes:
    publish: Any = spec.Basic.Publish
    method = publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    parts = [frame.Method(CHANNEL, method).marshal()]
    parts.append(frame.Header(CHANNEL, len(body), given).marshal())
    for start in range(0, len(body), most):
        parts.append(frame.Body(CHANNEL, body[start : start + most]).marshal())
    return b"".join(parts)


class Made(NamedTuple):
    """What an encoder returns."""

    envelope: Envelope
    head: bytes
    body: bytes
    size: int


def as_we_do(message: Made, most: int) -> bytes:
    if len(message.body) > SMALL:
        return message.head + b"".join(frames(message.body, most))
    return message.head + (message.body + END if message.body else b"")


ENCODER = Encoder(named=False)


def make(encoder: Encoder, *message: Any) -> Made:
    return Made(*encoder.message(*message))


@given(names, names, st.binary(max_size=200), properties, st.booleans())
def test_a_message_is_written_as_pika_writes_it(
    exchange: str, key: str, body: bytes, given: pika.BasicProperties, mandatory: bool
) -> None:
    """Byte for byte, by an encoder that has written others before."""
    expected = as_pika_does(exchange, key, body, given, mandatory, 131_064)
    for _ in range(2):
        made = make(ENCODER, exchange, key, body, given, mandatory)
        assert as_we_do(made, 131_064) == expected
        assert made.size == len(made.head) + len(body)


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 10_000, 30_000])
@pytest.mark.parametrize("most", [SMALL, 10_000])
def test_a_body_is_cut_as_pika_cuts_it(size: int, most: int) -> None:
    body = bytes(size)
    made = make(ENCODER, "e", "k", body, None, True)
    expected = as_pika_does("e", "k", body, pika.BasicProperties(delivery_mode=2), True, most)
    assert as_we_do(made, most) == expected


def test_properties_that_change_are_encoded_anew() -> None:
    """The user's own object, also where it changes in the dict of its headers."""
    given = pika.BasicProperties(headers={"n": 1})
    first = make(ENCODER, "", "q", b"x", given, True)
    given.headers["n"] = 2  # type: ignore[index]
    second = make(ENCODER, "", "q", b"x", given, True)
    given.headers = None
    given.priority = 1
    third = make(ENCODER, "", "q", b"x", given, True)
    given.priority = 2
    fourth = make(ENCODER, "", "q", b"x", given, True)
    assert len({first.head, second.head, third.head, fourth.head}) == 4


def test_a_message_gets_a_name_where_it_has_none() -> None:
    encoder = Encoder(named=True)
    given = pika.BasicProperties()
    two = [make(encoder, "", "q", b"x", given, True) for _ in range(2)]
    assert len({one.envelope.properties["message_id"] for one in two}) == 2
    assert given.message_id is None, "the user's own object stays as it is"
    given.message_id = "mine"
    third = make(encoder, "", "q", b"x", given, True)
    assert third.envelope.properties["message_id"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, "q", b"x"), "exchange must be a string, not a int"),
        (("", None, b"x"), "routing_key must be a string, not a NoneType"),
        (("", "q", 5), "bytes or text, not a int"),
    ],
)
def test_what_is_no_message_is_named(arguments: tuple[Any, Any, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        make(ENCODER, *arguments, None, True)


def test_what_amqp_can_not_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="routing_key must have 255 bytes or less, not 300"):
        make(ENCODER, "", "q" * 300, b"x", None, True)


def test_bodies_may_be_any_bytes_or_text() -> None:
    for body in (b"\xc3\xa9", bytearray(b"\xc3\xa9"), memoryview(b"\xc3\xa9"), "é"):
        made = make(ENCODER, "", "q", body, None, True)  # type: ignore[arg-type]
        assert made.body == b"\xc3\xa9"


# -- reading ------------------------------------------------------------------------------------


class Reading:
    """A connection that isn't connected, and the confirms that it was told of."""

    def __init__(self) -> None:
        self.loop = IOLoop()
        self.fast: list[tuple[int, bool]] = []
        self.slow: list[tuple[int, bool]] = []
        self.connection = Connection(
            pika.ConnectionParameters(),
            on_confirms=self.fast.extend,
            custom_ioloop=self.loop,
            internal_connection_workflow=False,
        )
        self.connection.callbacks.add(CHANNEL, spec.Basic.Ack, self._told, one_shot=False)

    def _told(self, frame: Any) -> None:
        self.slow.append((frame.method.delivery_tag, frame.method.multiple))

    def read(self, data: bytes) -> None:
        self.connection._on_data_available(data)


@pytest.fixture
def reading() -> Iterator[Reading]:
    made = Reading()
    yield made
    made.loop.close()


def ack(tag: int, multiple: bool) -> bytes:
    made: Any = spec.Basic.Ack
    return bytes(frame.Method(CHANNEL, made(tag, multiple)).marshal())


CONFIRMS = [(1, False), (2, True), (2**40, False), (7, True)]


def test_confirms_are_read_without_pikas_objects(reading: Reading) -> None:
    reading.read(b"".join(ack(*one) for one in CONFIRMS))
    assert (reading.fast, reading.slow) == (CONFIRMS, [])
    assert reading.connection.frames_received == 4


def test_confirms_cut_anywhere_are_read_without_pikas_objects(reading: Reading) -> None:
    """pika reads 4,096 bytes at a time, which no number of confirms is."""
    data = b"".join(ack(*one) for one in CONFIRMS)
    for cut in range(1, len(data)):
        reading.fast.clear()
        reading.read(data[:cut])
        reading.read(data[cut:])
        assert (reading.fast, reading.slow) == (CONFIRMS, []), cut


def test_confirms_are_read_however_they_are_cut(reading: Reading) -> None:
    """And whatever other frames come between them."""
    data = b"".join(ack(*one) + frame.Heartbeat().marshal() for one in CONFIRMS)
    count = 0
    for cut in range(1, len(data)):
        reading.fast.clear()
        reading.slow.clear()
        reading.read(data[:cut])
        reading.read(data[cut:])
        assert sorted(reading.fast + reading.slow) == sorted(CONFIRMS), cut
        count += 8
    assert reading.connection.frames_received == count
    assert reading.connection.bytes_received == (len(data) - 1) * len(data)


def test_a_confirm_without_its_end_is_pikas_to_judge(reading: Reading) -> None:
    broken = ack(1, False)[:-1] + b"\x00"
    with pytest.raises(pika.exceptions.InvalidFrameError):
        reading.read(broken)
    assert reading.fast == []


def test_the_parts_of_pika_that_we_rely_on_are_there() -> None:
    """Private ones: a version of pika that moves them must not pass unnoticed."""
    assert callable(pika.SelectConnection._on_data_available)
    assert callable(pika.SelectConnection._terminate_stream)
    assert issubclass(_AsyncPlaintextTransport, object)
    for name in ("write", "get_write_buffer_size"):
        assert callable(getattr(_AsyncPlaintextTransport, name))
    assert struct.calcsize(">BHIHHQBB") == len(ack(1, False))
