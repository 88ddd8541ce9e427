"""Who has a turn when: those who send little before those who pour in frames, and each of these in the end."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Effect, Submit
from chatgrpc.core.limits import Limits
from chatgrpc.edge.connection import Connection
from chatgrpc.edge.slices import SLICE_S, Slice
from chatgrpc.edge.turns import Turns
from chatgrpc.v1 import session_pb2
from tests.unit.edge.crowd import CHAT, Crowd

_HEARTBEAT = session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat())
LITTLE = session_pb2.ConnectRequest(frames=[_HEARTBEAT]).SerializeToString()
MUCH = session_pb2.ConnectRequest(
    frames=[session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id="g." + "A" * 22, seq=1))] * 500
).SerializeToString()

NOW = Now(0, 0)


def fail(connection: Connection, defect: BaseException) -> None:
    raise defect


def turns_of(streams: int) -> tuple[Turns, list[Connection]]:
    """The turns of so many open streams, and these."""
    crowd = Crowd(streams)
    turns = Turns(cast("Any", crowd.wire), Limits(), lambda connection, effects, now: None, fail, lambda: None, lambda: NOW)
    return turns, list(crowd.edge.connections)


def one_after_another(turns: Turns, looks: int) -> list[int]:
    """The streams that have a turn in so many looks, of which each has time for no more than one of each kind."""
    return [connection.stream for _ in range(looks) for connection in turns.take(NOW, Slice(lambda: 0.0, 0.0))]


def test_who_sends_little_goes_before_all_who_pour() -> None:
    turns, connections = turns_of(6)
    for pours in connections[:4]:
        turns.add(pours, [MUCH])
    for quiet in connections[4:]:
        turns.add(quiet, [LITTLE])
    assert one_after_another(turns, 3) == [4, 0, 5, 1, 2]


def test_who_pours_has_a_turn_each_time_however_many_send_little() -> None:
    turns, connections = turns_of(6)
    turns.add(connections[0], [MUCH])
    for quiet in connections[1:]:
        turns.add(quiet, [LITTLE])
    assert one_after_another(turns, 2) == [1, 0, 2, 0]


def test_a_little_before_much_makes_nobody_first() -> None:
    turns, (pours, also_pours, quiet) = turns_of(3)
    turns.add(also_pours, [MUCH])
    turns.add(pours, [LITTLE])
    turns.add(pours, [MUCH])
    turns.add(quiet, [LITTLE])
    assert one_after_another(turns, 2) == [2, 1, 0]


def a_send(number: int) -> session_pb2.ClientFrame:
    frame = session_pb2.ClientFrame(request_id=number)
    frame.send.chat_id = CHAT
    frame.send.key.client_message_id = number.to_bytes(16)
    frame.send.key.seen_seq = 1
    frame.send.content.text.text = f"{number}"
    return frame


class Costly:
    """Turns of two streams in which each frame takes a share of a slice."""

    def __init__(self, cost: float) -> None:
        self.sent: list[tuple[int, int]] = []
        """Stream and number of each frame, as they were taken."""
        self._cost_s = cost * SLICE_S
        self._clock_s = 0.0
        crowd = Crowd(2)
        self.connections = list(crowd.edge.connections)
        self._turns = Turns(cast("Any", crowd.wire), Limits(), self._run, fail, lambda: None, lambda: NOW)

    def add(self, stream: int, numbers: Iterable[int]) -> None:
        batch = session_pb2.ConnectRequest(frames=[a_send(number) for number in numbers])
        self._turns.add(self.connections[stream], [batch.SerializeToString()])

    def last(self, stream: int) -> None:
        self._turns.last(self.connections[stream], NOW, Slice(lambda: self._clock_s))

    def take(self) -> list[int]:
        return [connection.stream for connection in self._turns.take(NOW, Slice(lambda: self._clock_s))]

    def _run(self, connection: Connection, effects: Sequence[Effect], now: Now) -> None:
        self.sent += [(connection.stream, effect.request_id) for effect in effects if isinstance(effect, Submit)]
        self._clock_s += self._cost_s


def test_a_turn_whose_frames_take_long_ends_in_time_and_goes_on_after_the_others() -> None:
    costly = Costly(0.3)
    costly.add(0, range(2, 14))
    costly.add(1, range(2, 4))
    assert [costly.take() for _ in range(3)] == [[0], [1, 0], [0]]
    first = [(0, number) for number in range(2, 14)]
    assert costly.sent == [*first[:4], (1, 2), (1, 3), *first[4:]]


def test_the_last_turn_of_a_stream_that_is_closed_ends_in_time_too() -> None:
    costly = Costly(0.3)
    costly.add(0, range(2, 14))
    costly.last(0)
    assert costly.sent == [(0, number) for number in range(2, 6)]
    assert costly.take() == []


def test_who_sends_little_keeps_the_place_when_those_before_took_long() -> None:
    costly = Costly(0.3)
    for stream in (0, 1):
        costly.add(stream, range(2, 5))
    assert costly.take() == [0, 1]
    assert costly.sent == [(stream, number) for stream in (0, 1) for number in range(2, 5)]
