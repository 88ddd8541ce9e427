"""Profiles and devices in Cassandra."""

import asyncio
import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from chatgrpc.adapters.cassandra.client import CassandraClient
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
from chatgrpc.ports.errors import StoreUnavailableError

_REGISTRATION_TRIES: Final = 5
_LAST_OF_ALL_US: Final = 1 << 63


class CassandraProfileStore:
    """`ports.accounts.ProfileStore`."""

    def __init__(self, client: CassandraClient) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._get = client.prepare("SELECT display_name, about, picture_url FROM {keyspace}.profiles WHERE user_id = ?")
        self._put = client.prepare(
            "INSERT INTO {keyspace}.profiles (user_id, display_name, about, picture_url) VALUES (?, ?, ?, ?)"
        )

    async def get(self, user_id: str) -> Profile | None:
        """See the port."""
        rows = await self._client.read(self._get.bind((user_id,)))
        return Profile(user_id, *(value or "" for value in rows[0])) if rows else None

    async def put(self, profile: Profile) -> None:
        """See the port."""
        await self._client.write(self._put.bind((profile.user_id, profile.display_name, profile.about, profile.picture_url)))


class _Devices(NamedTuple):
    """What is stored of one user."""

    registrations: int | None
    """How many devices were ever registered; None = none."""
    registered: dict[str, Device]
    revoked: dict[str, tuple[bool, int]]
    """Whether each was ever registered, and when it was revoked, in microseconds by Cassandra's clock."""


class CassandraDeviceStore:
    """`ports.accounts.DeviceStore`.

    A known device costs one read and one small write. A new one is registered by a conditional write: of plain writes nobody
    could tell which of two came first, and both would take the last place or none. `revoked` is written true and never
    anything else, so no other write can undo it. When it was written says which revocation is oldest.
    """

    def __init__(self, client: CassandraClient) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._turns = _Turns()
        self._of_user = client.prepare(
            "SELECT device_id, name, created_at_ms, connected_at_ms, revoked, WRITETIME(revoked), registrations "
            "FROM {keyspace}.devices WHERE user_id = ?"
        )
        self._count_registration = client.prepare(
            "UPDATE {keyspace}.devices SET registrations = ? WHERE user_id = ? IF registrations = ?", idempotent=False
        )
        self._register = client.prepare(
            "UPDATE {keyspace}.devices SET name = ?, created_at_ms = ?, connected_at_ms = ? "
            "WHERE user_id = ? AND device_id = ?",
            idempotent=False,
        )
        # What is written plainly gets its timestamp from the server, as conditional writes do.
        self._note_connection = client.prepare(
            "UPDATE {keyspace}.devices SET connected_at_ms = ? WHERE user_id = ? AND device_id = ?"
        )
        self._rename = client.prepare("UPDATE {keyspace}.devices SET name = ? WHERE user_id = ? AND device_id = ?")
        self._revoke = client.prepare("UPDATE {keyspace}.devices SET revoked = true WHERE user_id = ? AND device_id = ?")
        self._forget = client.prepare("DELETE FROM {keyspace}.devices WHERE user_id = ? AND device_id = ?")
        self._give_way = client.prepare("DELETE FROM {keyspace}.devices WHERE user_id = ? AND device_id = ?", idempotent=False)
        self._ephemeral = client.prepare("SELECT device_id FROM {keyspace}.ephemeral_devices WHERE user_id = ?")
        self._note_ephemeral = client.prepare("INSERT INTO {keyspace}.ephemeral_devices (user_id, device_id) VALUES (?, ?)")
        self._forget_ephemeral = client.prepare("DELETE FROM {keyspace}.ephemeral_devices WHERE user_id = ? AND device_id = ?")
        # The greater value has the later timestamp, whoever writes it and when.
        self._void_tokens = client.prepare(
            "UPDATE {keyspace}.token_bounds USING TIMESTAMP ? SET not_before_ms = ? WHERE user_id = ?"
        )
        self._not_before = client.prepare("SELECT not_before_ms FROM {keyspace}.token_bounds WHERE user_id = ?")

    async def connect(
        self, user_id: str, device_id: str, name: str, now_ms: int, devices_max: int, *, ephemeral: bool = False
    ) -> Connected:
        """See the port."""
        async with self._turns.of(user_id):
            for _ in range(_REGISTRATION_TRIES):
                stored = await self._stored(user_id)
                if device_id in stored.revoked:
                    raise DeviceRevokedError(f"device {device_id} was revoked")
                known = stored.registered.get(device_id)
                at_ms = await self._connection_time_ms(user_id, device_id, now_ms, stored, ephemeral=ephemeral)
                if known is not None:
                    await self._client.write(self._note_connection.bind((at_ms, user_id, device_id)))
                    return Connected(replace(known, connected_at_ms=at_ms))
                gives_way = ""
                if len(stored.registered) >= devices_max:
                    gives_way = await self._first_to_give_way(user_id, stored)
                if ephemeral:  # before it is registered: one that nobody knows to be ephemeral would never give way
                    await self._client.write(self._note_ephemeral.bind((user_id, device_id)))
                device = Device(user_id, device_id, name, created_at_ms=now_ms, connected_at_ms=at_ms)
                if await self._try_to_register(device, stored.registrations, gives_way):
                    if gives_way:
                        await self._client.write(self._forget_ephemeral.bind((user_id, gives_way)))
                    return Connected(device, gives_way)
        raise StoreUnavailableError(f"Cassandra: {_REGISTRATION_TRIES} others registered devices of one user meanwhile")

    async def list(self, user_id: str) -> builtins.list[Device]:
        """See the port."""
        stored = await self._stored(user_id)
        return sorted(stored.registered.values(), key=lambda device: (device.created_at_ms, device.device_id))

    async def rename(self, user_id: str, device_id: str, name: str) -> Device | None:
        """See the port."""
        async with self._turns.of(user_id):
            device = (await self._stored(user_id)).registered.get(device_id)
            if device is None:
                return None
            await self._client.write(self._rename.bind((name, user_id, device_id)))
            return replace(device, name=name)

    async def revoke(self, user_id: str, device_id: str, now_ms: int) -> Device | None:
        """See the port."""
        async with self._turns.of(user_id):
            stored, bound_ms = await asyncio.gather(self._stored(user_id), self._bound_ms(user_id))
            device = stored.registered.get(device_id)
            was_registered, _ = stored.revoked.get(device_id, (device is not None, 0))
            # The bound first: who is told that the second failed tries again, and finds the device still there.
            if was_registered:
                not_before_ms = raised(bound_ms, now_ms)
                await self._client.write(self._void_tokens.bind((not_before_ms, not_before_ms, user_id)))
            revoked = {**stored.revoked, device_id: (was_registered, _LAST_OF_ALL_US)}
            oldest_first = sorted(revoked, key=lambda known: (revoked[known], known))
            to_forget = oldest_first[: max(0, len(revoked) - REVOKED_KEPT_MAX)]
            if device_id in to_forget:  # written and deleted it would be a tombstone that every read passes
                return device
            await self._client.write(self._revoke.bind((user_id, device_id)))
            if was_registered:
                await self._client.write(self._forget_ephemeral.bind((user_id, device_id)))
            for forgotten in to_forget:
                await self._client.write(self._forget.bind((user_id, forgotten)))
            return device

    async def standing(self, user_id: str) -> Standing:
        """See the port."""
        stored, bound_ms = await asyncio.gather(self._stored(user_id), self._bound_ms(user_id))
        return Standing(bound_ms, frozenset(stored.revoked))

    async def _bound_ms(self, user_id: str) -> int:
        rows = await self._client.read(self._not_before.bind((user_id,)))
        return (rows[0][0] or 0) if rows else 0

    async def _stored(self, user_id: str) -> _Devices:
        registrations: int | None = None
        registered: dict[str, Device] = {}
        revoked: dict[str, tuple[bool, int]] = {}
        for row in await self._client.read(self._of_user.bind((user_id,))):
            device_id, name, created_at_ms, connected_at_ms, is_revoked, revoked_at_us, registrations = row
            if is_revoked:
                revoked[device_id] = (created_at_ms is not None, revoked_at_us)
            elif created_at_ms is not None:
                registered[device_id] = Device(user_id, device_id, name or "", created_at_ms, connected_at_ms or 0)
        return _Devices(registrations, registered, revoked)

    async def _connection_time_ms(self, user_id: str, device_id: str, now_ms: int, stored: _Devices, *, ephemeral: bool) -> int:
        """See `connection_time_ms`. Which devices are ephemeral is read only where it matters: while the clock is set back."""
        at_ms = connection_time_ms(now_ms, stored.registered.values(), ephemeral=True)
        if at_ms == now_ms or (ephemeral and device_id not in stored.registered):
            return at_ms
        return at_ms if device_id in await self._ephemeral_of(user_id) else now_ms

    async def _ephemeral_of(self, user_id: str) -> set[str]:
        return {device_id for (device_id,) in await self._client.read(self._ephemeral.bind((user_id,)))}

    async def _first_to_give_way(self, user_id: str, stored: _Devices) -> str:
        ephemeral = await self._ephemeral_of(user_id)
        registered = stored.registered
        device = first_to_give_way(device for device_id, device in registered.items() if device_id in ephemeral)
        if device is None:
            raise TooManyDevicesError(f"{len(registered)} devices are registered")
        return device.device_id

    async def _try_to_register(self, device: Device, registrations: int | None, gives_way: str) -> bool:
        """Registers a device in the place of another, if one is named, unless another was since `registrations` was read."""
        count = self._count_registration.bind(((registrations or 0) + 1, device.user_id, registrations))
        values = (device.name, device.created_at_ms, device.connected_at_ms, device.user_id, device.device_id)
        changes = [count, self._register.bind(values)]
        if gives_way:
            changes.append(self._give_way.bind((device.user_id, gives_way)))
        answer = await self._client.compare_and_set(self._client.batch(changes))
        return bool(answer[0][0])


class _Turns:
    """Lets the calls of one user take turns, in the order in which they come; other nodes' calls are not held off by it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, user_id: str) -> AsyncIterator[None]:
        """Waits for the user's turn."""
        lock, waiting = self._locks.get(user_id, (asyncio.Lock(), 0))
        self._locks[user_id] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._locks.pop(user_id)
            if waiting > 1:
                self._locks[user_id] = (lock, waiting - 1)
