"""Profiles and devices in SQLite."""

import builtins
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import NamedTuple

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.ports.accounts import REVOKED_KEPT_MAX, Device, DeviceRevokedError, Profile, Standing, TooManyDevicesError

_GET_PROFILE = "SELECT user_id, display_name, about, picture_url FROM profiles WHERE user_id = ?"
_PUT_PROFILE = "INSERT OR REPLACE INTO profiles (user_id, display_name, about, picture_url) VALUES (?, ?, ?, ?)"

_LIST = """
    SELECT user_id, device_id, name, created_at_ms, connected_at_ms FROM devices
    WHERE user_id = ? AND NOT revoked ORDER BY created_at_ms, device_id"""

_DEVICES_OF = """
    SELECT revoked, user_id, device_id, name, created_at_ms, connected_at_ms FROM devices
    WHERE user_id IN (SELECT value FROM json_each(?))"""

_PUT_DEVICE = """
    INSERT OR REPLACE INTO devices (user_id, device_id, name, created_at_ms, connected_at_ms, revoked)
    VALUES (?, ?, ?, ?, ?, 0)"""

_RENAME = """
    UPDATE devices SET name = ? WHERE user_id = ? AND device_id = ? AND NOT revoked
    RETURNING user_id, device_id, name, created_at_ms, connected_at_ms"""

_REVOKE = """
    UPDATE devices SET revoked = 1, revoked_at_ms = :now_ms WHERE user_id = :user_id AND device_id = :device_id AND NOT revoked
    RETURNING user_id, device_id, name, created_at_ms, connected_at_ms"""

_VOID_TOKENS = """
    INSERT INTO token_bounds (user_id, not_before_ms) VALUES (:user_id, :now_ms)
    ON CONFLICT (user_id) DO UPDATE SET not_before_ms = max(not_before_ms, excluded.not_before_ms)"""

_FORGET = """
    DELETE FROM devices WHERE user_id = :user_id AND device_id IN (
        SELECT device_id FROM devices WHERE user_id = :user_id AND revoked
        ORDER BY revoked_at_ms DESC, device_id DESC LIMIT -1 OFFSET :kept_max)"""

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

    async def connect(self, user_id: str, device_id: str, name: str, now_ms: int, devices_max: int) -> Device:
        """See the port."""
        return await self._writer.call(_connect, _Connect(user_id, device_id, name, now_ms, devices_max))

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


class _Revoke(NamedTuple):
    user_id: str
    device_id: str
    now_ms: int


def _put_profiles(db: sqlite3.Connection, profiles: Sequence[Profile]) -> list[None]:
    db.executemany(_PUT_PROFILE, map(astuple, profiles))
    return [None] * len(profiles)


def _connect(db: sqlite3.Connection, calls: Sequence[_Connect]) -> list[Device | Exception]:
    """Reads the users' devices at once, decides in memory, writes at once: after a restart all devices come together."""
    users: dict[str, dict[str, Device | None]] = {call.user_id: {} for call in calls}
    for revoked, *columns in db.execute(_DEVICES_OF, (json.dumps(list(users)),)).fetchall():
        device = Device(*columns)
        users[device.user_id][device.device_id] = None if revoked else device
    outcomes = [_connect_one(users[call.user_id], call) for call in calls]
    connected = {(device.user_id, device.device_id): device for device in outcomes if isinstance(device, Device)}
    db.executemany(_PUT_DEVICE, map(astuple, connected.values()))
    return outcomes


def _connect_one(devices: dict[str, Device | None], call: _Connect) -> Device | Exception:
    """`devices` are the user's, None for a revoked one."""
    known = devices.get(call.device_id)
    if known is None and call.device_id in devices:
        return DeviceRevokedError(f"device {call.device_id} was revoked")
    if known is None:
        registered = sum(device is not None for device in devices.values())
        if registered >= call.devices_max:
            return TooManyDevicesError(f"{registered} devices are registered")
        known = Device(call.user_id, call.device_id, call.name, created_at_ms=call.now_ms, connected_at_ms=call.now_ms)
    device = devices[call.device_id] = replace(known, connected_at_ms=call.now_ms)
    return device


def _rename(db: sqlite3.Connection, calls: Sequence[tuple[str, str, str]]) -> list[Device | None]:
    return [_first_device(db.execute(_RENAME, call)) for call in calls]


def _revoke(db: sqlite3.Connection, calls: Sequence[_Revoke]) -> list[Device | None]:
    return [_revoke_one(db, call) for call in calls]


def _revoke_one(db: sqlite3.Connection, call: _Revoke) -> Device | None:
    parameters = {**call._asdict(), "kept_max": REVOKED_KEPT_MAX}
    device = _first_device(db.execute(_REVOKE, parameters))
    if device is not None:
        db.execute(_VOID_TOKENS, parameters)
        db.execute(_FORGET, parameters)
    return device


def _standing(db: sqlite3.Connection, user_id: str) -> Standing:
    not_before_ms, revoked = db.execute(_STANDING, {"user_id": user_id}).fetchone()
    return Standing(not_before_ms, frozenset(json.loads(revoked)))


def _first_device(cursor: sqlite3.Cursor) -> Device | None:
    rows = cursor.fetchall()
    return Device(*rows[0]) if rows else None
