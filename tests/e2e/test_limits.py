"""The settings of `limits`, each set so low that two callers meet it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatgrpc.edge.errors import error_info_of
from chatgrpc.v1 import session_pb2
from tests.support.device import Device, DisconnectedError
from tests.support.server import ServerProcess, channel, running_server

CONNECT = "/chatgrpc.v1.SessionService/Connect"
GET_USER = "/chatgrpc.v1.UserService/GetUser"


async def reason_of(call: Any) -> str:
    """Why a call was refused."""
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = error_info_of(await call.trailing_metadata())
    assert info is not None
    return str(info.reason)


async def refused_when_one_is_open(server: ServerProcess, open_call: Any) -> str:
    """Opens calls, which stay open unless they are refused, until one is."""
    async with channel(server.address) as opened:
        calls = [open_call(opened) for _ in range(2)]
        ended = [asyncio.ensure_future(call.code()) for call in calls]
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        [refused] = [call for call, code in zip(calls, ended, strict=True) if code in done]
        reason = await reason_of(refused)
        for call in calls:
            call.cancel()
        await asyncio.gather(*ended)
    return reason


async def test_each_limit_is_the_operators(tmp_path: Path) -> None:
    limits = {
        "CALLS_PER_USER": "1",
        "HEALTH_CALLS_PER_ADDRESS": "1",
        "SILENT_STREAMS_PER_ADDRESS": "1",
        "CONNECTION_IDLE_S": "0.5",
    }
    environment = {f"CHATGRPC_LIMITS__{name}": value for name, value in limits.items()}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:
        authorization = (("authorization", f"Bearer {server.token('alice')}"),)

        def stream(on: grpc.aio.Channel) -> Any:
            return on.stream_stream(CONNECT)()

        def watch(on: grpc.aio.Channel) -> Any:
            return health_pb2_grpc.HealthStub(on).Watch(health_pb2.HealthCheckRequest())

        def call(on: grpc.aio.Channel) -> Any:
            return on.stream_unary(GET_USER)(metadata=authorization)  # whose request does not come

        assert await refused_when_one_is_open(server, stream) == "TOO_MANY_STREAMS"
        assert await refused_when_one_is_open(server, watch) == "TOO_MANY_CALLS"
        assert await refused_when_one_is_open(server, call) == "TOO_MANY_CALLS"

        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        with pytest.raises(asyncio.IncompleteReadError):  # the end of the connection, which nobody else would bring about
            await reader.readexactly(1_000_000)
        writer.close()


async def test_a_device_that_is_let_in_takes_no_place_of_its_address(tmp_path: Path) -> None:
    environment = {"CHATGRPC_LIMITS__SILENT_STREAMS_PER_ADDRESS": "1"}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:
        phone = Device(server.address, server.token("alice"), "phone")
        laptop = Device(server.address, server.token("alice"), "laptop")
        async with phone, laptop:
            await phone.send("alice", "to myself")
            await laptop.send("alice", "likewise")


async def test_a_full_node_turns_devices_away_and_keeps_those_it_has(tmp_path: Path) -> None:
    environment = {"CHATGRPC_LIMITS__STREAMS_MAX": "2"}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:
        token = server.token("alice")
        phone, laptop, late = (Device(server.address, token, name) for name in ("phone", "laptop", "late"))
        await phone.connect()
        await laptop.connect()
        for _ in range(3):
            with pytest.raises(DisconnectedError) as ended:
                await late.connect()
            assert ended.value.disconnect is not None
            assert ended.value.disconnect.code == session_pb2.DISCONNECT_CODE_OVERLOADED
            assert ended.value.disconnect.reason == "NODE_FULL"
        async with channel(server.address) as opened:
            call: Any = opened.stream_stream(CONNECT)()
            await call.read()  # the Disconnect; the status comes after it
            assert await reason_of(call) == "NODE_FULL"
        await phone.send("alice", "I am still here")
        await laptop.close()
        while not late.is_open:  # the server hears of the laptop's end a moment later
            with contextlib.suppress(DisconnectedError):
                await late.connect()
        await late.send("alice", "and I am in")
        await phone.close()
        await late.close()


async def test_calls_whose_token_is_not_checked_are_counted_by_address(tmp_path: Path) -> None:
    environment = {"CHATGRPC_LIMITS__UNCHECKED_CALLS_PER_ADDRESS": "1"}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:

        def list_nodes(on: grpc.aio.Channel) -> Any:
            return on.stream_unary("/chatgrpc.v1.NodeService/ListNodes")()

        assert await refused_when_one_is_open(server, list_nodes) == "TOO_MANY_CALLS"


async def test_idle_connections_are_counted_by_address(tmp_path: Path) -> None:
    """Those that never said a word, too."""
    environment = {"CHATGRPC_LIMITS__IDLE_CONNECTIONS_PER_ADDRESS": "3"}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        ended = {asyncio.ensure_future(_until_reset(reader)) for reader, _ in connections}
        first, left = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        second, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED) if len(first) == 1 else ((), left)
        assert len(first) + len(second) == 2
        for waiting in left:
            waiting.cancel()
        for _, writer in connections:
            writer.transport.abort()


async def _until_reset(reader: asyncio.StreamReader) -> None:
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1_000_000)


async def test_devices_are_told_what_the_operator_has_set(tmp_path: Path) -> None:
    environment = {"CHATGRPC_SESSION__ACK_DELAY_MS": "250", "CHATGRPC_SESSION__HEARTBEAT_INTERVAL_S": "7"}
    async with asyncio.timeout(60), running_server(tmp_path / "data", environment) as server:
        device = Device(server.address, server.token("alice"), "phone")
        welcome = await device.connect()
        assert (welcome.ack_delay_ms, welcome.heartbeat_interval_ms) == (250, 7_000)
        await device.close()
