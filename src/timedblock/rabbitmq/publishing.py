"""The connection that publishes: one channel with confirms, shared by all threads (L4)."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from pika import exceptions

from ..call import ANSWER, UNWELL
from .connection import Connection
from .encoding import CHANNEL, END, SMALL, frames
from .errors import Nacked
from .link import Link, lost
from .request import Batch, Failure, Item, Publication
from .returns import Returns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .encoding import Route
    from .request import Request

Sent: TypeAlias = "Publication | Item"

#: Bytes that are handed to the kernel at a time.
_CHUNK = 256 * 1024
#: Messages on the wire: enough that RabbitMQ need not wait for us, and no more, since whoever comes
#: next waits for all of them.
_FLIGHT = 1_000
#: The room for which those that come next wait, as a part of the wire (one in so many): a few each
#: time that a few are confirmed would cost a system call each.
_LEAST_ROOM = 2
#: With so many on the wire, the confirms of a millisecond are read at once: as they come they are a
#: few to a read, which costs as much as 20 messages.
_MANY = _FLIGHT // 4
_NAP = 0.001
#: Nothing is sent while the kernel has yet to take so many bytes.
_BACKLOG = 1024 * 1024


class PublishingLink(Link):
    """Publishes in the order in which messages come; a confirm settles one or many.

    RabbitMQ counts the messages on a channel, and so does `_tag`: what is counted is sent in the
    same breath, or the connection ends.
    """

    _owns_exclusive = False

    def __init__(self, *args: Any, most: int, most_bytes: int, repeat: bool) -> None:
        """`most`, `most_bytes`: unconfirmed messages, and their bytes, at a time. `repeat`: whether
        what is unconfirmed when a connection ends is sent again."""
        super().__init__(*args)
        self._most, self._most_bytes, self._repeat = most, most_bytes, repeat
        #: from any thread
        self.inbox: deque[Publication] = deque()
        self._channel: Any = None
        #: to come, at the end of the loop's turn
        self._nap: Any = None
        #: by delivery tag, oldest first
        self._unconfirmed: dict[int, Sent] = {}
        #: their bytes
        self.unconfirmed_bytes = 0
        #: those of them for which nobody waits any more: only what a late confirm needs is kept
        self._abandoned = 0
        #: the last delivery tag; the lowest that may be unconfirmed
        self._tag, self._low = 0, 1
        self._returns = Returns()
        #: until RabbitMQ takes messages again, or the channel is open again
        self._held: deque[Publication] = deque()
        self._batches: deque[Batch] = deque()

    @property
    def unconfirmed(self) -> int:
        """Messages that were sent, of which RabbitMQ hasn't said anything yet, and for which
        somebody waits."""
        return len(self._unconfirmed) - self._abandoned

    # -- sending ------------------------------------------------------------------------------

    def hold(self, publication: Publication) -> None:
        """Send it with the next `pump`."""
        publication.sent = publication.waited = False
        self._held.append(publication)

    def batch(self, batch: Batch) -> None:
        """Send its messages as fast as RabbitMQ confirms them."""
        if batch not in self._batches:
            self._batches.append(batch)

    def feed(self, batch: Batch) -> None:
        """There are more messages in `batch`."""
        if batch.failure is not None:
            batch.fail(batch.failure)  # they share the fate of the first
        elif batch.connection is not None:
            if batch.connection is self.connection:
                self.batch(batch)
            else:  # which ended while nothing waited here
                batch.again(self)

    def pump(self, least: int = _LEAST_ROOM) -> None:
        """Send what there is to send and may be sent, if there is room for one in `least`."""
        inbox = self.inbox
        if self.blocked or self._channel is None or not self.ready:
            while inbox:
                self.take(inbox.popleft())
            return
        while self._held and (room := self._room(least)):
            self._emit(self._take_held(room))
        if not self._held and inbox and (room := self._room(least)):
            self._emit(self._take_new(room))
        if inbox and not self._room(least):
            self._queue_new()
        while self._batches and not self._held and (room := self._room(least)):
            self._emit(self._take_batched(room))
        if self._held or self._batches:
            self._engine.look_soon()

    def pump_all(self) -> None:
        """Use what room there is: some of those on the wire may never be confirmed."""
        self.pump(_FLIGHT)

    def _room(self, least: int) -> int:
        """How many messages may leave now."""
        if self.unconfirmed_bytes >= self._most_bytes or self.connection.backlog >= _BACKLOG:
            return 0
        most = min(_FLIGHT, self._most)
        room = most - self.unconfirmed
        return room if room * least >= most else 0

    def _queue_new(self) -> None:
        """Others are on the wire already; the attempt begins when it leaves."""
        inbox, held, connection = self.inbox, self._held, self.connection
        new = [inbox.popleft() for _ in range(len(inbox))]  # more may be handed over meanwhile
        queued = [one for one in new if not self._goes_elsewhere(one)]
        held.extend(queued)
        for publication in queued:
            publication.connection = connection
            call = publication.call
            block = call.owner
            if not publication.timed_here or call.outer is not None or block.limit < block.ceiling:
                publication.waited = True
                publication.at = publication.until = call.call_at
            elif publication.at < call.at:
                publication.at = publication.until = call.at
        self._engine.expire(queued)

    def _take_held(self, room: int) -> list[Sent]:
        taken: list[Sent] = []
        held, heard, now, size = self._held, self.connection.frames_received, self._now(), 0
        while held and size < _CHUNK and len(taken) < room:
            publication = held.popleft()
            if publication.given_up or self._goes_elsewhere(publication):
                continue
            if publication.waited and not self._restart(publication, now):
                continue
            publication.heard = heard
            publication.left_at = now
            if publication.begin():
                taken.append(publication)
                size += publication.size
        return taken

    def _take_new(self, room: int) -> list[Publication]:
        """The way of `take`, `begin`, `go` and `hold`, in one."""
        taken: list[Publication] = []
        inbox, connection = self.inbox, self.connection
        heard, size, ways = connection.frames_received, 0, self._engine.routing.ways
        while inbox and size < _CHUNK and len(taken) < room:
            publication = inbox.popleft()
            if ways and self._goes_elsewhere(publication):
                continue
            publication.heard = heard
            publication.connection = connection
            publication.sent = True
            if publication.given_up:
                publication.sent = False
                continue
            taken.append(publication)
            size += publication.size
        self._engine.expire(taken)
        return taken

    def _goes_elsewhere(self, publication: Publication) -> bool:
        """Whether it took a detour, which doesn't wait for room here."""
        routing = self._engine.routing
        detour = routing.way(publication.envelope.route) if routing.ways else None
        if detour is not None:
            detour.take(publication)
        return detour is not None

    def _take_batched(self, room: int) -> list[Sent]:
        taken: list[Sent] = []
        size = 0
        batch = self._batches[0]
        queued, routing = batch.queued, self._engine.routing
        while queued and size < _CHUNK and len(taken) < room:
            item = queued.popleft()
            if routing.ways and (detour := routing.way(item.envelope.route)):
                detour.hold(item)
                continue
            if not item.begin():
                break
            taken.append(item)
            size += item.size
        if batch.given_up or not queued:
            self._batches.popleft()  # `feed` brings it back
        else:
            self._batches.rotate(-1)  # each has its turn
        return taken

    def _emit(self, taken: Sequence[Sent]) -> None:
        if not taken:
            return
        out: list[bytes] = []
        tag, unconfirmed = self._tag, self._unconfirmed
        size, sent = 0, []
        for one in taken:
            tag += 1
            one.tag = tag
            unconfirmed[tag] = one
            body = one.body
            size += one.size
            if not one.confirm:
                sent.append(one)
            if 0 < len(body) <= SMALL:
                out += (one.head, body, END)
            else:
                out.append(one.head)
                out.extend(frames(body, self.connection.largest_body))
        self.unconfirmed_bytes += size
        try:
            self.connection.emit(b"".join(out))
        except BaseException as error:  # counted, and perhaps not sent
            self.drop(type(error).__name__)
            raise
        self._tag = tag
        for one in sent:
            one.succeed()

    # -- the channel --------------------------------------------------------------------------

    def _connect(self, parameters: Any, **callbacks: Any) -> Any:
        return Connection(parameters, on_confirms=self._read, **callbacks)

    def _prepare(self) -> None:
        # first of all, or what is declared takes its number
        self._open_channel(lambda channel: self._restore(lambda: self._channel_open(channel)))

    def _open_channel(self, then: Callable[[Any], None]) -> None:
        self.connection.channel(CHANNEL, on_open_callback=then)

    def _channel_open(self, channel: Any) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._told, callback=lambda frame: self._can_publish(channel))

    def _can_publish(self, channel: Any) -> None:
        if self.connection is None or channel.connection is not self.connection:
            return
        self._channel, self._tag, self._low, self._returns = channel, 0, 1, Returns()
        if not self.ready:
            self._get_ready()
        self.pump()

    def _get_ready(self) -> None:
        super()._get_ready()
        self._engine.bring_consumers()
        self._engine.routing.end()
        self.pump()

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        super()._on_unblocked(connection, frame)
        self.pump()

    def _channel_closed(self, channel: Any, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        told = isinstance(reason, exceptions.ChannelClosedByBroker)
        text = getattr(reason, "reply_text", "")
        unconfirmed = self._take_unconfirmed()
        why = "RabbitMQ closed the channel over another message" if told else ""
        for one in unconfirmed:
            # RabbitMQ names the exchange that isn't there; what the others became nobody knows
            if told and (f"'{one.envelope.route[0]}'" in text or len(unconfirmed) == 1):
                one.fail(Failure(reason, ANSWER))
            else:
                self._lost(one, why)
        # pika has not forgotten the number yet
        self._engine.ioloop.call_later(0, lambda: self._open_another(channel.connection))

    def _open_another(self, connection: Any) -> None:
        if connection is self.connection and connection.is_open:
            self._open_channel(self._channel_open)

    # -- what became of messages --------------------------------------------------------------

    def _read(self, confirms: list[tuple[int, bool]]) -> None:
        """The confirms of one read; where many more will come, the next one is to have some."""
        self._confirmed(confirms)
        if self._nap is None and self.unconfirmed > _MANY:
            # after this turn of the loop: pika reads until nothing is there, and in a nap of a
            # millisecond something comes
            self._nap = self._engine.ioloop.call_later(0, self._take_nap)

    def _take_nap(self) -> None:
        self._nap = None
        self._engine.clock.sleep(_NAP)

    def _confirmed(self, confirms: list[tuple[int, bool]]) -> None:
        taken = self._take(confirms)
        try:
            if self._batches or self._held or self.inbox:
                self.pump()  # RabbitMQ has something to do while we tell of what it did
        finally:
            for one in taken:
                one.succeed()

    def _told(self, frame: Any) -> None:
        """A confirm by way of pika's channel: nacks, and acks among other frames."""
        method = frame.method
        if method.NAME != "Basic.Nack":
            self._confirmed([(method.delivery_tag, method.multiple)])
            return
        for one in self._take([(method.delivery_tag, method.multiple)]):
            one.fail(Failure(Nacked(), UNWELL))
            self._unserved(one.envelope.route, nacked=True)
        self.pump()

    def _take(self, confirms: list[tuple[int, bool]]) -> list[Sent]:
        """Those that are settled now: of each (tag, multiple) the tag's, or all up to it."""
        taken: list[Sent] = []
        unconfirmed, last, size = self._unconfirmed, self._tag, 0
        for tag, multiple in confirms:
            if not 0 < tag <= last:
                self.drop("RabbitMQ confirmed what was never sent")
                return taken
            if not multiple:
                tags = range(tag, tag + 1)
            elif tag >= self._low:
                tags = range(self._low, tag + 1)
                self._low = tag + 1
            else:
                continue
            for number in tags:
                one = unconfirmed.pop(number, None)
                if one is not None:
                    taken.append(one)
                    size += one.size
                    if one.abandoned:
                        self._abandoned -= 1
        self.unconfirmed_bytes -= size
        return taken

    def _returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tags = range(self._low, self._tag + 1)
        self._returns.tell(self._unconfirmed, tags, method, properties, body)

    def _leave(self, request: Request) -> None:
        """Frames come, but no confirm."""
        if self.blocked or not request.sent:
            return
        if isinstance(request, Publication):
            self._unserved(request.envelope.route, nacked=False)
            return
        for route in {
            one.envelope.route
            for one in self._unconfirmed.values()
            if isinstance(one, Item) and one.batch is request and not one.settled
        }:
            self._unserved(route, nacked=False)

    def _unserved(self, route: Route, *, nacked: bool) -> None:
        self._engine.routing.unserved(route, self.place, nacked=nacked)

    # -- ending -------------------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        self._channel = self._nap = None

    def _take_unconfirmed(self) -> list[Sent]:
        taken, self._unconfirmed = list(self._unconfirmed.values()), {}
        self.unconfirmed_bytes = self._abandoned = 0
        return taken

    def _lost(self, one: Sent, why: str) -> None:
        if self._repeat and one.confirm and not (one.settled or one.given_up):
            one.again(self)
        else:
            one.fail(lost(why))

    def _lose(self, why: str) -> None:
        super()._lose(why)
        unconfirmed = self._take_unconfirmed()
        held, self._held = self._held, deque()
        batches, self._batches = self._batches, deque()
        for one in unconfirmed:
            self._lost(one, why)
        for publication in held:
            publication.again(self)  # never sent
        for batch in batches:
            batch.again(self)

    def doubt(self, request: Request) -> None:
        """See `Link.doubt`; a message that was held is forgotten, one that was sent nearly so."""
        if isinstance(request, Publication) and not request.sent and self._held:
            with contextlib.suppress(ValueError):
                self._held.remove(request)  # most often the first one
        if isinstance(request, (Publication, Batch)) and request.connection:
            self._engine.routing.doubt(request)  # one of them is concerned
        if isinstance(request, Publication):
            self._abandon(request)
        else:
            for one in list(self._unconfirmed.values()):
                if isinstance(one, Item) and one.batch is request:
                    self._abandon(one)
        super().doubt(request)

    def _abandon(self, one: Sent) -> None:
        """It takes no more room: what is never confirmed must not be in the way of the rest."""
        if one.settled or one.abandoned or self._unconfirmed.get(one.tag) is not one:
            return
        one.abandoned = True
        self._abandoned += 1
        self.unconfirmed_bytes -= one.size
        one.head, one.body, one.size = b"", b"", 0
        if self._abandoned > self._most:
            oldest = next(tag for tag, one in self._unconfirmed.items() if one.abandoned)
            del self._unconfirmed[oldest]
            self._abandoned -= 1
