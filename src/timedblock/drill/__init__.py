"""The drill: the same faults on the wire for raw drivers and for timedblock, under load.

``load`` makes the requests, ``worker`` is the process they run in, ``memcache`` says what is tried
on which clients, ``engine`` runs it, ``verdict`` judges it and ``report`` shows it.
"""
