"""What a user takes from a device is taken from whoever holds the device's token, under any name and by any call."""

import asyncio
from collections.abc import Awaitable

import grpc
import pytest

from chatgrpc.edge.errors import error_info_of
from chatgrpc.edge.revocations import KNOWN_FOR_S
from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.chat_service_pb2 import ListChatsRequest
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest, RevokeDeviceRequest
from chatgrpc.v1.message_service_pb2 import SendMessageRequest
from tests.support.callers import Caller, text_content
from tests.support.cast import Cast
from tests.support.device import Device, DisconnectedError

PATIENCE_S = 30.0


async def reason_of(call: Awaitable[object]) -> str:
    """With which reason a unary call is refused; empty if it is not."""
    try:
        await call
    except grpc.aio.AioRpcError as refused:
        info = error_info_of(refused.trailing_metadata())
        return "" if info is None else info.reason
    return ""


def code_of(ended: DisconnectedError) -> str:
    """The name of the disconnect code, without its prefix."""
    assert ended.disconnect is not None, ended.status
    return session_pb2.DisconnectCode.Name(ended.disconnect.code).removeprefix("DISCONNECT_CODE_")


async def refused_from_now_on(caller: Caller) -> None:
    """Waits until the token does not serve any more: every node may go by what it knew, for as long as is stated."""
    calls = 0
    async with asyncio.timeout(KNOWN_FOR_S + PATIENCE_S):
        while calls < 6:
            refused = await reason_of(caller.chats.ListChats(ListChatsRequest())) == "TOKEN_REVOKED"
            calls = calls + 1 if refused else 0
            await asyncio.sleep(0.1)


async def door(device: Device) -> tuple[str, str]:
    """With which code and reason a device is not let in."""
    with pytest.raises(DisconnectedError) as ended:
        await device.connect()
    assert ended.value.disconnect is not None
    return code_of(ended.value), ended.value.disconnect.reason


async def test_a_thief_gets_no_further_with_the_token_of_a_revoked_device(cast: Cast) -> None:
    stolen = cast.token("alice")
    phone, thief, late = (cast.device("alice", device_id) for device_id in ("phone", "thief", "late"))
    for device in (phone, thief, late):
        device.token = stolen
    await phone.connect()
    await thief.connect()
    assert (await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))).HasField("device")

    assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"
    ended = await thief.until_ended()
    assert ended.disconnect is not None
    assert (code_of(ended), ended.disconnect.reason) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
    assert ended.disconnect.reconnect_after_ms > 0
    for _ in range(3):
        assert await door(late) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
        assert await door(thief) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
    devices = (await cast.caller("alice").devices.ListDevices(ListDevicesRequest())).devices
    assert "late" not in {device.device_id for device in devices}, "who is refused takes no device's place"

    async with Caller(cast.server.addresses, cast.user("alice"), stolen) as robber:
        await refused_from_now_on(robber)
        send = SendMessageRequest(user_id=cast.user("bob"), content=text_content("give me money"))
        assert await reason_of(robber.messages.SendMessage(send)) == "TOKEN_REVOKED"


async def test_a_stream_is_not_prolonged_by_a_token_that_is_void(cast: Cast) -> None:
    stolen = cast.token("alice")
    await (await cast.online("alice", "phone")).close()
    laptop = await cast.online("alice", "laptop")
    await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    answer = await laptop.refresh(stolen)
    assert answer.error.code == chat_pb2.ERROR_CODE_TOKEN_INVALID
    assert "revoked" in answer.error.message
    await laptop.send(laptop.user_id, "goes on with the token it has")


async def test_who_fetches_a_new_token_goes_on(cast: Cast) -> None:
    laptop = cast.device("alice", "laptop")
    laptop.token = cast.token("alice")
    await laptop.connect()
    await (await cast.online("alice", "phone")).close()
    await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    assert code_of(await laptop.until_ended()) == "UNAUTHENTICATED"
    laptop.token = cast.token("alice")
    await laptop.connect()
    await laptop.send(laptop.user_id, "here again")
    async with Caller(cast.server.addresses, cast.user("alice"), cast.token("alice")) as caller:
        assert await reason_of(caller.chats.ListChats(ListChatsRequest())) == ""


async def test_a_token_serves_the_device_alone_that_it_names(cast: Cast) -> None:
    stolen = cast.token("alice", device_id="phone")
    phone, thief = cast.device("alice", "phone"), cast.device("alice", "thief")
    phone.token = thief.token = stolen
    assert await door(thief) == ("UNAUTHENTICATED", "TOKEN_DEVICE")
    await phone.connect()
    laptop = await cast.online("alice", "laptop")
    assert (await laptop.refresh(stolen)).error.code == chat_pb2.ERROR_CODE_TOKEN_INVALID
    async with Caller(cast.server.addresses, cast.user("alice"), stolen) as robber:
        assert await reason_of(robber.chats.ListChats(ListChatsRequest())) == ""
        await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
        assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"
        assert await door(phone) == ("DEVICE_REVOKED", "")
        await refused_from_now_on(robber)
    await laptop.send(laptop.user_id, "has a token of its own, and goes on")


async def test_a_device_that_was_never_registered_is_revoked_too(cast: Cast) -> None:
    """Whoever only makes unary calls, or gave way, is in no list, and holds a token."""
    stolen = cast.token("alice", device_id="job")
    job = cast.device("alice", "job")
    job.token = stolen
    async with Caller(cast.server.addresses, cast.user("alice"), stolen) as robber:
        assert await reason_of(robber.chats.ListChats(ListChatsRequest())) == ""
        answer = await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="job"))
        assert answer.error.code == chat_pb2.ERROR_CODE_NOT_FOUND
        assert await door(job) == ("DEVICE_REVOKED", "")
        await refused_from_now_on(robber)


async def test_what_was_revoked_of_one_user_is_good_of_another(cast: Cast) -> None:
    bob = cast.device("bob", "phone")
    bob.token = cast.token("bob")
    await bob.connect()
    await (await cast.online("alice", "phone")).close()
    await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
    await bob.send(bob.user_id, "not concerned")
    await bob.connect()
