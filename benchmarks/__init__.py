"""Measured figures of timedblock, beside the raw client and its peers.

``python -m benchmarks`` runs every question; ``python -m benchmarks.overhead`` one of them.
"""
