"""Profiles and devices in SQLite."""

import builtins
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import NamedTuple

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
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

_GET_PROFILE = "SELECT user_id, display_name, about, picture_url FROM profiles WHERE user_id = ?"
_PUT_PROFILE = "INSERT OR REPLACE INTO profiles (user_id, display_name, about, picture_url) VALUES (?, ?, ?, ?)"

_LIST = """
    SELECT user_id, device_id, name, created_at_ms, connected_at_ms FROM devices
    WHERE user_id = ? AND NOT revoked ORDER BY created_at_ms, device_id"""

_DEVICES_OF = """
    SELECT revoked, ephemeral, user_id, device_id, name, created_at_ms, connected_at_ms FROM devices
    WHERE user_id IN (SELECT value FROM json_each(?))"""

_PUT_DEVICE = """
    INSERT OR REPLACE INTO devices (user_id, device_id, name, created_at_ms, connected_at_ms, ephemeral, revoked)
    VALUES (?, ?, ?, ?, ?, ?, 0)"""

_GIVE_WAY = "DELETE FROM devices WHERE user_id = ? AND device_id = ? AND ephemeral"

_RENAME = """
    UPDATE devices SET name = ? WHERE user_id = ? AND device_id = ? AND NOT revoked
    RETURNING user_id, device_id, name, created_at_ms, connected_at_ms"""

_REGISTERED = """
    SELECT user_id, device_id, name, created_at_ms, connected_at_ms FROM devices
    WHERE user_id = :user_id AND device_id = :device_id AND NOT revoked"""

_REVOCATION_STATE = """
    SELECT EXISTS (SELECT 1 FROM devices WHERE user_id = :user_id AND device_id = :device_id AND created_at_ms >= 0),
        coalesce((SELECT not_before_ms FROM token_bounds WHERE user_id = :user_id), 0),
        coalesce((SELECT max(revoked_at_ms) FROM devices WHERE user_id = :user_id), 0)"""

# One that was never registered was created before all times. When it was revoked only says which revocation was the last: it
# rises whatever the clock does, lest the last one counts as the oldest.
_REVOKE = """
    INSERT INTO devices (user_id, device_id, name, created_at_ms, connected_at_ms, revoked, revoked_at_ms)
    VALUES (:user_id, :device_id, '', -1, -1, 1, :revoked_at_ms)
    ON CONFLICT (user_id, device_id) DO UPDATE SET revoked = 1, revoked_at_ms = excluded.revoked_at_ms"""

_VOID_TOKENS = "INSERT OR REPLACE INTO token_bounds (user_id, not_before_ms) VALUES (:user_id, :not_before_ms)"

_FORGET = """
    DELETE FROM devices WHERE user_id = :user_id AND device_id IN (
        SELECT device_id FROM devices WHERE user_id = :user_id AND revoked
        ORDER BY created_at_ms < 0, revoked_at_ms DESC, device_id DESC LIMIT -1 OFFSET :kept_max)"""

_STANDING = """
    SELECT coalesce((SELECT not_before_ms FROM token_bounds WHERE user_id = :user_id), 0),
        (SELECT json_group_array(device_id) FROM devices WHERE user_id = :user_id AND revoked)"""


class SqliteProfileStore:
    """`ports.accounts.ProfileStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def get(self, user_id: str) -> Profile | None:
        """See the port."""
        row = await self._readers.read(lambda db: db.execute(_GET_PROFILE, (user_id,)).fetchone())
        return None if row is None else Profile(*row)

    async def put(self, profile: Profile) -> None:
        """See the port."""
        await self._writer.call(_put_profiles, profile)


class SqliteDeviceStore:
    """`ports.accounts.DeviceStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def connect(
        self, user_id: str, device_id: str, name: str, now_ms: int, devices_max: int, *, ephemeral: bool = False
    ) -> Connected:
        """See the port."""
        return await self._writer.call(_connect, _Connect(user_id, device_id, name, now_ms, devices_max, ephemeral))

    async def list(self, user_id: str) -> builtins.list[Device]:
        """See the port."""
        return await self._readers.read(lambda db: [Device(*row) for row in db.execute(_LIST, (user_id,)).fetchall()])

    async def rename(self, user_id: str, device_id: str, name: str) -> Device | None:
        """See the port."""
        return await self._writer.call(_rename, (name, user_id, device_id))

    async def revoke(self, user_id: str, device_id: str, now_ms: int) -> Device | None:
        """See the port."""
        return await self._writer.call(_revoke, _Revoke(user_id, device_id, now_ms))

    async def standing(self, user_id: str) -> Standing:
        """See the port."""
        return await self._readers.read(lambda db: _standing(db, user_id))


class _Connect(NamedTuple):
    user_id: str
    device_id: str
    name: str
    now_ms: int
    devices_max: int
    ephemeral: bool


class _Revoke(NamedTuple):
    user_id: str
    device_id: str
    now_ms: int


def _put_profiles(db: sqlite3.Connection, profiles: Sequence[Profile]) -> list[None]:
    db.executemany(_PUT_PROFILE, map(astuple, profiles))
    return [None] * len(profiles)


@dataclass(slots=True)
class _DevicesOf:
    """What is stored of one user's devices."""

    registered: dict[str, Device] = field(default_factory=dict)
    ephemeral: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)


def _connect(db: sqlite3.Connection, calls: Sequence[_Connect]) -> list[Connected | Exception]:
    """Reads the users' devices at once, decides in memory, writes at once: after a restart all devices come together."""
    users = {call.user_id: _DevicesOf() for call in calls}
    for revoked, ephemeral, *columns in db.execute(_DEVICES_OF, (json.dumps(list(users)),)).fetchall():
        device = Device(*columns)
        of_user = users[device.user_id]
        if revoked:
            of_user.revoked.add(device.device_id)
            continue
        of_user.registered[device.device_id] = device
        if ephemeral:
            of_user.ephemeral.add(device.device_id)
    outcomes = [_connect_one(users[call.user_id], call) for call in calls]
    done = [(call, outcome) for call, outcome in zip(calls, outcomes, strict=True) if isinstance(outcome, Connected)]
    db.executemany(_GIVE_WAY, [(call.user_id, outcome.gave_way) for call, outcome in done if outcome.gave_way])
    connected = {(call.user_id, call.device_id) for call, _ in done}
    rows = [
        (*astuple(users[user_id].registered[device_id]), device_id in users[user_id].ephemeral)
        for user_id, device_id in connected
        if device_id in users[user_id].registered  # else it gave way to one that came with it
    ]
    db.executemany(_PUT_DEVICE, rows)
    return outcomes


def _connect_one(devices: _DevicesOf, call: _Connect) -> Connected | Exception:
    """Decides on one call, in memory."""
    if call.device_id in devices.revoked:
        return DeviceRevokedError(f"device {call.device_id} was revoked")
    registered = devices.registered
    known = registered.get(call.device_id)
    is_ephemeral = call.ephemeral if known is None else call.device_id in devices.ephemeral
    at_ms = connection_time_ms(call.now_ms, registered.values(), ephemeral=is_ephemeral)
    gives_way = None
    if known is None:
        known = Device(call.user_id, call.device_id, call.name, created_at_ms=call.now_ms, connected_at_ms=at_ms)
        if len(registered) >= call.devices_max:
            gives_way = first_to_give_way(registered[device_id] for device_id in devices.ephemeral)
            if gives_way is None:
                return TooManyDevicesError(f"{len(registered)} devices are registered")
            del registered[gives_way.device_id]
            devices.ephemeral.remove(gives_way.device_id)
        if call.ephemeral:
            devices.ephemeral.add(call.device_id)
    device = registered[call.device_id] = replace(known, connected_at_ms=at_ms)
    return Connected(device, gives_way.device_id if gives_way is not None else "")


def _rename(db: sqlite3.Connection, calls: Sequence[tuple[str, str, str]]) -> list[Device | None]:
    return [_first_device(db.execute(_RENAME, call)) for call in calls]


def _revoke(db: sqlite3.Connection, calls: Sequence[_Revoke]) -> list[Device | None]:
    return [_revoke_one(db, call) for call in calls]


def _revoke_one(db: sqlite3.Connection, call: _Revoke) -> Device | None:
    of_device = {"user_id": call.user_id, "device_id": call.device_id}
    device = _first_device(db.execute(_REGISTERED, of_device))
    was_registered, not_before_ms, revoked_at_ms = db.execute(_REVOCATION_STATE, of_device).fetchone()
    if was_registered:
        db.execute(_VOID_TOKENS, {**of_device, "not_before_ms": raised(not_before_ms, call.now_ms)})
    db.execute(_REVOKE, {**of_device, "revoked_at_ms": raised(revoked_at_ms, call.now_ms)})
    db.execute(_FORGET, {**of_device, "kept_max": REVOKED_KEPT_MAX})
    return device


def _standing(db: sqlite3.Connection, user_id: str) -> Standing:
    not_before_ms, revoked = db.execute(_STANDING, {"user_id": user_id}).fetchone()
    return Standing(not_before_ms, frozenset(json.loads(revoked)))


def _first_device(cursor: sqlite3.Cursor) -> Device | None:
    rows = cursor.fetchall()
    return Device(*rows[0]) if rows else None
