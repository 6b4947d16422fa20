"""`timedblock.testing.rabbitmq`: real servers that do as they are told and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pika
import pytest

from tests.servers import limits
from timedblock import faults
from timedblock.faults import undoing
from timedblock.faults.process import Process
from timedblock.testing import leaks, rabbitmq
from timedblock.testing.rabbitmq import Broker, Cluster
from timedblock.testing.rabbitmq import broker as parts
from timedblock.testing.rabbitmq import cluster as nodes

pytestmark = pytest.mark.server

#: Until a reaper has done its work, on a busy machine.
GONE_WITHIN = 30.0

comes = partial(limits.comes, seconds=GONE_WITHIN, look=0.05)


def processes_of(base: str) -> list[int]:
    """Processes that were started with this directory: the server, its helpers, its epmd."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if base.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


# One node


def test_broker_keeps_what_is_durable_over_a_kill(broker: Broker) -> None:
    """Another process on the same address; the queue and its persistent message are there."""
    with broker.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("test.kept", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "test.kept", b"x", pika.BasicProperties(delivery_mode=2))
    before, address = broker.pid, broker.address
    with pytest.raises(RuntimeError, match="running already"):
        broker.start()
    broker.kill()
    with pytest.raises(RuntimeError, match="isn't running"):
        _ = broker.pid
    with pytest.raises(RuntimeError):
        broker.evaluate("node()")
    broker.start()
    assert broker.pid != before and broker.address == address
    assert "test.kept\t1" in broker.control("list_queues", "name", "messages")
    with broker.connect() as connection:
        connection.channel().queue_delete("test.kept")


def test_broker_may_be_killed_and_started_by_a_fault() -> None:
    """`timedblock.faults.process` starts it by its command; at the end that one is gone too."""
    reason = rabbitmq.why_not()
    if reason is not None:
        pytest.skip(reason)
    with leaks.no_leaks(), Broker() as own:
        base = str(own._base)
        with Process(own.pid, restart=own.command) as process:
            link = process.listen()
            link.inject(faults.Kill())
            with pytest.raises(pika.exceptions.AMQPConnectionError):
                own.connect()
            link.clear()
            own.wait_until_up()
            assert own.pid == link.pid
            own.connect().close()
            assert own.evaluate("1 + 1") == "2"
    assert not os.path.exists(base)
    assert comes(lambda: not processes_of(base))


def test_broker_evaluates_and_complains(broker: Broker) -> None:
    """The value as text; what can't be evaluated is an error, in rabbitmqctl too."""
    assert broker.evaluate('[{a, 1}, <<"b">>]') == '[{a,1},<<"b">>]'
    with pytest.raises(RuntimeError):
        broker.evaluate("no_such_module:call()")
    with pytest.raises(RuntimeError, match="nobody"):
        broker.control("delete_user", "nobody")


def test_missing_rabbitmq_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At entry, before anything is made."""
    monkeypatch.setattr(parts, "PROGRAMS", tmp_path)
    for server in (Broker(), Cluster()):
        with pytest.raises(RuntimeError, match="apt-get install rabbitmq-server"), server:
            pass
    assert "apt-get install" in str(rabbitmq.why_not())


def test_server_that_does_not_start_tells_its_last_words(broker: Broker) -> None:
    """Its port is taken by another one; nothing is left."""
    taken = Broker(port=broker.address[1])
    with (
        leaks.no_leaks(),
        pytest.raises(RuntimeError, match=r"did not start: (.|\n)*eaddrinuse"),
        taken,
    ):
        pass
    assert not taken._base.exists()


# The owner's end


def _owner(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )


def _line(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def test_killed_owner_leaves_no_broker() -> None:
    """SIGKILL to the process that made it: its server, its name server and its files go too."""
    reason = rabbitmq.why_not()
    if reason is not None:
        pytest.skip(reason)
    owner = _owner(
        """
        import time
        from timedblock.testing.rabbitmq import Broker
        with Broker() as broker:
            print(broker._base, flush=True)
            time.sleep(120)
        """
    )
    base = _line(owner)
    assert processes_of(base)
    owner.kill()
    owner.communicate()
    assert comes(lambda: not processes_of(base) and not os.path.exists(base))


def test_killed_owner_leaves_no_cluster() -> None:
    """Nor its namespaces, killed while the nodes start."""
    reason = Cluster.why_not()
    if reason is not None:
        pytest.skip(reason)
    before = set(undoing.namespaces())
    owner = _owner(
        """
        from timedblock.testing.rabbitmq import Cluster, broker

        wait_until_up = broker.Server.wait_until_up
        def begun(server, *within):
            print(server._base, flush=True)
            wait_until_up(server, *within)
        broker.Server.wait_until_up = begun

        with Cluster():
            pass
        """
    )
    base = _line(owner)
    made = [name for name in undoing.namespaces() if name.startswith(f"timedblock-{owner.pid}-")]
    assert len(made) == 4 and not before & set(made)
    assert processes_of(base)
    owner.kill()
    owner.communicate()
    assert comes(lambda: not processes_of(base) and not os.path.exists(base))
    assert comes(lambda: not set(made) & set(undoing.namespaces()))


def test_node_that_ends_while_the_cluster_forms_is_started_again(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """CI once found one not running after its start had said "ok"; here it is stopped. What is only
    looked at says which node isn't well, and what that one said last."""
    reason = Cluster.why_not()
    if reason is not None:
        pytest.skip(reason)
    evaluate = parts.Server.evaluate
    stopped: list[str] = []

    def joining(server: parts.Server, expression: str) -> str:
        told = evaluate(server, expression)
        if "join_cluster" in expression and not stopped:
            stopped.append(server.name)
            evaluate(server, "rabbit:stop()")
        return told

    monkeypatch.setattr(parts.Server, "evaluate", joining)
    monkeypatch.setattr(nodes, "_PATIENCE", 1.0)
    with Cluster() as cluster:
        assert stopped == [cluster.node(1).name]
        cluster.recovered(within=1.0)
        cluster.node(1).evaluate("rabbit:stop()")
        with pytest.raises(
            RuntimeError, match=rf"\n{stopped[0]} said last: (.|\n)*Successfully stopped"
        ) as told:
            cluster.recovered(within=0.5)
        assert "\x1b" not in str(told.value)


def test_bad_partition_handling_is_named() -> None:
    with pytest.raises(ValueError, match="not 'hope'"):
        Cluster(partition_handling="hope")  # type: ignore[arg-type]
