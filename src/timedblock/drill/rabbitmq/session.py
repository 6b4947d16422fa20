"""The requests of the RabbitMQ drills: messages that are handed over, and taken."""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time

from timedblock.drill.history import DISHONEST, OK, UNAVAILABLE, WRONG
from timedblock.drill.load import Answer, Request
from timedblock.drill.queue_checker import PUBLISH
from timedblock.drill.rabbitmq.clients import Client

GET = "get"


class Messages:
    """The messages of one load. A body carries its queue, its token and a checksum, so that one of
    another queue, a truncated or a corrupted one is recognised."""

    _BODY = re.compile(rb"(?P<queue>\S+) (?P<token>\w+) [0-9a-f]{64}")

    def __init__(self, queue: str) -> None:
        self.queue = queue

    def body(self, token: str) -> bytes:
        text = f"{self.queue} {token}"
        return f"{text} {hashlib.sha256(text.encode()).hexdigest()}".encode()

    def token(self, body: bytes) -> str | None:
        """Whose body it is; None if nobody can have published it."""
        match = self._BODY.fullmatch(body)
        token = match["token"].decode() if match else ""
        return token if match and body == self.body(token) else None


class QueueSession:
    """Requests of an application: most hand a message over, some take one; on any error the
    request goes on without. With ``consumes`` a consumer takes them meanwhile."""

    def __init__(
        self, client: Client, messages: Messages, writes: float, *, consumes: bool = False
    ) -> None:
        self._publisher, self._honest = client
        self._messages = messages
        self._writes = writes
        self._lock = threading.Lock()
        self._given: list[tuple[float, str]] = []
        self._over = False
        if consumes:
            self._publisher.consume(messages.queue, self._taken)

    def enter(self) -> None:
        self._publisher.open()

    def request(self, number: int) -> Request:
        # A little more than it is: 0.9 × 10 is 9, but 0.1 × 3 isn't 0.3.
        due = math.floor((number + 1) * self._writes + 1e-9)
        if due > math.floor(number * self._writes + 1e-9):
            return Request(PUBLISH, "queue", f"m{number}")
        return Request(GET, "queue")

    def answer(self, number: int) -> Answer:
        token = self.request(number).value
        try:
            return self._get() if token is None else self._publish(token)
        except self._honest as error:
            # The raw clients don't say whether bytes left: what became of a message is unknown.
            sent = getattr(error, "sent", True)
            return Answer(UNAVAILABLE, error=type(error).__name__, sent=sent)
        except Exception as error:
            return Answer(DISHONEST, error=type(error).__name__, sent=True)

    def finish(self) -> list[tuple[float, str]]:
        with self._lock:
            self._over = True
            return list(self._given)

    def _publish(self, token: str) -> Answer:
        self._publisher.publish(self._messages.queue, self._messages.body(token), token)
        return Answer(OK)

    def _get(self) -> Answer:
        body = self._publisher.get(self._messages.queue, self._taken)
        if body is None:
            return Answer(OK)
        token = self._messages.token(body)
        return Answer(WRONG) if token is None else Answer(OK, token)

    def _taken(self, body: bytes) -> bool:
        """Under the lock of `finish`: what is acknowledged is known to have been given."""
        token = self._messages.token(body)
        with self._lock:
            if token is not None and not self._over:
                self._given.append((time.monotonic(), token))
            return not self._over
