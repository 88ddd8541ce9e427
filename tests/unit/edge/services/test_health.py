"""Health: what it says, and that no caller waits for another."""

import asyncio
import struct
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatgrpc.edge.errors import error_info_of
from chatgrpc.edge.interceptors import UnaryInterceptor
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.edge.services.health import SERVICE
from chatgrpc.ports.tokens import Claims
from tests.contract.http2_peer import END_STREAM, PREFACE, SETTINGS, Http2Peer, frame, grpc_message
from tests.robustness.bad_input.support_http2 import data, headers

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class NoTokens:
    """Health asks for none."""

    async def verify(self, token: str, now_ms: int) -> Claims:
        raise AssertionError("a token was looked at")


@pytest.fixture
async def server() -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer(ServerOptions(), [UnaryInterceptor(NoTokens(), lambda *_: None)])
    port = await server.start()
    server.set_serving(True)
    yield server, port
    await server.stop(0)


@pytest.fixture
async def health(server: tuple[GrpcServer, int]) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server[1]}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_a_watcher_that_reads_nothing_keeps_nobody_waiting(
    server: tuple[GrpcServer, int], health: health_pb2_grpc.HealthStub
) -> None:
    """Neither who watches and asks, nor the server, which says that it stops."""
    silent = await Http2Peer.connect(server[1])
    await silent.send(PREFACE, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # no window: nothing may be sent to it
    await silent.send(headers(1, path=f"/{SERVICE}/Watch"), data(1, grpc_message(b""), END_STREAM))
    while (await silent.frame())[0] != 1:  # HEADERS: the answer has begun, and waits
        pass
    async with asyncio.timeout(10):
        watch = health.Watch(asked())
        assert (await watch.read()).status == SERVING
        server[0].set_serving(False)
        assert (await watch.read()).status == NOT_SERVING
        assert (await health.Check(asked())).status == NOT_SERVING
    await silent.close()


async def test_a_service_that_there_is_not(health: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await health.Check(asked("chatgrpc.v1.Nothing"))
    info = error_info_of(failed.value.trailing_metadata())
    assert info is not None
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN")
    watch = health.Watch(asked("chatgrpc.v1.Nothing"))
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_all_services_are_listed(health: health_pb2_grpc.HealthStub) -> None:
    listed = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {service: reply.status for service, reply in listed.items()} == {
        "": SERVING,
        SERVICE: SERVING,
        "grpc.reflection.v1alpha.ServerReflection": SERVING,
    }
