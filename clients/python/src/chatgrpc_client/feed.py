"""The iterator behind `Client.events()`: what the consumer has not seen yet, in bounded memory.

Log events wait on disk and are read a chunk at a time. News of the moment wait as latest values, each behind the log events
that came before it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable

from chatgrpc.v1 import chat_pb2

from .events import ClientEvent, LogEvent, Signal, TypingChanged, log_event
from .exceptions import ChatError

CHUNK_EVENTS = 256
SIGNALS_MAX = 10_000

ReadArrived = Callable[[int, int, int], Awaitable[list[tuple[int, chat_pb2.ChatEvent]]]]
"""Reads events by their order of arrival: after, up to, at most how many."""


class EventStream(AsyncIterator[ClientEvent]):
    """Yields events until the client stops; then raises what stopped it, or ends when the client was closed.

    Used by one task.
    """

    def __init__(self, read: ReadArrived | None, arrival: int, forget: Callable[["EventStream"], None]) -> None:
        """`read` None: log events come by `push` and wait in memory; else they are read from disk after `arrival`."""
        self._read = read
        self._position = arrival
        self._latest = arrival
        self._ready: deque[LogEvent] = deque()
        self._signals: dict[Hashable, tuple[int, Signal]] = {}
        self._wake = asyncio.Event()
        self._ended = False
        self._error: ChatError | None = None
        self._forget = forget

    # --- the client's side

    def arrived(self, arrival: int, events: Iterable[chat_pb2.ChatEvent]) -> None:
        """These events are on disk, the last of them in this order of arrival."""
        self._latest = arrival
        for event in events:
            self._signals.pop((TypingChanged, event.chat_id, event.sender_user_id), None)
        self._wake.set()

    def push(self, event: chat_pb2.ChatEvent) -> None:
        """Hands over an event that is not on disk yet; the client bounds how many wait."""
        self._ready.append(log_event(event))
        self._signals.pop((TypingChanged, event.chat_id, event.sender_user_id), None)
        self._wake.set()

    def signal(self, key: Hashable, signal: Signal) -> None:
        """News of the moment; replaces earlier news with the same key."""
        self._signals.pop(key, None)
        if len(self._signals) >= SIGNALS_MAX:
            del self._signals[next(iter(self._signals))]
        self._signals[key] = (self._latest, signal)
        self._wake.set()

    def end(self, error: ChatError | None) -> None:
        """Nothing more will come."""
        self._ended = True
        self._error = error
        self._wake.set()

    # --- the consumer's side

    @property
    def has_more(self) -> bool:
        """Whether the next log event is at hand, without waiting."""
        return bool(self._ready)

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> ClientEvent:
        while True:
            if self._ready:
                return self._ready.popleft()
            for key, (after, signal) in self._signals.items():
                if after <= self._position or self._read is None:
                    del self._signals[key]
                    return signal
                break
            if self._read is not None and self._position < self._latest and not self._closed_without_error():
                await self._read_chunk(self._read)
                continue
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def _closed_without_error(self) -> bool:
        return self._ended and self._error is None

    async def _read_chunk(self, read: ReadArrived) -> None:
        up_to = min((after for after, _ in self._signals.values()), default=self._latest)
        up_to = up_to if up_to > self._position else self._latest
        rows = await read(self._position, up_to, CHUNK_EVENTS)
        self._ready.extend(log_event(event) for _, event in rows)
        self._position = rows[-1][0] if rows else up_to

    async def aclose(self) -> None:
        """Ends the iteration; the client keeps nothing for it any more."""
        self._forget(self)
        self._ready.clear()
        self._signals.clear()
        self.end(None)
