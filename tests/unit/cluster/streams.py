"""Streams of a node without a transport: real sessions, as far as a device has got with them."""

from collections.abc import Mapping

from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission
from chatgrpc.core.entries import Membership
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, State, Timings
from chatgrpc.core.visibility import Interval
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.v1 import session_pb2

_NOW_MS = 1_000_000
_NOTHING: Mapping[str, int] = {}
_FAR_MS = 4_000_000_000_000


class Streams:
    """The streams of one node."""

    def __init__(self) -> None:
        self.connections = Connections()
        self._count = 0

    def opening(self, user_id: str, held: Mapping[str, int] = _NOTHING, *, device_id: str = "phone") -> Connection:
        """A device whose Hello has come, and whose user is known; it holds these chats up to these seqs."""
        self._count += 1
        session = Session(f"session-{self._count}", "token", Limits(), Timings(), _NOW_MS)
        connection = Connection(self._count, session)
        self.connections.add(connection)
        positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=seq) for chat_id, seq in held.items()]
        hello = session_pb2.Hello(device_id=device_id, positions=positions)
        session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), _NOW_MS)
        session.user_id = user_id
        self.connections.register(connection)
        return connection

    def open(self, user_id: str, held: Mapping[str, int] = _NOTHING, *, device_id: str = "phone") -> Connection:
        """A device that is up to date; these chats were there before it, and end at these seqs."""
        connection = self.opening(user_id, held, device_id=device_id)
        self.admit(connection, held)
        return connection

    def admit(self, connection: Connection, heads: Mapping[str, int]) -> None:
        """The device comes in; its user's chats end at these seqs, and it is up to date."""
        session = connection.session
        memberships = [Membership(chat_id, (Interval(1),), seq) for chat_id, seq in heads.items()]
        session.admitted(Admission(session.user_id, _FAR_MS, memberships, {}, [], "sync"), Now(_NOW_MS, _NOW_MS))
        assert session.state is State.OPEN
        assert session.next_read() is None
        self.frames(connection)

    def close(self, connection: Connection) -> None:
        """The stream is gone."""
        connection.session.closed()
        self.connections.remove(connection)

    def frames(self, connection: Connection) -> list[session_pb2.ServerFrame]:
        """What is to be sent to the device."""
        frames: list[session_pb2.ServerFrame] = []
        while message := connection.session.take_output(_NOW_MS):
            frames += session_pb2.ConnectResponse.FromString(message).frames
        return frames
