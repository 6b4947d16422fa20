"""The drill: the same faults on the wire for raw drivers and for timedblock, under load.

``load`` makes the requests, ``worker`` is the process they run in, ``memcache`` and ``rabbitmq``
say what is tried on which clients, ``engine`` runs it, ``verdict`` judges it, ``report`` shows it.
"""
