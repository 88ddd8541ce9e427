"""A link reads on once its node has caught up with what it brought."""

import asyncio
from typing import Any

import grpc

from chatgrpc.core.links import Load, Message
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.relay.codec import Encoder
from chatgrpc.relay.link import Link, Stream


class Call:
    """A call on which batches wait to be read."""

    def __init__(self, *loads: int) -> None:
        self.batches: list[bytes] = []
        for load in loads:
            batch = relay_pb2.LinkBatch()
            Encoder().add(batch, Load(load))
            self.batches.append(batch.SerializeToString())

    async def read(self) -> Any:
        """See the protocol."""
        return self.batches.pop(0) if self.batches else grpc.aio.EOF

    async def write(self, message: bytes, /) -> None:
        """See the protocol; the peer takes everything."""


async def test_nothing_is_read_while_the_node_is_behind() -> None:
    call, received = Call(1, 2), list[Message]()
    room, waits = asyncio.Event(), asyncio.Event()

    async def caught_up() -> None:
        waits.set()
        await room.wait()

    link = Link("other", Stream(call), 1024, lambda _, messages: received.extend(messages), Metrics(), caught_up)
    running = asyncio.create_task(link.run())
    await waits.wait()
    assert received == [Load(1)]
    assert len(call.batches) == 1
    room.set()
    await running
    assert received == [Load(1), Load(2)]
