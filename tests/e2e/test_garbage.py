"""Streams and calls leave nothing behind that only a collection of all garbage would find.

Such a collection looks at all that a node holds: half a second, in which nobody is served, where twenty thousand sessions are
open. So the server has next to none (`process.run.tune_interpreter`), and what lived long must be free when nobody refers to
it.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.ports.lease_clock import wall_clock_ms
from chatgrpc.v1.chat_service_pb2 import ListChatsRequest
from chatgrpc.v1.chat_service_pb2_grpc import ChatServiceStub
from tests.support.cast import Cast
from tests.support.device import DisconnectedError
from tests.support.native_edge import needs_native_edge

ROUNDS = 10
OF_GRPC_ITSELF = {  # a circle at the beginning of each call, which is garbage before it is a moment old
    "_cython_3_2_8.cython_function_or_method",
    "builtins.tuple",
    "grpc._cython.cygrpc._HandlerCallDetails",
    "grpc._cython.cygrpc.__pyx_scope_struct_35__find_method_handler",
    "importlib._bootstrap._Metadatum",
}


class CollectedServer:
    """The process, as people see it."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process, port: int) -> None:
        self._folder = folder
        self._process = process
        self.addresses: Sequence[str] = (f"127.0.0.1:{port}",)

    def token(self, user_id: str, ttl_s: int = 3600, device_id: str | None = None) -> str:
        """See `Served`."""
        return DevIssuer.open(self._folder).mint(user_id, ttl_s, wall_clock_ms(), device_id)

    async def garbage(self) -> dict[str, int]:
        """Counts it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        counted: dict[str, int] = json.loads(await self._process.stdout.readline())
        return counted


@pytest.fixture(params=["grpcio", pytest.param("native", marks=needs_native_edge)])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CollectedServer]:
    monkeypatch.setenv("CHATGRPC_SERVER__EDGE", request.param)
    monkeypatch.setenv("CHATGRPC_SERVER__PORT", "0")
    monkeypatch.setenv("CHATGRPC_SERVER__METRICS_PORT", "0")
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.e2e.collected_server", str(tmp_path))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "it did not start"
    yield CollectedServer(tmp_path, process, json.loads(line))
    process.stdin.close()
    await process.wait()


async def play(server: CollectedServer, round_: str) -> None:
    """Streams and calls, each of which ends in another way."""
    cast = Cast(server, round_)
    async with grpc.aio.insecure_channel(server.addresses[0]) as nobodys:
        for number in range(ROUNDS):
            await streams(cast, number)
            await calls(cast, nobodys)
    await cast.close()


async def streams(cast: Cast, number: int) -> None:
    """Two that are used, of which one breaks, and one that is refused."""
    alice, bob = await cast.online("alice", f"a{number % 3}"), await cast.online("bob", f"b{number % 3}")
    sent = await alice.send(cast.user("bob"), "hello")
    await bob.until_held(sent.chat_id, sent.seq)
    await alice.close()
    assert bob._call is not None
    await bob._call.done_writing()
    await bob.until_ended()
    refused = cast.device("carol")
    refused.token = "nonsense"
    with pytest.raises(DisconnectedError):
        await refused.connect()


async def calls(cast: Cast, nobodys: grpc.aio.Channel) -> None:
    """One that is answered, ones that are refused, and ones that are given up."""
    alice = cast.caller("alice")
    await alice.chats.ListChats(ListChatsRequest())
    for refused in (
        alice.chats.ListChats(ListChatsRequest(page_token="nonsense")),
        ChatServiceStub(nobodys).ListChats(ListChatsRequest()),
        unary(nobodys, "ChatService/NoSuch", b""),
        unary(nobodys, "NodeService/ListNodes", b"\xff"),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await refused
    waiting: Any = nobodys.stream_unary("/chatgrpc.v1.ChatService/ListChats", None, None)()
    await waiting.wait_for_connection()
    watch = health_pb2_grpc.HealthStub(nobodys).Watch(health_pb2.HealthCheckRequest())
    assert await watch.read()
    for given_up in (waiting, watch):
        given_up.cancel()


def unary(channel: grpc.aio.Channel, method: str, request: bytes) -> Any:
    call: Any = channel.unary_unary(f"/chatgrpc.v1.{method}")
    return call(request)


async def test_streams_and_calls_leave_no_circles(server: CollectedServer) -> None:
    await play(server, "first")
    await server.garbage()  # of what is made once
    await play(server, "second")
    await asyncio.sleep(1)
    left = await server.garbage()
    assert set(left) <= OF_GRPC_ITSELF, left
