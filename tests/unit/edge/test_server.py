"""The server's shell: port, TLS, health, reflection, limits, stop."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from structlog.testing import capture_logs

from chatgrpc.edge.native_transport import NativeTransport
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.start_error import StartError
from tests.support.certificate import write_certificate
from tests.support.link import link_to
from tests.support.native_edge import needs_native_edge
from tests.support.proxy import Way

SERVICE = "grpc.testing.Echo"
SERVING = health_pb2.HealthCheckResponse.SERVING
WAITING = asyncio.Event()
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def add_echo(server: grpc.aio.Server) -> None:
    """Adds a service that answers what it is asked, or, asked to wait, never."""

    async def echo(request: bytes, _: object) -> bytes:
        if request == b"wait":
            WAITING.set()
            await asyncio.Event().wait()
        return request

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([service_of({"Echo": handler})])


def service_of(methods: dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def echo(channel: grpc.aio.Channel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(f"/{SERVICE}/Echo")


async def read_all(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
    """Reads until the call ends, however it does."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        while await call.read() is not grpc.aio.EOF:
            pass


Start: TypeAlias = Callable[[ServerOptions], Awaitable[tuple[GrpcServer, int]]]


@pytest.fixture(
    params=[
        "grpcio",
        pytest.param("native", marks=needs_native_edge),
    ]
)
def start(request: pytest.FixtureRequest) -> Start:
    """Starts a server: one that has the port itself, and one behind the native edge."""

    async def started(options: ServerOptions) -> tuple[GrpcServer, int]:
        front = None
        if request.param == "native":
            front = NativeTransport(inbox_bytes_max=1000, message_bytes_max=options.message_bytes_max, close_timeout_s=1)
        server = GrpcServer(options, front=front)
        server.register(SERVICE, add_echo)
        return server, await server.start()

    return started


@pytest.fixture
async def started(start: Start) -> AsyncIterator[tuple[GrpcServer, int]]:
    server, port = await start(ServerOptions(message_bytes_max=1000))
    yield server, port
    await server.stop(0)


@pytest.fixture
async def channel(started: tuple[GrpcServer, int]) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{started[1]}") as channel:
        yield channel


@pytest.fixture
def tls_files(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path)


async def test_port_0_takes_a_free_port_and_says_which(channel: grpc.aio.Channel) -> None:
    assert await echo(channel)(b"hello") == b"hello"


async def test_health_is_not_serving_until_it_is_told_so(started: tuple[GrpcServer, int], channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)

    async def health() -> list[int]:
        return [
            (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
            for service in ("", SERVICE, "grpc.health.v1.Health")
        ]

    assert await health() == [NOT_SERVING] * 3
    started[0].set_serving(True)
    assert await health() == [SERVING] * 3
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    started[0].set_serving(False)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_reflection_lists_what_is_registered(started: tuple[GrpcServer, int]) -> None:
    def services() -> set[str]:
        with grpc.insecure_channel(f"127.0.0.1:{started[1]}") as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert await asyncio.to_thread(services) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_a_message_beyond_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    assert await echo(channel)(b"x" * 1000) == b"x" * 1000
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await echo(channel)(b"x" * 1001)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_over_tls(start: Start, tls_files: tuple[Path, Path]) -> None:
    cert_file, key_file = tls_files
    server, port = await start(ServerOptions(tls_cert_file=cert_file, tls_key_file=key_file))
    credentials = grpc.ssl_channel_credentials(cert_file.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        assert await echo(channel)(b"hello") == b"hello"
    await server.stop(0)


async def test_tls_files_that_cannot_be_used_are_named(start: Start, tls_files: tuple[Path, Path], tmp_path: Path) -> None:
    cert_file, key_file = tls_files
    for broken in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(StartError, match=str(broken)):
            await start(ServerOptions(tls_cert_file=broken, tls_key_file=key_file))
    with pytest.raises(StartError, match=f"Are {key_file} and {cert_file} a TLS cert"):
        await start(ServerOptions(tls_cert_file=key_file, tls_key_file=cert_file))
    other = tmp_path / "other"
    other.mkdir()
    _, other_key_file = write_certificate(other)
    with pytest.raises(StartError, match="The key is another certificate's"):
        await start(ServerOptions(tls_cert_file=cert_file, tls_key_file=other_key_file))


async def test_a_renewed_certificate_is_shown_to_whoever_connects_and_ends_no_call(
    start: Start, tls_files: tuple[Path, Path], tmp_path: Path
) -> None:
    cert_file, key_file = tls_files
    server, port = await start(ServerOptions(tls_cert_file=cert_file, tls_key_file=key_file))
    first = cert_file.read_text()
    (tmp_path / "next").mkdir()
    next_cert_file, next_key_file = write_certificate(tmp_path / "next")
    second = next_cert_file.read_text()

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    async with grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(first.encode())) as channel:
        assert await echo(channel)(b"hello") == b"hello"
        assert await shown() == first
        with capture_logs() as logs:

            async def shown_once_said(events: int) -> list[str]:
                # grpcio looks at the files at a handshake, the native edge from time to time.
                async with asyncio.timeout(30):
                    while len(logs) < events:
                        await shown()
                assert [entry["event"] for entry in logs] == said[:events]
                return [await shown(), await shown()]

            said = ["certificate_not_renewed", "certificate_renewed", "certificate_not_renewed"]
            next_cert_file.rename(cert_file)  # the key is the old one's still: the old pair goes on being shown
            assert await shown_once_said(1) == [first, first]
            next_key_file.rename(key_file)
            assert await shown_once_said(2) == [second, second]
            cert_file.unlink()
            assert await shown_once_said(3) == [second, second]
        assert len(logs) == len(said)
        assert await echo(channel)(b"still") == b"still"
    await server.stop(0)


async def test_a_port_in_use_is_told_clearly(start: Start, started: tuple[GrpcServer, int]) -> None:
    with pytest.raises(StartError, match=f"127.0.0.1 port {started[1]} is in use"):
        await start(ServerOptions(port=started[1]))
    with pytest.raises(StartError, match=r"Cannot listen on 192\.0\.2\.1"):
        await start(ServerOptions(host="192.0.2.1", port=1))


async def test_several_servers_share_a_port_if_they_want_to(start: Start) -> None:
    first, port = await start(ServerOptions(reuse_port=True))
    second, same_port = await start(ServerOptions(port=port, reuse_port=True))
    assert same_port == port
    await first.stop(0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await echo(channel)(b"second", wait_for_ready=True, timeout=30) == b"second"
    await second.stop(0)


async def test_stopping_lets_calls_end_then_cancels_what_is_left(started: tuple[GrpcServer, int]) -> None:
    server, port = started
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stuck = echo(channel)(b"wait")
        async with asyncio.timeout(30):
            await WAITING.wait()
        await server.stop(0.2)
        assert await stuck.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_peer_that_takes_nothing_does_not_hold_up_the_stop() -> None:
    held_up = asyncio.Event()

    async def pour(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        while True:
            writing = asyncio.ensure_future(context.write(bytes(100_000)))
            await asyncio.wait({writing}, timeout=1)
            if not writing.done():
                held_up.set()
            await writing

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(pour)
    server = GrpcServer(ServerOptions())
    server.register(SERVICE, lambda on: on.add_generic_rpc_handlers([service_of({"Pour": handler})]))
    port = await server.start()
    # So that it is TCP that holds the server up, and not the flow control of HTTP/2.
    ahead = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024 * 1024))
    async with link_to(port) as link, grpc.aio.insecure_channel(link.address, options=ahead) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/Pour")()
        await call.read()
        reading = asyncio.create_task(read_all(call))
        link.silence(Way.TO_CLIENT)
        async with asyncio.timeout(60):
            await held_up.wait()
        async with asyncio.timeout(10):  # half of what the kernel gives the peer
            await server.stop(0.1)
        call.cancel()
        await reading
    await server.wait()


async def test_a_stopped_server_frees_its_port(start: Start, started: tuple[GrpcServer, int]) -> None:
    await started[0].stop(0)
    again, port = await start(ServerOptions(port=started[1]))
    assert port == started[1]
    await again.stop(0)
    await again.wait()
