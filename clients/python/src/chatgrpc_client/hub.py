"""What the users of a client wait for: the streams of events, and changes of the connection and of what is stored."""

import asyncio
from collections.abc import Hashable, Iterable, Sequence

from chatgrpc.v1 import chat_pb2

from .events import ConnectionChanged, ConnectionState, Signal
from .exceptions import ChatError, ClientClosedError
from .feed import EventStream, ReadArrived


class Hub:
    """Tells everybody who waits."""

    def __init__(self) -> None:
        self.connection = ConnectionChanged(ConnectionState.CONNECTING)
        """Where the client is with the server now."""
        self.stopped: ChatError | None = None
        """Why there will be nothing more; None while there may be."""
        self._streams: list[EventStream] = []
        self._moved = asyncio.Event()
        self._first_arrival = self._last_arrival = 0

    def begin(self, arrival: int) -> None:
        """Streams begin behind this event of those on disk."""
        self._first_arrival = self._last_arrival = arrival

    def open_stream(self, read: ReadArrived | None, waiting: Iterable[chat_pb2.ChatEvent] = ()) -> EventStream:
        """Makes an iterator; see `EventStream`. `waiting`: events that are pushed into it at once."""
        stream = EventStream(read, self._first_arrival if read else 0, self._forget)
        if read is not None:
            stream.arrived(self._last_arrival, ())
        for event in waiting:
            stream.push(event)
        stream.signal(ConnectionChanged, self.connection)
        if self.stopped is not None:
            stream.end(self.stopped)
        self._streams.append(stream)
        return stream

    def _forget(self, stream: EventStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)

    async def moved(self) -> None:
        """Waits for the next change of the connection or of what is stored.

        Raises:
            ChatError: what stopped the client.
        """
        if self.stopped is None:
            await self._moved.wait()
        if self.stopped is not None:
            raise self.stopped

    def notify(self) -> None:
        """Something changed that `moved` waits for."""
        self._moved.set()
        self._moved = asyncio.Event()

    def connection_is(
        self, state: ConnectionState, message: str = "", retry_in_s: float = 0.0, error: ChatError | None = None
    ) -> None:
        """The connection is in another state."""
        self.connection = ConnectionChanged(state, message, retry_in_s, error)
        self.signal(ConnectionChanged, self.connection)
        self.notify()

    def signal(self, key: Hashable, signal: Signal) -> None:
        """News of the moment for every stream; replaces earlier news with the same key."""
        for stream in self._streams:
            stream.signal(key, signal)

    def arrived(self, arrival: int, events: Sequence[chat_pb2.ChatEvent]) -> None:
        """These events are on disk, the last of them in this order of arrival."""
        self._last_arrival = arrival
        for stream in self._streams:
            stream.arrived(arrival, events)

    def push(self, event: chat_pb2.ChatEvent) -> None:
        """Hands an event that is not on disk to every stream."""
        for stream in self._streams:
            stream.push(event)

    def stop(self, error: ChatError) -> None:
        """Nothing more comes. The first error counts; streams of a client that was closed just end."""
        self.stopped = self.stopped or error
        for stream in self._streams:
            stream.end(None if isinstance(error, ClientClosedError) else error)
        self.notify()
