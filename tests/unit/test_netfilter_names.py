"""The name server of a netfilter network: its own name, and everything else passed on."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from timedblock.faults.netfilter import names

A, AAAA = 1, 28


def question(name: str, kind: int = A, number: int = 7) -> bytes:
    """A question as a resolver asks it."""
    parts = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + parts + struct.pack("!BHH", 0, kind, 1)
    )


def test_store_has_its_address() -> None:
    """The answer has the question's number, the question, and the address that was given."""
    asked = question(names.STORE_NAME.upper(), number=4711)
    reply = names.answer(asked, "10.1.2.3")
    assert reply is not None
    assert struct.unpack_from("!HHHHHH", reply) == (4711, 0x8180, 1, 1, 0, 0)
    assert reply[12 : len(asked)] == asked[12:]
    assert reply[-6:] == b"\0\4\x0a\1\2\3"


def test_store_has_no_other_address() -> None:
    """Asked for IPv6 there is no record, and no error: the name is there."""
    reply = names.answer(question(names.STORE_NAME, AAAA), "10.1.2.3")
    assert reply is not None
    assert struct.unpack_from("!HHHHHH", reply) == (7, 0x8180, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "asked", [b"", b"\0" * 12, question("other.test"), question(names.STORE_NAME)[:-3]]
)
def test_other_questions_are_not_ours(asked: bytes) -> None:
    """Another name, or what is cut off, is for the next server."""
    assert names.answer(asked, "10.1.2.3") is None


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("# none\nsearch a b\n", None),
        ("nameserver\nnameserver 192.0.2.7\nnameserver 192.0.2.8\n", ("192.0.2.7", 53)),
        ("nameserver fd00::1\n", ("fd00::1", 53)),
    ],
)
def test_first_name_server_of_the_host(
    text: str, server: tuple[str, int] | None, tmp_path: Path
) -> None:
    """As the resolver itself reads it."""
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    assert names.host_nameserver(file) == server
    assert names.host_nameserver(tmp_path / "missing") is None
