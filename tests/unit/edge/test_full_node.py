"""A node takes so many streams and no more: the others go to another node, and take nothing while they do."""

import asyncio

from structlog.testing import capture_logs

from chatgrpc.edge.transport import StreamOpened, StreamStatus
from chatgrpc.v1 import session_pb2
from tests.unit.edge.crowd import Crowd


async def come(crowd: Crowd, number: int) -> None:
    """One more stream comes, and the loop takes it in."""
    crowd.wire.inbound.opened.append(StreamOpened(number, "peer", "token"))
    crowd.edge.wake_up()
    await asyncio.sleep(0)


async def leave(crowd: Crowd, number: int) -> None:
    """The transport reports that a stream is over."""
    crowd.wire.inbound.closed.append(number)
    crowd.edge.wake_up()
    await asyncio.sleep(0)


async def test_a_stream_beyond_the_limit_is_told_to_come_back_later_or_go_elsewhere() -> None:
    crowd = Crowd(sessions=2, streams_max=2)
    await come(crowd, 7)
    status = crowd.wire.closed[7]
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "NODE_FULL")
    (frame,) = crowd.wire.sent[7]
    assert frame.disconnect.code == session_pb2.DISCONNECT_CODE_OVERLOADED
    assert frame.disconnect.reason == "NODE_FULL"
    assert frame.disconnect.reconnect_after_ms > 0
    counted = crowd.metrics.registry.get_sample_value("chatgrpc_disconnects_total", {"code": "DISCONNECT_CODE_OVERLOADED"})
    assert counted == 1
    assert set(crowd.wire.closed) == {7}, "those that are in stay"


async def test_those_that_were_turned_away_take_no_place_though_they_never_read_their_end() -> None:
    crowd = Crowd(sessions=2, streams_max=2)
    for number in range(10, 20):
        await come(crowd, number)
    assert len(crowd.wire.closed) == 10
    await leave(crowd, 0)
    await come(crowd, 20)
    assert 20 not in crowd.wire.closed
    await come(crowd, 21)
    assert crowd.wire.closed[21] == crowd.wire.closed[10] != StreamStatus("OK", "", "")


async def test_a_full_node_says_so_once() -> None:
    crowd = Crowd(sessions=1, streams_max=1)
    with capture_logs() as lines:
        for number in range(10, 20):
            await come(crowd, number)
    assert [(line["log_level"], line["event"]) for line in lines] == [("warning", "streams_turned_away")]
    crowd.edge._is_full.stop()
