"""Turns: takes some of what each stream sent, and lets a stream wait whose session must.

Who pours in frames delays the others by one turn. A stream that must wait is not read, so its peer feels it by flow control.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError

from chatgrpc.core.disconnect import Ended
from chatgrpc.core.effects import Effect
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, State
from chatgrpc.edge.connection import Connection
from chatgrpc.edge.sizes import Sizes
from chatgrpc.edge.transport import Transport
from chatgrpc.v1 import session_pb2

_FRAMES_PER_TURN = 64
"""A stream that sent more waits until all others have had their turn."""
_LOOKED_INTO_BYTES = 16 * 1024
"""What is shorter cannot hold so much that it would take long."""


class Turns:
    """The streams that sent something, each waiting for its turn."""

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        run: Callable[[Connection, Sequence[Effect]], None],
        give_up: Callable[[Connection, BaseException], None],
        wake_up: Callable[[], None],
        now_ms: Callable[[], int],
    ) -> None:
        """
        Args:
            transport: holds streams that must wait.
            limits: of batches and of what may wait to be sent.
            run: runs what a session wants done.
            give_up: ends the stream in whose frames our own code tripped.
            wake_up: starts a tick soon; called when a stream could go on and has had its turn.
            now_ms: the sessions' clock.
        """
        self.frames_in: Counter[str] = Counter()
        """Frames taken, by kind; whoever moves them on clears it."""
        self.stopping = False
        """Set when the node stops: all streams wait then, for their end."""
        self._transport = transport
        self._limits = limits
        self._sizes = Sizes(limits)
        self._run = run
        self._give_up = give_up
        self._wake_up = wake_up
        self._now_ms = now_ms
        self._waiting: dict[Connection, None] = {}

    def add(self, connection: Connection, batches: Iterable[bytes]) -> None:
        """The stream sent these; it has a turn in the next `take`."""
        connection.unread.extend(batches)
        self._waiting[connection] = None

    def take(self, now_ms: int) -> Iterable[Connection]:
        """Gives each stream that waits a turn; returns them."""
        waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            self._take_turn(connection, now_ms)
        return waiting

    def read_or_hold(self, connection: Connection) -> None:
        """Goes on with what the stream sent, or with reading it, if its session may; else stops reading, and so the peer.

        A session waits while it is being opened, and while too much waits to be sent. Either ends by a message to the device,
        so this is called after each.
        """
        waiting = bool(connection.frames or connection.unread)
        may_receive = self._may_receive(connection.session)
        if waiting and may_receive:
            self._waiting[connection] = None
            self._wake_up()
        held = waiting or not may_receive
        if held and not connection.held:
            self._transport.hold(connection.stream)
        elif connection.held and not held:
            connection.session.excuse_silence(self._now_ms())
            self._transport.release(connection.stream)
        connection.held = held

    def _take_turn(self, connection: Connection, now_ms: int) -> None:
        session, frames = connection.session, connection.frames
        try:
            for _ in range(_FRAMES_PER_TURN if self._may_receive(session) else 0):
                if not frames and not self._unpack(connection, frames):
                    break
                frame = frames.popleft()
                kind = frame.WhichOneof("body") or "unknown"
                self.frames_in[kind] += 1
                effects = session.receive(frame, now_ms)
                if effects:
                    self._run(connection, effects)
                    if session.state is State.OPENING:
                        break
        except DecodeError:
            self._end(connection, Ended(session_pb2.DISCONNECT_CODE_MALFORMED))
        except Exception as defect:  # a frame that the core trips over costs its own stream, and no other
            self._give_up(connection, defect)
        self.read_or_hold(connection)

    def _unpack(self, connection: Connection, frames: deque[session_pb2.ClientFrame]) -> bool:
        """Makes frames of the next batches until there are some; returns whether there are."""
        while connection.unread and not frames:
            message_bytes = connection.unread.popleft()
            received = session_pb2.ConnectRequest.FromString(message_bytes)
            batch = received.frames
            if len(batch) > self._limits.frames_per_batch_max:
                message = f"A batch holds at most {self._limits.frames_per_batch_max} frames; this one has {len(batch)}."
                self._end(connection, Ended(session_pb2.DISCONNECT_CODE_MALFORMED, message))
                break
            if len(message_bytes) > _LOOKED_INTO_BYTES and (said := self._sizes.too_many(received)):
                self._end(connection, Ended(session_pb2.DISCONNECT_CODE_PROTOCOL_VIOLATION, said))
                break
            frames.extend(batch)
        return bool(frames)

    def _may_receive(self, session: Session) -> bool:
        return (
            not self.stopping
            and session.state is not State.OPENING
            and session.backlog_bytes() <= self._limits.backlog_bytes_max
        )

    def _end(self, connection: Connection, ended: Ended) -> None:
        self._run(connection, connection.session.end(ended))
