"""The seed's faults as packets meet them: iptables between the client and a real memcached."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any

import pymemcache
import pytest

from tests.servers.limits import LIMIT, TOLERANCE, failed, recovered, timed
from tests.servers.netlab import PORT, NetLab
from tests.servers.raw_call import KEY, VALUE, RawCall
from timedblock import ConnectFailed, ConnectionLost, DeadlineExceeded, Unavailable, memcache

pytestmark = [pytest.mark.server, pytest.mark.wall]

HANGS = None
# Longer than a call of ours may take: whoever still waits then has no limit.
RAW_HANGS_FOR = LIMIT + TOLERANCE + 0.5

REJECT = ("-j", "REJECT")
RESET = ("-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
DROP = ("-j", "DROP")
DROP_ESTABLISHED = ("-m", "state", "--state", "ESTABLISHED", "-j", "DROP")


@dataclass(frozen=True)
class Packets:
    """A rule on the address that ends in `host`, and what it does to a `get`.

    `warm`: the client connected before the rule. `raw`: the error of plain pymemcache, or HANGS.
    """

    name: str
    host: int
    rule: tuple[str, ...]
    warm: bool
    raw: str | None
    ours: tuple[type[Unavailable], ...]
    sent: bool


FAULTS = [
    # A blocking connect repeats its SYN after an ICMP error: the raw client needs a second.
    Packets("reject-connect", 10, REJECT, False, "ConnectionRefusedError", (ConnectFailed,), False),
    Packets("reset-connect", 11, RESET, False, "ConnectionRefusedError", (ConnectFailed,), False),
    Packets("drop-connect", 12, DROP, False, HANGS, (DeadlineExceeded,), False),
    Packets("drop-established-before-connect", 13, DROP_ESTABLISHED, False, HANGS,
            (DeadlineExceeded,), True),
    Packets("drop-established", 14, DROP_ESTABLISHED, True, HANGS, (DeadlineExceeded,), True),
    # An ICMP error doesn't end an open connection: the call hangs as under DROP.
    Packets("reject-open", 15, REJECT, True, HANGS, (DeadlineExceeded,), True),
    # A get is repeated once on a fresh connection, which is refused: either error is honest.
    Packets("reset-open", 16, RESET, True, "ConnectionResetError",
            (ConnectionLost, ConnectFailed), True),
]  # fmt: skip

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def _assert_raw_feels(fault: Packets, raw: RawCall) -> None:
    if fault.raw is HANGS:
        assert raw.outcome(RAW_HANGS_FOR) is None, "plain pymemcache doesn't hang: no fault here"
    else:
        outcome = raw.outcome(5.0)
        assert outcome is not None and outcome.error == fault.raw


@every_fault
def test_a_call_under_a_packet_fault_keeps_its_limit(
    lab: NetLab, fault: Packets, no_leaks: None
) -> None:
    """A get ends within its limit, says whether it was sent, and works once the rule is gone."""
    address = lab.address(fault.host)
    client = memcache.Client(address, timeout=LIMIT)
    with contextlib.closing(client), RawCall(address, warm=fault.warm) as raw:
        if fault.warm:
            assert client.set(KEY, VALUE) is True
        with lab.rule(fault.host, *fault.rule):
            raw.begin()
            error = failed(lambda: client.get(KEY))
            _assert_raw_feels(fault, raw)
        assert isinstance(error, fault.ours), repr(error)
        assert error.sent is fault.sent, str(error)
        assert error.endpoint == f"{address[0]}:{address[1]}"
        assert recovered(lambda: client.set(KEY, VALUE)) is True
        assert recovered(lambda: client.get(KEY)) == VALUE


@every_fault
def test_a_breaker_that_a_packet_fault_opened_closes_again(
    lab: NetLab, fault: Packets, no_leaks: None
) -> None:
    """Calls for 2.5 s under the fault keep the limit, and the store is used again soon after."""
    host = fault.host + 10  # an address, and so a breaker, of this test's own
    client = memcache.Client(lab.address(host), timeout=LIMIT)
    with contextlib.closing(client):
        if fault.warm:
            assert client.set(KEY, VALUE) is True
        with lab.rule(host, *fault.rule):
            end = time.monotonic() + 2.5
            errors = []
            while time.monotonic() < end:
                errors.append(failed(lambda: client.get(KEY)))
                time.sleep(0.01)
        assert len(errors) > 2.5 / LIMIT + 2, "no call failed fast: the breaker never opened"
        assert recovered(lambda: client.set(KEY, VALUE)) is True
        assert recovered(lambda: client.get(KEY)) == VALUE


def test_of_a_name_with_a_dead_and_a_live_address_the_live_one_answers(
    lab: NetLab, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """Two addresses, the first drops every packet: the get answers within its limit."""
    dead, live = lab.address(28), lab.address(29)
    resolve = socket.getaddrinfo

    def both(host: object, *arguments: Any, **options: Any) -> list[Any]:
        if host != "both.test":
            return resolve(host, *arguments, **options)  # type: ignore[arg-type]
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, dead), (*kind, live)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with lab.rule(28, *DROP):
        raw = pymemcache.Client(("both.test", PORT), connect_timeout=LIMIT + TOLERANCE)
        with pytest.raises(TimeoutError):
            raw.get(KEY)
        client = memcache.Client(("both.test", PORT), timeout=1.0)
        with contextlib.closing(client):
            assert timed(lambda: client.set(KEY, VALUE), limit=1.0).value is True
            assert timed(lambda: client.get(KEY), limit=1.0).value == VALUE
