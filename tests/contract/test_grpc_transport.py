"""The transport over grpc.aio, on the server that a node runs."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from chatgrpc.edge.errors import error_info_of
from chatgrpc.edge.grpc_transport import SERVICE, GrpcTransport
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.edge.transport import StreamId, StreamStatus
from tests.contract.transport_ends import (
    CLOSE_TIMEOUT_S,
    INBOX_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    WAIT_S,
    Connect,
    Edge,
    Peer,
    Served,
    come_and_go,
)
from tests.contract.transport_suite import TransportSuite


class TestGrpcTransport(TransportSuite):
    @pytest.fixture
    async def served(self) -> AsyncIterator[Served]:
        tasks = len(asyncio.all_tasks())
        transport = GrpcTransport(inbox_bytes_max=INBOX_BYTES_MAX, close_timeout_s=CLOSE_TIMEOUT_S)
        server = GrpcServer(ServerOptions(message_bytes_max=MESSAGE_BYTES_MAX))
        server.register(SERVICE, transport.register)
        port = await server.start()
        yield Served(transport, port)
        await server.stop(grace_s=0)
        await _until(lambda: transport.stream_count == 0)
        await _until(lambda: len(asyncio.all_tasks()) <= tasks)

    async def test_streams_that_are_gone_leave_neither_task_nor_call(self, edge: Edge, connect: Connect) -> None:
        tasks, calls = len(asyncio.all_tasks()), _calls()
        await come_and_go(edge, connect, connections=20, streams=50)
        await _until(lambda: len(asyncio.all_tasks()) <= tasks)
        # grpc.aio keeps the first call that a server accepts, and the last.
        await _until(lambda: _calls() <= calls + 2)

    async def test_streams_whose_devices_are_not_let_in_have_places_by_address(self) -> None:
        transport = GrpcTransport(inbox_bytes_max=INBOX_BYTES_MAX, close_timeout_s=CLOSE_TIMEOUT_S, silent_per_address_max=1)
        server = GrpcServer(ServerOptions())
        server.register(SERVICE, transport.register)
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

            def connect() -> Any:
                return channel.stream_stream(f"/{SERVICE}/Connect")()

            stranger = connect()
            await stranger.write(b"anything")
            received: list[tuple[StreamId, list[bytes]]] = []
            async with asyncio.timeout(WAIT_S):
                while not received:
                    await asyncio.sleep(0.001)
                    received = transport.drain().received
            refused = connect()
            assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            info = error_info_of(await refused.trailing_metadata())
            assert info is not None
            assert info.reason == "TOO_MANY_STREAMS"
            transport.let_in(received[0][0])
            another = connect()
            await _until(lambda: transport.stream_count == 2)
            another.cancel()
            await _until(lambda: transport.stream_count == 1)
            again = connect()
            await _until(lambda: transport.stream_count == 2)
            again.cancel()
            stranger.cancel()
        await server.stop(0)

    async def test_an_unknown_status_is_refused_where_it_is_made(self, edge: Edge, peer: Peer) -> None:
        call = peer.connect()
        stream = await edge.opens()
        with pytest.raises(AssertionError, match="not a status code"):
            edge.transport.close(stream, StreamStatus("TEAPOT", "TEAPOT", "Short and stout."))
        assert not call.done()


def _calls() -> int:
    gc.collect()
    return sum(type(thing).__name__ == "RPCState" for thing in gc.get_objects())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)
