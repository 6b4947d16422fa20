"""Sockets, connections, threads: everything that waits for the outside (L3)."""
