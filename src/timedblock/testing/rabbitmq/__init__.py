"""Real RabbitMQ servers for tests and drills: Debian's, in processes of their own (L5).

One node on loopback, for any user::

    with Broker() as broker:
        client = timedblock.rabbitmq.Client(broker.address)
        with broker.paused(): ...
        with broker.short_of_memory(): ...
        broker.kill()
        broker.start()

Three nodes in network namespaces of their own, for root on Linux (`Cluster`)::

    with Cluster(partition_handling="pause_minority") as cluster:
        client = timedblock.rabbitmq.Client(cluster.addresses)
        cluster.partition(0, how="established")
        ...
        cluster.restore()

Both need ``apt-get install rabbitmq-server``; `why_not` and `Cluster.why_not` tell what is missing.
Whatever they make is gone after the ``with`` block, and also when this process is killed.
"""

from .broker import Broker, Server, why_not
from .cluster import Cluster

__all__ = ["Broker", "Cluster", "Server", "why_not"]
