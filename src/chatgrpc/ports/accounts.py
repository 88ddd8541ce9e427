"""The ports of users' profiles and devices."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

REVOKED_KEPT_MAX: Final = 100
"""Revoked ids of a user that are remembered; of more, the one whose revocation is oldest is forgotten, and before it those that
were never registered: anybody with a token can name such ids, and must not bring back a device by that."""
_TIME_MS_MAX: Final = 1 << 53
"""No time that rises with each call goes on rising from beyond this, to where the engines have no numbers."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user says of themself; empty strings = nothing said."""

    user_id: str
    display_name: str = ""
    about: str = ""
    picture_url: str = ""


class ProfileStore(Protocol):
    """Keeps profiles."""

    async def get(self, user_id: str) -> Profile | None:
        """Reads a profile; None if the user never set one."""
        ...

    async def put(self, profile: Profile) -> None:
        """Stores a profile in place of the one before; durable on return."""
        ...


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a user."""

    user_id: str
    device_id: str
    name: str
    created_at_ms: int
    connected_at_ms: int


@dataclass(frozen=True, slots=True)
class Connected:
    """A device that may come in."""

    device: Device
    gave_way: str = ""
    """The id of an ephemeral one that is registered no more, since there was no place left."""


def first_to_give_way(ephemeral: Iterable[Device]) -> Device | None:
    """Of a user's ephemeral devices the one that makes room for another: that connected longest ago; None if there are none."""
    return min(ephemeral, key=lambda device: (device.connected_at_ms, device.device_id), default=None)


def connection_time_ms(now_ms: int, devices: Iterable[Device], *, ephemeral: bool) -> int:
    """When a device connects to whose user these belong: now. One that is stored as ephemeral, or is to be, after all of them,
    whatever the clock says: those that come while it is set back would give way to each other, and those that connected long
    ago would stay.
    """
    if not ephemeral:
        return now_ms
    return raised(max((device.connected_at_ms for device in devices), default=0), now_ms)


def raised(stored_ms: int, now_ms: int) -> int:
    """A time that rises with each call, by a clock that may have been set back."""
    return max(stored_ms, now_ms, min(stored_ms, _TIME_MS_MAX) + 1)


class DeviceRevokedError(Exception):
    """The device was revoked and may not connect again."""


class TooManyDevicesError(Exception):
    """The user has as many devices as the limit allows."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was taken away from a user's devices and tokens."""

    not_before_ms: int = 0
    """Tokens that name no device, and were issued then or earlier, are void; 0 = none is."""
    revoked: frozenset[str] = frozenset()
    """Ids of the devices that were revoked last, at most `REVOKED_KEPT_MAX`."""


class DeviceStore(Protocol):
    """Keeps the devices of each user. A revoked device stays revoked, until `REVOKED_KEPT_MAX` others were revoked after it."""

    async def connect(
        self, user_id: str, device_id: str, name: str, now_ms: int, devices_max: int, *, ephemeral: bool = False
    ) -> Connected:
        """Registers a device on its first connection, and notes the time on every one.

        A name that is not empty is kept on the first connection only; after that, `rename` changes it. So is `ephemeral`: where
        there is no place for a new device, the ephemeral one gives way that connected longest ago, in the order of these calls:
        that of an ephemeral device is later than all before it of its user, if `now_ms` is not.

        Raises:
            DeviceRevokedError: it was revoked.
            TooManyDevicesError: it is new, `devices_max` devices are registered and not revoked, and none of them is ephemeral.
        """
        ...

    async def list(self, user_id: str) -> list[Device]:
        """Lists devices that are not revoked, oldest first."""
        ...

    async def rename(self, user_id: str, device_id: str, name: str) -> Device | None:
        """Renames a device; None if there is none, or it is revoked."""
        ...

    async def revoke(self, user_id: str, device_id: str, now_ms: int) -> Device | None:
        """Revokes a device, and raises `Standing.not_before_ms` to `now_ms`, and above what it was: both are durable on return.

        Returns the device as it was; None if it is revoked already, which voids the tokens that were issued since, or if there
        never was one of the id. That is kept out all the same, since there may be tokens that name it; other tokens of the user
        go on: the id may have been a slip.
        """
        ...

    async def standing(self, user_id: str) -> Standing:
        """What was taken away from the user's devices and tokens by all calls of `revoke` that have returned, on any node."""
        ...
