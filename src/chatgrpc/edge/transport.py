"""The transport contract: what moves bytes between devices' streams and the tick loop.

A transport only moves bytes. It is batch-shaped on purpose: the edge works in ticks, so it takes everything that arrived
since the last tick in one call and hands over everything to be written in one call. Nothing above this file knows which
transport runs. `tests/contract/transport_suite.py` states the contract as tests that each implementation passes.

What every implementation guarantees:

- Per stream, reports come in this order: opened once, then received in the order of the wire, then closed once. Batches that
  arrived before the peer closed are reported before, or in the same `Inbound` as, the closing. After `close()` nothing more
  is received from that stream, not even what was read and not yet drained.
- A peer that closes its own half (END_STREAM) has finished: all that it sent is received, then the stream stands in
  `Inbound.finished`, and is ours to close. Of a stream that breaks, what was still under way is lost.
- A stream is writable from its opening. `write()` makes it unwritable until the transport has taken the message off our
  hands; then it stands in `Inbound.writable`, which by itself wakes nobody who has not asked. So at most one message per stream
  is in the transport, and a peer that does not read costs at most that message: what waits beyond it is the edge's to bound.
- At most `inbox_bytes_max` (plus one message) per stream wait unread; past that the transport stops reading the stream, and
  HTTP/2 flow control stops the peer.
- A peer can end or break its own stream in any way, and neither an exception nor a delay reaches the edge or another stream.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

StreamId = int
"""Names a stream; unique within the process and never used again."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A peer opened a stream."""

    stream: StreamId
    peer: str
    """Network address of the peer, as the transport names it (`ipv4:127.0.0.1:50312`)."""
    token: str | None
    """Bearer token of the `authorization` metadata, if there was one."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How a stream ends on the wire."""

    code: str
    """Name of a `grpc.StatusCode`: `OK`, `UNAUTHENTICATED`, …"""
    reason: str
    """`google.rpc.ErrorInfo.reason`, UPPER_SNAKE_CASE; sent whenever `code` is not `OK`."""
    message: str
    """One sentence for a person: what happened and what to do next."""


@dataclass(slots=True)
class Inbound:
    """What happened on all streams since the last `drain()`."""

    opened: list[StreamOpened] = field(default_factory=list)
    received: list[tuple[StreamId, list[bytes]]] = field(default_factory=list)
    """Whole messages, still serialized; a stream stands here at most once."""
    writable: list[StreamId] = field(default_factory=list)
    finished: list[StreamId] = field(default_factory=list)
    """Streams whose peers will send nothing more, and may still read."""
    closed: list[StreamId] = field(default_factory=list)
    """Streams that are gone. One that we closed is gone when its last message was taken off our hands, or when it was cut."""


class Transport(Protocol):
    """Moves bytes. Every method is called on the event loop's thread and returns at once."""

    def on_input(self, wake_up: Callable[[], None]) -> None:
        """Names the function to call when there is something to drain, be it only streams that are writable; see the next.

        It is called at most once between two calls of `drain()`, on the event loop's thread.
        """

    def wake_when_writable(self) -> None:
        """From now on until the next `drain()` also a writable stream is something to drain; there may be one already.

        Without this it is not: mostly nothing waits for it, and the next drain for another reason reports it.
        """

    def drain(self) -> Inbound:
        """Takes all that happened since the last call."""

    def write(self, messages: Iterable[tuple[StreamId, bytes]]) -> None:
        """Sends one message on each of the streams; each must be writable. Messages to streams that are gone are dropped.

        Raises:
            AssertionError: a stream is not writable, by a mistake of the caller's.
        """

    def let_in(self, stream: StreamId) -> None:
        """The device on the stream has shown who it is, and may come in.

        Until then the stream takes one of the places that its address has for such, if the transport counts them.
        """

    def hold(self, stream: StreamId) -> None:
        """Stops reading the stream, so that flow control stops its peer.

        What was read already is still reported, and one message more, whose reading was under way. Whether the peer closed its
        half is seen after `release()`; that it broke the stream is seen at once.
        """

    def release(self, stream: StreamId) -> None:
        """Reads the stream again after `hold()`."""

    def close(self, stream: StreamId, status: StreamStatus, last: bytes = b"") -> None:
        """Ends the stream: the message under way, then `last` (if not empty), then `status`.

        A peer that does not read gets `close_timeout_s`; then the stream is cut. Closing a stream that is gone does nothing.
        """
