"""Who has a turn when: those who send little before those who pour in frames, and each of these in the end."""

from typing import Any, cast

from chatgrpc.core.limits import Limits
from chatgrpc.edge.connection import Connection
from chatgrpc.edge.slices import Slice
from chatgrpc.edge.turns import Turns
from chatgrpc.v1 import session_pb2
from tests.unit.edge.crowd import Crowd

_HEARTBEAT = session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat())
LITTLE = session_pb2.ConnectRequest(frames=[_HEARTBEAT]).SerializeToString()
MUCH = session_pb2.ConnectRequest(
    frames=[session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id="g." + "A" * 22, seq=1))] * 500
).SerializeToString()


def fail(connection: Connection, defect: BaseException) -> None:
    raise defect


def turns_of(streams: int) -> tuple[Turns, list[Connection]]:
    """The turns of so many open streams, and these."""
    crowd = Crowd(streams)
    turns = Turns(cast("Any", crowd.wire), Limits(), lambda connection, effects: None, fail, lambda: None, lambda: 0)
    return turns, list(crowd.edge.connections)


def one_after_another(turns: Turns, looks: int) -> list[int]:
    """The streams that have a turn in so many looks, of which each has time for no more than one of each kind."""
    return [connection.stream for _ in range(looks) for connection in turns.take(0, Slice(lambda: 0.0, 0.0))]


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
