"""The connections of an edge: each stream with its session, found by stream, by user, by device."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from chatgrpc.core.session import Session
from chatgrpc.edge.transport import StreamId
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import session_pb2


@dataclass(eq=False, slots=True)
class Connection:
    """One stream and the session on it. Equal only to itself."""

    stream: StreamId
    session: Session
    unread: deque[bytes] = field(default_factory=deque)
    """Batches that came, and were not looked at yet."""
    frames: deque[session_pb2.ClientFrame] = field(default_factory=deque)
    """Frames of the batch before them that had no turn yet."""
    writable: bool = True
    """The transport would take a message."""
    held: bool = False
    """The transport does not read the stream."""
    claims: Claims | None = None
    """What the token says that the device came with, or showed last."""
    registered: bool = False
    """It stands under its user and device."""


@dataclass(slots=True)
class Connections:
    """All connections of this process."""

    _by_stream: dict[StreamId, Connection] = field(default_factory=dict)
    _by_user: dict[str, dict[str, Connection]] = field(default_factory=dict)  # user id -> device id -> connection
    with_control: dict[Connection, None] = field(default_factory=dict)
    """Those that have control traffic to send and nothing else, which can wait."""

    def show(self, connection: Connection) -> None:
        """A connection's session was shown something: a receipt, who is there, who is typing."""
        self.with_control[connection] = None

    def __len__(self) -> int:
        return len(self._by_stream)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_stream.values())

    def add(self, connection: Connection) -> None:
        """Takes up a stream that has just opened."""
        self._by_stream[connection.stream] = connection

    def get(self, stream: StreamId) -> Connection | None:
        """The connection on a stream."""
        return self._by_stream.get(stream)

    def register(self, connection: Connection) -> Connection | None:
        """Puts a connection under its session's user and device; returns the one that stood there."""
        session = connection.session
        devices = self._by_user.setdefault(session.user_id, {})
        replaced = devices.get(session.device_id)
        if replaced is not None:
            replaced.registered = False
        devices[session.device_id] = connection
        connection.registered = True
        return replaced

    def remove(self, connection: Connection) -> None:
        """Forgets a connection; again does nothing."""
        self.with_control.pop(connection, None)
        self._by_stream.pop(connection.stream, None)
        if not connection.registered:
            return
        connection.registered = False
        session = connection.session
        devices = self._by_user[session.user_id]
        del devices[session.device_id]
        if not devices:
            del self._by_user[session.user_id]

    def of_user(self, user_id: str) -> Iterable[Connection]:
        """The registered connections of a user's devices."""
        devices = self._by_user.get(user_id)
        return devices.values() if devices is not None else ()

    def of_device(self, user_id: str, device_id: str) -> Connection | None:
        """The registered connection of a device."""
        return self._by_user.get(user_id, {}).get(device_id)
