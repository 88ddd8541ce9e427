"""DeviceService: the caller's devices."""

import asyncio
import time

from chatgrpc.core.rates import Deed, Rates
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.rules import duration
from chatgrpc.edge.backend import Backend
from chatgrpc.edge.interceptors import current_claims
from chatgrpc.edge.revocations import not_before_ms
from chatgrpc.edge.services.refusals import refused_by, refused_by_status
from chatgrpc.edge.services.requests import checked_device_id, require, require_at_most
from chatgrpc.ports.accounts import Device
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import chat_pb2, device_service_pb2
from chatgrpc.v1.device_service_pb2 import (
    ListDevicesRequest,
    ListDevicesResponse,
    RenameDeviceRequest,
    RenameDeviceResponse,
    RevokeDeviceRequest,
    RevokeDeviceResponse,
)
from chatgrpc.v1.device_service_pb2_grpc import DeviceServiceServicer


class DeviceService(DeviceServiceServicer):
    """Lists, names and revokes the caller's own devices; nobody else's can be named."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rates = Rates(backend.limits)

    @refused_by_status
    async def ListDevices(self, request: ListDevicesRequest, context: object) -> ListDevicesResponse:
        """Lists the caller's devices."""
        caller = current_claims().user_id
        devices = await self._backend.devices.list(caller)
        online = await self._backend.online_devices(caller)
        return ListDevicesResponse(devices=[_shown(device, online) for device in devices])

    @refused_by(RenameDeviceResponse)
    async def RenameDevice(self, request: RenameDeviceRequest, context: object) -> RenameDeviceResponse:
        """Gives a device another name."""
        device_id = checked_device_id(request.device_id)
        require(bool(request.name), "name is empty: say what the device is called.")
        require_at_most(len(request.name.encode()), self._backend.limits.device_name_bytes_max, "Bytes of name")
        caller = current_claims().user_id
        device = _found(await self._backend.devices.rename(caller, device_id, request.name))
        return RenameDeviceResponse(device=_shown(device, await self._backend.online_devices(caller)))

    @refused_by(RevokeDeviceResponse)
    async def RevokeDevice(self, request: RevokeDeviceRequest, context: object) -> RevokeDeviceResponse:
        """Revokes a device: its stream is closed, its id does not connect again, and tokens that it may hold are void."""
        caller = current_claims()
        device_id = checked_device_id(request.device_id)
        if not await self._is_known(caller.user_id, device_id):
            self._count_unknown(caller)
        revoking = self._revoke(caller, device_id)
        # A caller that hangs up cancels this method, but must not leave the device revoked and its stream open.
        device = await asyncio.shield(asyncio.create_task(revoking))
        if device is None:
            raise RefusedError(
                chat_pb2.ERROR_CODE_NOT_FOUND,
                "You have no such device, or it is revoked already. Look at DeviceService.ListDevices.",
            )
        return RevokeDeviceResponse(device=device)

    async def _is_known(self, user_id: str, device_id: str) -> bool:
        """Whether a device has the id, or it is revoked."""
        devices = await self._backend.devices.list(user_id)
        if any(device.device_id == device_id for device in devices):
            return True
        return device_id in (await self._backend.devices.standing(user_id)).revoked

    def _count_unknown(self, caller: Claims) -> None:
        """Each made-up id takes the place of another that is kept out, and is said to all nodes for a while. Those who call
        with the token of another device have a bucket of their own: whoever stole one must not keep the user from revoking it.
        """
        counted_as = f"{caller.user_id}/{caller.device_id or ''}"
        wait_ms = self._rates.count(counted_as, {Deed.REVOKE_UNKNOWN: 1}, time.monotonic_ns() // 1_000_000)
        if wait_ms:
            raise RefusedError(
                chat_pb2.ERROR_CODE_RATE_LIMITED,
                "You have revoked too many ids lately that none of your devices has. Take them from DeviceService.ListDevices, "
                f"or try again in {duration(wait_ms)}.",
                retry_after_ms=wait_ms,
            )

    async def _revoke(self, caller: Claims, device_id: str) -> device_service_pb2.Device | None:
        user_id = caller.user_id
        until_ms = not_before_ms(self._backend.now_ms(), [caller, *self._backend.claims_of(user_id)])
        device = await self._backend.devices.revoke(user_id, device_id, until_ms)
        shown = _shown(device, await self._backend.online_devices(user_id)) if device is not None else None
        await self._backend.disconnect_revoked(user_id, device_id)
        return shown


def _shown(device: Device, online: frozenset[str]) -> device_service_pb2.Device:
    return device_service_pb2.Device(
        device_id=device.device_id,
        name=device.name,
        created_at_ms=device.created_at_ms,
        connected_at_ms=device.connected_at_ms,
        online=device.device_id in online,
    )


def _found(device: Device | None) -> Device:
    if device is None:
        raise RefusedError(
            chat_pb2.ERROR_CODE_NOT_FOUND, "You have no such device, or it is revoked. Look at DeviceService.ListDevices."
        )
    return device
