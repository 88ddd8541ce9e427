"""The native transport: behind the same contract, and in front of the server that answers all other calls."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatgrpc.edge.certificate_files import CertificateFiles
from chatgrpc.edge.errors import error_info_of, trailers_of
from chatgrpc.edge.interceptors import PASSED_ON_FOR, peer_of
from chatgrpc.edge.native_transport import NativeTransport
from chatgrpc.edge.server import GrpcServer, ServerOptions
from tests.contract.transport_ends import (
    CLOSE_TIMEOUT_S,
    INBOX_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    REFUSED,
    WAIT_S,
    Edge,
    Peer,
    Served,
    code_of,
    read_to_end,
)
from tests.contract.transport_suite import TransportSuite
from tests.support.certificate import write_certificate
from tests.support.native_edge import needs_native_edge, serve

pytestmark = needs_native_edge

_SERVICE = "test.Service"


def _transport(**options: Any) -> NativeTransport:
    return NativeTransport(
        inbox_bytes_max=INBOX_BYTES_MAX, message_bytes_max=MESSAGE_BYTES_MAX, close_timeout_s=CLOSE_TIMEOUT_S, **options
    )


class TestNativeTransport(TransportSuite):
    @pytest.fixture
    async def served(self) -> AsyncIterator[Served]:
        transport = _transport()
        yield Served(transport, serve(transport))
        await transport.stop()

    async def test_streams_whose_devices_are_not_let_in_have_places_by_address(self) -> None:
        transport = _transport(silent_per_address_max=1)
        target = f"127.0.0.1:{serve(transport)}"
        edge = Edge(transport)
        async with grpc.aio.insecure_channel(target) as channel:
            peer = Peer(channel)
            stranger = peer.connect()
            stream = await edge.opens()
            refused = peer.connect()
            assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            edge.transport.let_in(stream)
            another = peer.connect()
            assert await edge.opens() != stream
            another.cancel()
            await edge.until(lambda: len(edge.closed) == 1)
            peer.connect()
            await edge.opens()
            assert not stranger.done()
        await transport.stop()

    @pytest.mark.parametrize(
        ("with_tls", "said"),
        [(False, b""), (False, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (True, b""), (True, b"\x16\x03\x01")],
        ids=["nothing", "no settings", "nothing of TLS", "not all of a ClientHello"],
    )
    async def test_of_an_address_few_connections_stay_that_have_not_shaken_hands(
        self, with_tls: bool, said: bytes, tmp_path: Path
    ) -> None:
        transport = _transport(handshake_timeout_s=10 * WAIT_S, idle_per_address_max=2, idle_grace_s=0.2)
        if with_tls:
            transport.show(CertificateFiles(*write_certificate(tmp_path)))
        port = serve(transport)
        peers = []
        for _ in range(5):
            peers.append(await asyncio.open_connection("127.0.0.1", port))
            peers[-1][1].write(said)
            await asyncio.sleep(0.01)  # they are accepted in this order
        reading = [asyncio.ensure_future(_read_until_closed(reader)) for reader, _ in peers]
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*reading[:3])
        await asyncio.sleep(0.5)
        assert [read.done() for read in reading] == [True, True, True, False, False]
        await transport.stop()
        await asyncio.gather(*reading)
        for _, writer in peers:
            writer.close()

    async def test_what_was_written_arrives_though_the_server_stops_at_once(self) -> None:
        transport = _transport()
        target = f"127.0.0.1:{serve(transport)}"
        edge = Edge(transport)
        async with grpc.aio.insecure_channel(target) as channel:
            calls = [Peer(channel).connect() for _ in range(50)]
            await edge.until(lambda: len(edge.opened) == len(calls))
            transport.write((stream, b"one") for stream in edge.opened)
            for stream in edge.opened:
                transport.close(stream, REFUSED, b"last")
            await transport.stop()
            for call in calls:
                assert await read_to_end(call) == [b"one", b"last"]
                assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED

    async def test_without_a_server_behind_it_other_calls_are_unimplemented(self, served: Served) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await _method(channel, "Echo")(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def _read_until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass


async def test_a_thread_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    transport = _transport()
    woken = asyncio.Event()
    transport.on_input(woken.set)
    no_socket = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    asyncio.get_running_loop().add_reader(transport._streams.wake_fd(), woken.set)
    transport._streams.serve(no_socket, None)
    async with asyncio.timeout(WAIT_S):
        await woken.wait()
    with pytest.raises(RuntimeError, match="has ended by itself"):
        transport.drain()
    asyncio.get_running_loop().remove_reader(transport._streams.wake_fd())


class _Behind:
    """Answers calls behind the edge."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def peer(self, _: bytes, context: Any) -> bytes:
        return peer_of(context).encode()

    async def echo(self, request: bytes, _: Any) -> bytes:
        return request

    async def fail(self, _: bytes, context: Any) -> bytes:
        code, message = grpc.StatusCode.FAILED_PRECONDITION, "Nöt now."
        await context.abort(code, message, trailers_of(code, "NOT_NOW", message))
        return b""

    async def hang(self, _: bytes, __: Any) -> bytes:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def count(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    def add_to(self, server: grpc.aio.Server) -> None:
        unary: Any = grpc.unary_unary_rpc_method_handler
        many: Any = grpc.unary_stream_rpc_method_handler
        methods = {
            "Peer": unary(self.peer),
            "Echo": unary(self.echo),
            "Fail": unary(self.fail),
            "Hang": unary(self.hang),
            "Count": many(self.count),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))


@pytest.fixture
async def behind() -> _Behind:
    """What answers the calls."""
    return _Behind()


@pytest.fixture
async def channel(behind: _Behind) -> AsyncIterator[grpc.aio.Channel]:
    """To a server with the native edge in front."""
    server = GrpcServer(ServerOptions(message_bytes_max=MESSAGE_BYTES_MAX), front=_transport())
    server.register(_SERVICE, behind.add_to)
    port = await server.start()
    server.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(grace_s=0)


def _method(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.unary_unary(f"/{_SERVICE}/{name}")


async def test_other_calls_are_answered_by_the_server_behind(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(WAIT_S):
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for size in (0, 1, 100_000, MESSAGE_BYTES_MAX):
            assert await _method(channel, "Echo")(b"x" * size) == b"x" * size
        echoes = await asyncio.gather(*(_method(channel, "Echo")(str(i).encode()) for i in range(300)))
        assert echoes == [str(i).encode() for i in range(300)]


async def test_an_answer_of_many_messages_comes_whole(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_stream(f"/{_SERVICE}/Count")
    async with asyncio.timeout(WAIT_S):
        assert [int(message) async for message in call(b"5000")] == list(range(5_000))


async def test_a_failure_comes_with_its_message_and_its_details(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _method(channel, "Fail")(b"", timeout=WAIT_S)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "Nöt now.")
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert info.reason == "NOT_NOW"


async def test_a_call_that_is_given_up_is_given_up_behind_too(channel: grpc.aio.Channel, behind: _Behind) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _method(channel, "Hang")(b"", timeout=0.5)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(WAIT_S):
        await behind.cancelled.wait()


async def test_whose_a_call_is_the_edge_says_and_nobody_else(channel: grpc.aio.Channel) -> None:
    claimed = ((PASSED_ON_FOR, "ipv4:192.0.2.66:6"), (PASSED_ON_FOR, "ipv4:192.0.2.67:7"))
    peer = await _method(channel, "Peer")(b"", metadata=claimed, timeout=WAIT_S)
    assert peer.startswith(b"ipv4:127.0.0.1:")
