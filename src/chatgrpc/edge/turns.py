"""Turns: takes some of what each stream sent, and lets a stream wait whose session must.

Who sends little goes first, so that those who pour in frames delay the others by one turn, however many they are. A stream that
must wait is not read, so its peer feels it by flow control.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.effects import Effect
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, State
from chatgrpc.edge.connection import Connection
from chatgrpc.edge.sizes import Sizes
from chatgrpc.edge.slices import Slice
from chatgrpc.edge.transport import Transport
from chatgrpc.v1 import session_pb2

_FRAMES_PER_TURN = 64
_BYTES_PER_TURN = 256 * 1024
"""A stream that sent more waits until all others have had their turn; a batch that was begun is not counted again."""
_LITTLE_BYTES = 4 * 1024
"""A stream that sent no more, and of which nothing is left from its last turn, goes before the others."""
_BATCH_OVERHEAD_BYTES = 64
"""What an empty one costs, in bytes of others."""
_LOOKED_INTO_BYTES = 16 * 1024
"""What is shorter cannot hold so much that it would take long."""


class Turns:
    """The streams that sent something, each waiting for its turn."""

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        run: Callable[[Connection, Sequence[Effect], Now], None],
        give_up: Callable[[Connection, BaseException], None],
        wake_up: Callable[[], None],
        now: Callable[[], Now],
    ) -> None:
        """
        Args:
            transport: holds streams that must wait.
            limits: of batches and of what may wait to be sent.
            run: runs what a session wants done; the moment is that of the tick, one for all that it takes.
            give_up: ends the stream in whose frames our own code tripped.
            wake_up: starts a tick soon; called when a stream could go on and has had its turn.
            now: the clocks.
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
        self._now = now
        self._with_little: dict[Connection, None] = {}
        self._with_much: dict[Connection, None] = {}

    def add(self, connection: Connection, batches: Iterable[bytes]) -> None:
        """The stream sent these; it has a turn in the next `take` that comes to it, and is not read before if it sends more."""
        if (connection in self._with_little or connection in self._with_much) and not connection.held:
            connection.held = True
            self._transport.hold(connection.stream)
        connection.unread.extend(batches)
        if connection.frames or sum(map(len, connection.unread)) > _LITTLE_BYTES:
            self._with_little.pop(connection, None)
            self._with_much[connection] = None
        elif connection not in self._with_much:
            self._with_little[connection] = None

    def take(self, now: Now, slice_: Slice) -> Iterable[Connection]:
        """Gives each stream that waits a turn, as far as there is time; returns those that had one."""
        little, self._with_little = iter(self._with_little), {}
        much, self._with_much = iter(self._with_much), {}
        taken = [*self._take_turns(little, now, slice_), *self._take_turns(much, now, slice_)]
        self._with_little = dict.fromkeys(little) | self._with_little
        self._with_much = dict.fromkeys(much) | self._with_much
        if self._with_little or self._with_much:
            self._wake_up()
        return taken

    def _take_turns(self, waiting: Iterator[Connection], now: Now, slice_: Slice) -> Iterator[Connection]:
        """Gives turns until there is no more time, and one in any case; returns who had one."""
        for connection in waiting:
            self._take_turn(connection, now, slice_.anew())
            yield connection
            if slice_.is_over:
                return

    def last(self, connection: Connection, now: Now, slice_: Slice) -> None:
        """The stream is closed: what it sent before has its turn now, if it has had none; what is left then is dropped."""
        if connection in self._with_little or connection in self._with_much:
            self._with_little.pop(connection, None)
            self._with_much.pop(connection, None)
            self._take_turn(connection, now, slice_)
            self._with_much.pop(connection, None)

    def read_or_hold(self, connection: Connection) -> None:
        """Goes on with what the stream sent, or with reading it, if its session may; else stops reading, and so the peer.

        A session waits while it is being opened, and while too much waits to be sent. Either ends by a message to the device,
        so this is called after each.
        """
        waiting = bool(connection.frames or connection.unread)
        may_receive = self._may_receive(connection.session)
        if waiting and may_receive:
            self._with_little.pop(connection, None)
            self._with_much[connection] = None
            self._wake_up()
        held = waiting or not may_receive
        if held and not connection.held:
            self._transport.hold(connection.stream)
        elif connection.held and not held:
            connection.session.excuse_silence(self._now().monotonic_ms)
            self._transport.release(connection.stream)
        connection.held = held

    def _take_turn(self, connection: Connection, now: Now, slice_: Slice) -> None:
        """Takes what the stream sent, up to a turn's measure, and no more once the slice is over.

        It is the turn's own: who sends little is not put behind others since those before it took long.
        """
        session, frames, now_ms = connection.session, connection.frames, now.monotonic_ms
        bytes_left = _BYTES_PER_TURN
        try:
            for _ in range(_FRAMES_PER_TURN if self._may_receive(session) else 0):
                if not frames:
                    if bytes_left <= 0:
                        break
                    bytes_left -= self._unpack(connection, frames)
                    if not frames:
                        break
                frame = frames.popleft()
                kind = frame.WhichOneof("body") or "unknown"
                self.frames_in[kind] += 1
                effects = session.receive(frame, now_ms)
                if effects:
                    self._run(connection, effects, now)
                    if session.state is State.OPENING or slice_.is_over:
                        break
        except DecodeError:
            self._end(connection, Ended(session_pb2.DISCONNECT_CODE_MALFORMED))
        except Exception as defect:  # a frame that the core trips over costs its own stream, and no other
            self._give_up(connection, defect)
        self.read_or_hold(connection)

    def _unpack(self, connection: Connection, frames: deque[session_pb2.ClientFrame]) -> int:
        """Makes frames of the next batches until there are some; returns how many bytes it looked at."""
        looked_at = 0
        while connection.unread and not frames and looked_at < _BYTES_PER_TURN:
            message_bytes = connection.unread.popleft()
            looked_at += len(message_bytes) + _BATCH_OVERHEAD_BYTES
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
        return looked_at

    def _may_receive(self, session: Session) -> bool:
        return (
            not self.stopping
            and session.state is not State.OPENING
            and session.backlog_bytes() <= self._limits.backlog_bytes_max
        )

    def _end(self, connection: Connection, ended: Ended) -> None:
        self._run(connection, connection.session.end(ended), self._now())
