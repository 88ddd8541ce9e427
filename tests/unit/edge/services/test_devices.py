"""DeviceService."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.adapters.sqlite.accounts import SqliteDeviceStore
from chatgrpc.core.limits import Limits
from chatgrpc.edge.services import devices
from chatgrpc.edge.services.devices import DeviceService
from chatgrpc.ports import accounts
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import device_service_pb2, session_pb2
from chatgrpc.v1.device_service_pb2 import (
    ListDevicesRequest,
    RenameDeviceRequest,
    RevokeDeviceRequest,
    RevokeDeviceResponse,
)
from tests.support.callers import Caller, code_of
from tests.support.device import Device, DisconnectedError

DeviceOf = Callable[[str, str], Device]


async def devices_of(caller: Caller) -> dict[str, device_service_pb2.Device]:
    """In the order of the list."""
    return {device.device_id: device for device in (await caller.devices.ListDevices(ListDevicesRequest())).devices}


async def test_list_devices(alice: Caller, carol: Caller, device_of: DeviceOf) -> None:
    began_ms = time.time_ns() // 1_000_000
    async with device_of("bob", "phone"), device_of("alice", "phone") as phone, device_of("alice", "laptop"):
        listed = await devices_of(alice)
        assert list(listed) == ["phone", "laptop"]
        assert all(device.online for device in listed.values())
        assert all(device.created_at_ms == device.connected_at_ms >= began_ms for device in listed.values())
        await phone.connect()  # again: the earlier stream ends
        assert (await devices_of(alice))["phone"].connected_at_ms > listed["phone"].connected_at_ms
        assert (await devices_of(alice))["phone"].created_at_ms == listed["phone"].created_at_ms
    assert await devices_of(carol) == {}


async def test_a_device_without_a_stream_is_not_online(alice: Caller, device_of: DeviceOf) -> None:
    async with device_of("alice", "phone"), device_of("bob", "laptop"):
        async with device_of("alice", "laptop"):
            pass
        while (await devices_of(alice))["laptop"].online:  # the server learns of the end a moment later
            await asyncio.sleep(0.01)
        assert (await devices_of(alice))["phone"].online


async def test_rename_device(alice: Caller, bob: Caller, device_of: DeviceOf) -> None:
    async with device_of("alice", "phone"), device_of("bob", "phone"):
        expected = (await devices_of(alice))["phone"]
        expected.name = "é" * 32
        reply = await alice.devices.RenameDevice(RenameDeviceRequest(device_id="phone", name="é" * 32))
        assert reply.device == expected
        assert await devices_of(alice) == {"phone": expected}
        assert (await devices_of(bob))["phone"].name == ""


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (RenameDeviceRequest(device_id="", name="x"), "INVALID_ARGUMENT"),
        (RenameDeviceRequest(device_id="a b", name="x"), "INVALID_ARGUMENT"),
        (RenameDeviceRequest(device_id="phone"), "INVALID_ARGUMENT"),
        (RenameDeviceRequest(device_id="phone", name="é" * 32 + "x"), "TOO_LARGE"),
        (RenameDeviceRequest(device_id="laptop", name="x"), "NOT_FOUND"),
    ],
    ids=["no id", "no device id", "no name", "long name", "someone else's device"],
)
async def test_rename_device_refuses(alice: Caller, device_of: DeviceOf, request_: RenameDeviceRequest, code: str) -> None:
    async with device_of("alice", "phone"), device_of("bob", "laptop"):
        assert code_of(await alice.devices.RenameDevice(request_)) == code
        assert (await devices_of(alice))["phone"].name == ""


async def test_revoke_device_ends_its_stream(alice: Caller, bob: Caller, device_of: DeviceOf) -> None:
    async with device_of("alice", "phone") as phone, device_of("alice", "laptop"), device_of("bob", "phone"):
        before = await devices_of(alice)
        reply = await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
        assert reply.device == before["phone"]
        ended = await phone.until_ended()
        assert ended.disconnect is not None
        assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED
        assert await devices_of(alice) == {"laptop": before["laptop"]}
        assert (await devices_of(bob))["phone"].online
        rename = RenameDeviceRequest(device_id="phone", name="again")
        assert code_of(await alice.devices.RenameDevice(rename)) == "NOT_FOUND"
        assert code_of(await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))) == "NOT_FOUND"


async def test_a_device_revoked_while_it_connects_does_not_stay(
    alice: Caller, device_of: DeviceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is registered already, and a revocation does not find its stream yet."""
    stored, revoked = asyncio.Event(), asyncio.Event()
    connect = SqliteDeviceStore.connect

    async def slow_connect(*arguments: Any, **options: Any) -> accounts.Connected:
        connected = await connect(*arguments, **options)
        stored.set()
        await revoked.wait()
        return connected

    monkeypatch.setattr(SqliteDeviceStore, "connect", slow_connect)
    phone = device_of("alice", "phone")
    connecting = asyncio.ensure_future(phone.connect())
    await stored.wait()
    assert (await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))).HasField("device")
    revoked.set()
    with contextlib.suppress(DisconnectedError):
        await connecting
    ended = await phone.until_ended()
    assert ended.disconnect is not None
    assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED
    await phone.close()


async def test_revoke_device_refuses(alice: Caller, bob: Caller, device_of: DeviceOf) -> None:
    async with device_of("bob", "phone"):
        assert code_of(await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="a b"))) == "INVALID_ARGUMENT"
        assert code_of(await alice.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))) == "NOT_FOUND"
        assert (await devices_of(bob))["phone"].online


async def test_g7_made_up_ids_are_revoked_so_often_and_devices_always(
    address: str, alice: Caller, token_of: Callable[[str, str], str], device_of: DeviceOf
) -> None:
    async def revoke(device_id: str, caller: Caller = alice) -> RevokeDeviceResponse:
        return await caller.devices.RevokeDevice(RevokeDeviceRequest(device_id=device_id))

    burst = Limits().unknown_revocations_rate.burst
    for number in range(burst):
        assert code_of(await revoke(f"made-up-{number}")) == "NOT_FOUND"
    refused = await revoke("one-more")
    assert code_of(refused) == "RATE_LIMITED"
    assert refused.error.retry_after_ms > 0
    assert code_of(await revoke("made-up-0")) == "NOT_FOUND", "it is kept out already, and costs nobody a place"
    async with Caller(address, "alice", token_of("alice", "laptop")) as laptop:
        assert code_of(await revoke("stolen", laptop)) == "NOT_FOUND", "who holds one token cannot use up what others may"
    async with device_of("alice", "one-more") as phone:
        assert (await revoke("one-more")).device.device_id == "one-more"
        ended = await phone.until_ended()
        assert ended.disconnect is not None
        assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_DEVICE_REVOKED


class _SlowBackend:
    """A node whose store takes its time to revoke."""

    def __init__(self) -> None:
        self.devices = self
        self.limits = Limits()
        self.store = MemoryStore()
        self.began = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.disconnected = asyncio.Event()

    def now_ms(self) -> int:
        return 1_000

    def claims_of(self, user_id: str) -> list[Claims]:
        return []

    async def list(self, user_id: str) -> list[accounts.Device]:
        return await self.store.devices.list(user_id)

    async def revoke(self, user_id: str, device_id: str, now_ms: int) -> accounts.Device | None:
        self.began.set()
        await self.may_go_on.wait()
        return await self.store.devices.revoke(user_id, device_id, now_ms)

    async def online_devices(self, user_id: str) -> frozenset[str]:
        return frozenset()

    async def disconnect_revoked(self, user_id: str, device_id: str) -> None:
        assert (user_id, device_id) == ("alice", "phone")
        self.disconnected.set()


async def test_a_caller_that_hangs_up_does_not_leave_a_revoked_devices_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "current_claims", lambda: Claims("alice", 2**53))
    backend = _SlowBackend()
    await backend.store.devices.connect("alice", "phone", "", now_ms=1, devices_max=1)
    service = DeviceService(backend)  # type: ignore[arg-type]  # the part of a Backend that is used
    call = asyncio.ensure_future(service.RevokeDevice(RevokeDeviceRequest(device_id="phone"), None))
    await backend.began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    backend.may_go_on.set()
    async with asyncio.timeout(60):
        await backend.disconnected.wait()
    assert await backend.store.devices.list("alice") == []
