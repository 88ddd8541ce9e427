"""Profiles and devices in memory."""

import builtins
from dataclasses import replace

from chatgrpc.adapters.memory.shelf import Shelf
from chatgrpc.ports.accounts import (
    REVOKED_KEPT_MAX,
    Connected,
    Device,
    DeviceRevokedError,
    Profile,
    Standing,
    TooManyDevicesError,
    connection_time_ms,
    first_to_give_way,
    raised,
)


class MemoryProfileStore:
    """`ports.accounts.ProfileStore`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._profiles: dict[str, Profile] = {}

    async def get(self, user_id: str) -> Profile | None:
        """See the port."""
        self._shelf.check_open()
        return self._profiles.get(user_id)

    async def put(self, profile: Profile) -> None:
        """See the port."""
        self._shelf.check_open()
        self._profiles[profile.user_id] = profile


class MemoryDeviceStore:
    """`ports.accounts.DeviceStore`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._devices: dict[str, dict[str, Device]] = {}
        self._revoked: dict[str, dict[str, bool]] = {}  # user id -> device ids, as they were revoked -> was registered
        self._ephemeral: set[tuple[str, str]] = set()
        self._not_before_ms: dict[str, int] = {}

    async def connect(
        self, user_id: str, device_id: str, name: str, now_ms: int, devices_max: int, *, ephemeral: bool = False
    ) -> Connected:
        """See the port."""
        self._shelf.check_open()
        if device_id in self._revoked.get(user_id, ()):
            raise DeviceRevokedError(f"device {device_id} was revoked")
        devices = self._devices.setdefault(user_id, {})
        is_ephemeral = (user_id, device_id) in self._ephemeral if device_id in devices else ephemeral
        at_ms = connection_time_ms(now_ms, devices.values(), ephemeral=is_ephemeral)
        gives_way = None
        if device_id not in devices and len(devices) >= devices_max:
            gives_way = first_to_give_way(
                device for device in devices.values() if (user_id, device.device_id) in self._ephemeral
            )
            if gives_way is None:
                raise TooManyDevicesError(f"{len(devices)} devices are registered")
            self._ephemeral.remove((user_id, gives_way.device_id))
            del devices[gives_way.device_id]
        if device_id not in devices and ephemeral:
            self._ephemeral.add((user_id, device_id))
        known = devices.get(device_id, Device(user_id, device_id, name, created_at_ms=now_ms, connected_at_ms=at_ms))
        devices[device_id] = replace(known, connected_at_ms=at_ms)
        return Connected(devices[device_id], gives_way.device_id if gives_way is not None else "")

    async def list(self, user_id: str) -> builtins.list[Device]:
        """See the port."""
        self._shelf.check_open()
        return sorted(self._devices.get(user_id, {}).values(), key=lambda device: (device.created_at_ms, device.device_id))

    async def rename(self, user_id: str, device_id: str, name: str) -> Device | None:
        """See the port."""
        self._shelf.check_open()
        device = self._devices.get(user_id, {}).get(device_id)
        if device is None:
            return None
        self._devices[user_id][device_id] = replace(device, name=name)
        return self._devices[user_id][device_id]

    async def revoke(self, user_id: str, device_id: str, now_ms: int) -> Device | None:
        """See the port."""
        self._shelf.check_open()
        device = self._devices.get(user_id, {}).pop(device_id, None)
        self._ephemeral.discard((user_id, device_id))
        revoked = self._revoked.setdefault(user_id, {})
        was_registered = revoked[device_id] = revoked.pop(device_id, False) or device is not None
        if was_registered:
            self._not_before_ms[user_id] = raised(self._not_before_ms.get(user_id, 0), now_ms)
        if len(revoked) > REVOKED_KEPT_MAX:
            del revoked[min(revoked, key=lambda known: revoked[known])]  # of equal ones the first
        return device

    async def standing(self, user_id: str) -> Standing:
        """See the port."""
        self._shelf.check_open()
        return Standing(self._not_before_ms.get(user_id, 0), frozenset(self._revoked.get(user_id, ())))
