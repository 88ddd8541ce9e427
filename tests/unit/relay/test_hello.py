"""Nodes of neighbouring versions link: of what both speak, the highest is spoken."""

import pytest

from chatgrpc.core.lanes import Forwarded, Lane
from chatgrpc.core.refusal import Code
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.link import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, LinkEndedError, Stream, _for_version_1
from chatgrpc.v1 import chat_pb2


class Said:
    """A call on which the peer said one thing, and which keeps what we say."""

    def __init__(self, lowest: int = 0, highest: int = 0) -> None:
        hello = relay_pb2.Hello(protocol_version=lowest, protocol_version_max=highest, node_id="peer", to_node_id="us")
        self._said = relay_pb2.LinkBatch(frames=[relay_pb2.LinkFrame(hello=hello)]).SerializeToString()
        self.heard = b""

    async def read(self) -> bytes:
        return self._said

    async def write(self, message: bytes, /) -> None:
        self.heard = message


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken"),
    [
        (1, 0, 1),  # version 1.0, which says one number
        (1, 1, 1),
        (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MAX),
        (PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MAX + 5, PROTOCOL_VERSION_MAX),
    ],
)
async def test_the_highest_version_of_both_is_spoken(lowest: int, highest: int, spoken: int) -> None:
    stream = Stream(Said(lowest, highest))
    assert await stream.hear_hello("us") == "peer"
    assert stream.version == spoken


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (PROTOCOL_VERSION_MAX + 1, PROTOCOL_VERSION_MAX + 3)])
async def test_without_a_common_version_there_is_no_link_and_it_says_why(lowest: int, highest: int) -> None:
    with pytest.raises(LinkEndedError, match="versions"):
        await Stream(Said(lowest, highest)).hear_hello("us")


async def test_a_node_of_version_one_hears_the_version_that_it_asks_for() -> None:
    """It takes no other number at that place."""
    call = Said()
    await Stream(call).say_hello("us", "peer")
    (frame,) = relay_pb2.LinkBatch.FromString(call.heard).frames
    assert frame.hello.protocol_version == 1
    assert frame.hello.protocol_version_max == PROTOCOL_VERSION_MAX


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (chat_pb2.ERROR_CODE_CHAT_DAMAGED, chat_pb2.ERROR_CODE_UNAVAILABLE),
        (chat_pb2.ERROR_CODE_RATE_LIMITED, chat_pb2.ERROR_CODE_RATE_LIMITED),
        (chat_pb2.ERROR_CODE_MUTED, chat_pb2.ERROR_CODE_MUTED),
    ],
)
def test_a_node_of_version_one_is_told_no_code_that_it_does_not_know(code: Code, told: Code) -> None:
    """It would look up the code's name in the tick, and end."""
    lane = Lane("edge", "session", "g.1")
    message = _for_version_1(Forwarded(lane, 1, chat_pb2.Error(code=code, message="why", retry_after_ms=5)))
    assert message == Forwarded(lane, 1, chat_pb2.Error(code=told, message="why", retry_after_ms=5))
