"""Which waiting message may be sent next: the order per chat, the window, and going back after a failure. No I/O.

Messages of one chat are committed in the order in which they were composed (M7), also when the stream breaks or the server
fails one of them. So messages of a chat are sent in order; after a failure that may pass, that message and all later ones of
its chat are sent again (go-back-N); after a reconnect, all that are not acknowledged. The server recognises what it had
committed before by `client_message_id` and `seen_seq`, which never change once a message was sent (G3).

The first message of a chat on a new stream goes alone: were its `seen_seq` too old, those behind it would overtake it while
it gets a new one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice

from chatgrpc.v1 import chat_pb2

from .backoff import Backoff
from .exceptions import FIRST_RETRYABLE_CODE

RETRY_BASE_S = 0.1
RETRY_CAP_S = 10.0


@dataclass(slots=True, eq=False)
class OutboxEntry:
    """A message that is not yet acknowledged. Its content stays on disk until it is sent."""

    position: int
    """Rises with each message composed."""
    chat_id: str
    client_message_id: bytes
    seen_seq: int | None
    """None until the device has learned whether the chat exists; the message waits for that."""
    content_bytes: int = 0
    """Size of the serialized content."""


class Verdict(Enum):
    """What a failed send means for the message."""

    WILL_RETRY = auto()
    """It is sent again, later, and so are those after it."""
    SEEN_SEQ_TOO_OLD = auto()
    """It is held back until `rekeyed` says that it is surely not in the log."""
    SEEN_SEQ_AHEAD = auto()
    """The server's log is shorter than what this device holds of it. The message is held back until the next stream."""
    FINAL = auto()
    """It was refused and is out of the outbox."""
    OUT_OF_STEP = auto()
    """The server waits for another message first, and there is none. It is sent again on the next stream."""
    STALE = auto()
    """The answer belongs to a try that was given up, or to a message that is already settled."""


@dataclass(slots=True)
class _Lane:
    """The messages of one chat."""

    backoff: Backoff
    unsent: deque[OutboxEntry] = field(default_factory=deque)
    in_flight: dict[int, OutboxEntry] = field(default_factory=dict)
    """By request id; in order of position."""
    probed: bool = False
    """A message was committed on this stream, so the window is open."""
    held: bool = False
    """The first message must get a new `seen_seq` first."""
    blocked_until_s: float = 0.0

    def may_send(self, now_s: float) -> bool:
        """Whether the first of the unsent messages may go now."""
        if not self.unsent or self.held or self.blocked_until_s > now_s:
            return False
        return self.unsent[0].seen_seq is not None and (self.probed or not self.in_flight)

    def first(self) -> OutboxEntry | None:
        """The oldest message of the chat."""
        return min((*self.in_flight.values(), *islice(self.unsent, 1)), key=lambda e: e.position, default=None)


class Outbox:
    """The unacknowledged messages of a device. Times are seconds of one monotonic clock."""

    def __init__(self, entries: Iterable[OutboxEntry], make_backoff: Callable[[], Backoff] | None = None) -> None:
        self._make_backoff = make_backoff or (lambda: Backoff(RETRY_BASE_S, RETRY_CAP_S))
        self._lanes: dict[str, _Lane] = {}
        self._requests: dict[int, OutboxEntry] = {}
        """Every unanswered send of this stream, those of given-up tries included: the server counts them too."""
        self._entries: dict[bytes, OutboxEntry] = {}
        self._in_flight_max = 0
        self._in_flight_bytes = 0
        self._in_flight_bytes_max = 0
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: OutboxEntry) -> None:
        """Takes a message that was just stored; its position is above all others."""
        self._entries[entry.client_message_id] = entry
        lane = self._lanes.get(entry.chat_id)
        if lane is None:
            lane = self._lanes[entry.chat_id] = _Lane(self._make_backoff())
        lane.unsent.append(entry)

    def connected(self, in_flight_max: int, in_flight_bytes_max: int = 0) -> None:
        """A new stream is open; every message is to be sent on it, those of before first.

        Without `in_flight_bytes_max` the server names no such limit.
        """
        assert in_flight_max > 0
        self.disconnected()
        self._in_flight_max = in_flight_max
        self._in_flight_bytes_max = in_flight_bytes_max

    def disconnected(self) -> None:
        """The stream ended: nothing is in flight, and nothing may be sent until `connected`."""
        self._requests.clear()
        self._in_flight_bytes = 0
        self._in_flight_max = 0
        for lane in self._lanes.values():
            _go_back(lane, 0)
            lane.probed = False
            lane.held = False
            lane.blocked_until_s = 0.0
            lane.backoff.reset()
        self._lanes = {chat_id: lane for chat_id, lane in self._lanes.items() if lane.unsent}

    def take(self, now_s: float, new_request_id: Callable[[], int]) -> list[tuple[int, OutboxEntry]]:
        """The messages to send now, each with its request id; they count as in flight from here on."""
        taken: list[tuple[int, OutboxEntry]] = []
        ready = [lane for lane in self._lanes.values() if lane.unsent]
        while ready and len(self._requests) < self._in_flight_max:
            ready = [lane for lane in ready if lane.may_send(now_s)]
            for lane in ready[: self._in_flight_max - len(self._requests)]:
                if not self._has_room(lane.unsent[0]):
                    return taken  # none of another chat goes instead, so that a large one has its turn
                request_id, entry = new_request_id(), lane.unsent.popleft()
                lane.in_flight[request_id] = self._requests[request_id] = entry
                self._in_flight_bytes += entry.content_bytes
                taken.append((request_id, entry))
        return taken

    def _has_room(self, entry: OutboxEntry) -> bool:
        """Whether the server takes it beside those that are unanswered; one alone it takes whatever its size."""
        bytes_max = self._in_flight_bytes_max
        return not self._requests or not bytes_max or self._in_flight_bytes + entry.content_bytes <= bytes_max

    def _answered(self, request_id: int) -> OutboxEntry:
        entry = self._requests.pop(request_id)
        self._in_flight_bytes -= entry.content_bytes
        return entry

    def withdraw(self, request_id: int) -> None:
        """A message that was taken is not sent after all: it was settled meanwhile."""
        entry = self._answered(request_id)
        self._lanes[entry.chat_id].in_flight.pop(request_id, None)

    def is_send(self, request_id: int) -> bool:
        """Whether an answer with this number is an answer to a send."""
        return request_id in self._requests

    def committed(self, request_id: int) -> OutboxEntry | None:
        """The server acknowledged a send; returns the message, None if it was settled before."""
        entry = self._answered(request_id)
        lane = self._lanes.get(entry.chat_id)
        if lane is not None:
            lane.probed = True
            lane.backoff.reset()
        return self.settle(entry.client_message_id)

    def settle(self, client_message_id: bytes) -> OutboxEntry | None:
        """The message is in the log, however that became known; returns it, None if it is not in the outbox."""
        entry = self._entries.pop(client_message_id, None)
        if entry is None:
            return None
        lane = self._lanes[entry.chat_id]
        number = next((number for number, other in lane.in_flight.items() if other is entry), None)
        if number is not None:
            del lane.in_flight[number]
            return entry
        if lane.unsent[0] is entry:
            lane.held = False
        lane.unsent.remove(entry)
        return entry

    def failed(self, request_id: int, error: chat_pb2.Error, now_s: float) -> tuple[Verdict, OutboxEntry]:
        """The server refused a send."""
        entry = self._answered(request_id)
        lane = self._lanes.get(entry.chat_id)
        if lane is None or request_id not in lane.in_flight:
            return Verdict.STALE, entry
        if error.code in _HOLDS:
            _go_back(lane, entry.position)
            lane.held = True
            return _HOLDS[error.code], entry
        if error.code == chat_pb2.ERROR_CODE_AFTER_FAILED_SEND and lane.first() is entry:
            # The failed one was committed after all, as its event told; the server forgets it with the stream.
            _go_back(lane, entry.position)
            lane.held = True
            return Verdict.OUT_OF_STEP, entry
        if error.code >= FIRST_RETRYABLE_CODE:
            _go_back(lane, entry.position)
            lane.probed = False
            lane.blocked_until_s = now_s + lane.backoff.next_delay_s(error.retry_after_ms / 1000)
            return Verdict.WILL_RETRY, entry
        self.settle(entry.client_message_id)
        return Verdict.FINAL, entry

    def rekeyed(self, client_message_id: bytes, seen_seq: int) -> None:
        """The message is surely not in the log; from here on it, and those behind it, look for duplicates above `seen_seq`."""
        entry = self._entries[client_message_id]
        lane = self._lanes[entry.chat_id]
        entry.seen_seq = seen_seq
        lane.held = False

    def entries(self) -> Iterator[OutboxEntry]:
        """The messages, in the order in which they were composed."""
        return iter(self._entries.values())

    def get(self, client_message_id: bytes) -> OutboxEntry | None:
        """The message, if it is still in the outbox."""
        return self._entries.get(client_message_id)

    def next_deadline_s(self, now_s: float) -> float | None:
        """When `take` may have something that it has not now; None if only input can change that."""
        blocked = [lane.blocked_until_s for lane in self._lanes.values() if lane.unsent and lane.blocked_until_s > now_s]
        return min(blocked, default=None)


_HOLDS: dict[int, Verdict] = {
    chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD: Verdict.SEEN_SEQ_TOO_OLD,
    chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD: Verdict.SEEN_SEQ_AHEAD,
}


def _go_back(lane: _Lane, position: int) -> None:
    """Puts the messages in flight from `position` on back before those that were not sent."""
    back = sorted((e for e in lane.in_flight.values() if e.position >= position), key=lambda e: e.position)
    lane.unsent.extendleft(reversed(back))
    lane.in_flight = {number: e for number, e in lane.in_flight.items() if e.position < position}
