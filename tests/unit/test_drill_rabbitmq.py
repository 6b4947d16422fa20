"""What the RabbitMQ drills plan to do, and how they know a right answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pika.exceptions import NackError, StreamLostError

from timedblock import Unavailable, faults
from timedblock.drill import injection, plans, rabbitmq, store
from timedblock.drill.errors import ScenarioError
from timedblock.drill.rabbitmq import cluster
from timedblock.drill.rabbitmq.clients import Client, Taken
from timedblock.drill.rabbitmq.session import Messages, QueueSession
from timedblock.drill.scenario import RECOVERY, Scenario, Target

STORE = rabbitmq.STORE
TARGET = Target("rabbitmq", "rabbitmq")
MESSAGES = Messages("q")


class _Publisher:
    """A client that has one message, or raises one error."""

    def __init__(self, given: bytes | Exception | None) -> None:
        self._given = given
        self.acknowledged = False

    def open(self) -> None:
        pass

    def publish(self, queue: str, body: bytes, token: str) -> None:
        if isinstance(self._given, Exception):
            raise self._given

    def get(self, queue: str, taken: Taken) -> bytes | None:
        if isinstance(self._given, Exception):
            raise self._given
        if self._given is not None:
            self.acknowledged = taken(self._given)
        return self._given

    def consume(self, queue: str, taken: Taken) -> None:
        pass


def _session(given: bytes | Exception | None, writes: float = 0.0) -> QueueSession:
    return QueueSession(Client(_Publisher(given), (Unavailable, NackError)), MESSAGES, writes)


def test_usual_drill_makes_every_fault_that_is_recognised() -> None:
    """By a relay; what a process suffers by its injector. AMQP can't tell a corrupted reply."""
    usual = plans.usual(STORE, TARGET, "proxy", None, None)
    by_process = plans.usual(STORE, TARGET, "process", None, None)
    names = {episode.name for plan in (usual, by_process) for episode in plan.episodes}
    assert names == set(STORE.faults)
    assert {"pause", "kill"} == {episode.name for episode in by_process.episodes}
    assert "corrupt" not in names
    assert usual.load.rate == STORE.rate < 200


@pytest.mark.parametrize("kind", [plans.usual, plans.full])
def test_broker_that_was_killed_has_time_to_start(kind: Callable[..., Scenario]) -> None:
    """Its recovery is longer by that, and so is what it is held to."""
    paused, killed = (
        plans.only(kind(STORE, TARGET, "process", None, None), STORE, names)
        for names in (["pause"], ["kill"])
    )
    assert killed.recovery >= RECOVERY + STORE.starts
    bounds = [plan.judged_by(plan.episodes[0]).recovery for plan in (paused, killed)]
    assert bounds == [None, None] or bounds[1] == bounds[0] + STORE.starts


def test_corrupted_replies_can_be_asked_for() -> None:
    """``--faults corrupt`` makes them all the same."""
    plan = plans.only(plans.usual(STORE, TARGET, "proxy", None, None), STORE, ["corrupt"])
    assert [episode.name for episode in plan.episodes] == ["corrupt"]


@pytest.mark.parametrize("injector", ["proxy", "process", "inprocess"])
def test_cluster_is_faulted_between_its_nodes_only(injector: str) -> None:
    """By packet rules."""
    target = Target("cluster", "rabbitmq-cluster")
    plan = plans.usual(cluster.STORE, target, "netfilter", None, None)
    injection.check(plan, "netfilter")
    with pytest.raises(ScenarioError, match="can be faulted by netfilter"):
        injection.check(plan, injector)


def test_sockets_of_pika_are_not_ours_to_fault() -> None:
    """So there is no fault in the process."""
    plan = plans.usual(STORE, TARGET, "proxy", None, None)
    with pytest.raises(ScenarioError, match="can be faulted by proxy, netfilter, process"):
        injection.check(plan, "inprocess")


def test_every_variant_is_one_of_the_reports() -> None:
    """In its order."""
    for one in (STORE, cluster.STORE):
        assert list(one.variants) == [name for name in store.VARIANTS if name in one.variants]


@pytest.mark.parametrize("writes", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_share_of_the_requests_publishes(writes: float) -> None:
    """Each a message of its own; the others take one."""
    requests = [_session(None, writes).request(number) for number in range(1000)]
    published = [request.value for request in requests if request.op == "publish"]
    assert len(published) == len(set(published)) == round(1000 * writes)
    assert {request.op for request in requests} <= {"publish", "get"}


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (MESSAGES.body("m7"), ("ok", "m7", None, None)),
        (None, ("ok", None, None, None)),  # an empty queue
        (Messages("other").body("m7"), ("wrong", None, None, None)),
        (MESSAGES.body("m7")[:-1], ("wrong", None, None, None)),
        (b"", ("wrong", None, None, None)),
        (NackError([]), ("unavailable", None, "NackError", True)),
        (StreamLostError(), ("dishonest", None, "StreamLostError", True)),
    ],
)
def test_answer_is_judged_by_its_body(
    given: bytes | Exception | None, answer: tuple[object, ...]
) -> None:
    """Another queue's message and a truncated one are wrong; an error that the client doesn't
    promise is dishonest."""
    assert tuple(_session(given).answer(1)) == answer


def test_publish_says_whether_anything_left() -> None:
    """As the error does; of a raw one nobody knows."""
    raw = QueueSession(Client(_Publisher(StreamLostError()), (Exception,)), MESSAGES, 1.0)
    assert tuple(raw.answer(1)) == ("unavailable", None, "StreamLostError", True)
    assert tuple(_session(None, 1.0).answer(1)) == ("ok", None, None, None)


def test_what_is_acknowledged_is_known_to_have_been_given() -> None:
    """And after the end nothing is acknowledged any more: it stays in the queue."""
    publisher = _Publisher(MESSAGES.body("m7"))
    session = QueueSession(Client(publisher, (Unavailable,)), MESSAGES, 0.0)
    session.answer(1)
    assert publisher.acknowledged
    assert [token for _, token in session.finish()] == ["m7"]
    session.answer(2)
    assert not publisher.acknowledged
    assert len(session.finish()) == 1


def test_link_between_nodes_makes_no_other_fault() -> None:
    """What else there is would be on a client's way."""

    class _Cluster:
        addresses = (("10.0.0.1", 5672),)

    between = cluster.BetweenNodes(_Cluster())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hang or partition"):
        between.inject(faults.Blackhole())
