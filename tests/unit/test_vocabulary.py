"""The table of faults and injectors: complete, true to the injectors' code, clear in its errors."""

from __future__ import annotations

import pytest

from timedblock import faults
from timedblock.faults import netfilter, plan, vocabulary
from timedblock.faults.netfilter import rules
from timedblock.faults.netfilter.rules import Way
from timedblock.faults.proxy import toxics
from timedblock.faults.taps import BEHAVIOURS

EVERY_PAIR = [(fault, one) for fault in faults.FAULTS for one in vocabulary.INJECTORS]


def test_every_fault_is_in_the_table_and_can_be_made() -> None:
    """A fault that no injector makes, or a row without a fault, is a mistake."""
    assert list(vocabulary.HOW) == list(faults.FAULTS)
    assert all(vocabulary.injectors_of(name) for name in faults.FAULTS)
    assert {fault for fault, _ in vocabulary.pairs()} == set(faults.FAULTS)


def test_table_says_what_the_injectors_code_can_do() -> None:
    """Each injector's own list of faults and the table's are one."""
    names = {"dns-fail", "dns-hang"}
    assert {one.name for one in BEHAVIOURS} | names == set(vocabulary.faults_of("inprocess"))
    assert {one.name for one in toxics.MAKES} == set(vocabulary.faults_of("proxy"))
    assert {one.name for one in rules._RULES} == set(vocabulary.faults_of("netfilter"))


@pytest.mark.parametrize(("fault", "injector"), EVERY_PAIR)
def test_pair_is_made_or_refused(fault: str, injector: str) -> None:
    """What isn't in the table is an error that says who can make it."""
    made = faults.FAULTS[fault]()
    if (fault, injector) in vocabulary.pairs():
        vocabulary.check(injector, made)
        assert vocabulary.parse(injector, fault) == made
        return
    able = ", ".join(vocabulary.injectors_of(fault))
    with pytest.raises(ValueError, match=f"^{injector} can't make '{fault}'; .* by: {able}$"):
        vocabulary.check(injector, made)
    with pytest.raises(ValueError, match=f"{injector} can't make"):
        vocabulary.parse(injector, fault)


@pytest.mark.parametrize(
    ("injector", "text", "told"),
    [
        ("proxy", "latenc", "unknown fault 'latenc'; known: refuse, blackhole, hang,"),
        ("tc", "latency", "unknown injector 'tc'; known: inprocess, proxy, netfilter, process"),
        ("proxy", "refuse:icmp=true", "proxy can't make 'refuse' with icmp=True; netfilter can"),
        ("inprocess", "refuse:true", "inprocess can't make 'refuse' with icmp=True"),
        ("netfilter", "reset:10", "netfilter counts no bytes: 'reset' with after=0 only"),
    ],
)
def test_bad_request_is_named(injector: str, text: str, told: str) -> None:
    """Whatever is wrong, the message names it and what there is."""
    with pytest.raises(ValueError) as error:
        vocabulary.parse(injector, text)
    assert told in str(error.value)


def test_unknown_names_are_listed() -> None:
    """Asked for the injectors of a fault that isn't there."""
    with pytest.raises(ValueError, match="unknown fault 'x'; known: refuse, "):
        vocabulary.injectors_of("x")
    with pytest.raises(TypeError, match=r"a Fault such as Hang\(\), not 'hang'"):
        vocabulary.check("proxy", "hang")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", faults.FAULTS)
def test_values_can_be_typed_as_they_are_shown(name: str) -> None:
    """The values that the list shows are what the parser reads, and the defaults."""
    values = vocabulary.values_of(name)
    assert plan.parse(f"{name}:{values}" if values else name) == faults.FAULTS[name]()


# Netfilter's rules

ONE = Way("10.0.0.2", "10.0.0.1", 11211)
UP = "-s 10.0.0.2 -d 10.0.0.1 -p tcp --dport 11211"
DOWN = "-s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 11211"
STATE = "-m state --state ESTABLISHED"
RESET = "-j REJECT --reject-with tcp-reset"
# The handshake's second packet is ESTABLISHED: it passes.
HANDSHAKE = "! --tcp-flags SYN SYN"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.Refuse(), [f"{UP} {RESET}"]),
        (faults.Refuse(icmp=True), [f"{UP} -j REJECT --reject-with icmp-port-unreachable"]),
        (faults.Blackhole(), [f"{UP} -j DROP", f"{DOWN} -j DROP"]),
        (faults.Hang("up"), [f"{UP} {STATE} -j DROP"]),
        (faults.Hang("down"), [f"{DOWN} {HANDSHAKE} {STATE} -j DROP"]),
        (faults.Hang(), [f"{UP} {STATE} -j DROP", f"{DOWN} {HANDSHAKE} {STATE} -j DROP"]),
        (faults.Reset(), [f"{UP} --tcp-flags PSH PSH {STATE} {RESET}"]),
        (faults.Flap(), [f"{UP} {RESET}"]),
        (faults.Partition(), ["-s 10.0.0.2 -d 10.0.0.1 -j DROP",
                              "-s 10.0.0.1 -d 10.0.0.2 -j DROP"]),
        (faults.DnsFail(), [f"-s 10.0.0.2 -p {one} --dport 53 -j REJECT --reject-with "
                            "icmp-port-unreachable" for one in ("udp", "tcp")]),
        (faults.DnsHang(), [f"-s 10.0.0.2 -p {one} --dport 53 -j DROP" for one in ("udp", "tcp")]),
    ],
    ids=str,
)  # fmt: skip
def test_rules_are_those_made_by_hand(fault: faults.Fault, expected: list[str]) -> None:
    """The rules that an operator would type, for one client and one port of the store."""
    assert rules.rules(fault, ONE) == expected


def test_rules_without_a_port_meet_every_packet() -> None:
    """Between two nodes, or towards one, a reset is of TCP and a drop of everything."""
    nodes = Way("10.0.0.2", "10.0.0.1")
    assert rules.rules(faults.Refuse(), nodes) == [f"-s 10.0.0.2 -d 10.0.0.1 -p tcp {RESET}"]
    assert rules.rules(faults.Blackhole(), Way(None, "10.0.0.1")) == [
        "-d 10.0.0.1 -j DROP",
        "-s 10.0.0.1 -j DROP",
    ]
    assert rules.rules(faults.Hang("down"), Way(None, "10.0.0.1")) == [
        f"-s 10.0.0.1 -p tcp {HANDSHAKE} {STATE} -j DROP"
    ]


@pytest.mark.parametrize("fault", [faults.DnsFail(), faults.DnsHang(), faults.Partition()], ids=str)
def test_rules_for_nobody_in_particular_are_refused(fault: faults.Fault) -> None:
    """No look-up of the whole host fails, and no host is cut off, by mistake."""
    with pytest.raises(ValueError, match=fault.name):
        rules.rules(fault, Way(None, "127.0.0.1", 11211))


def test_public_names_of_netfilter() -> None:
    """What the docs name is there."""
    assert {"Netfilter", "HostTables", "Node", "PacketLink", "sweep"} <= set(netfilter.__all__)
