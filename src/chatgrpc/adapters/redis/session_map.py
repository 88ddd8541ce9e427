"""Which node holds each device's stream, in Redis."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from chatgrpc.adapters.redis.client import RedisClient, RedisUnavailableError, Script
from chatgrpc.core.ids import is_device_id
from chatgrpc.ports.session_map import NODES_PER_DEVICE_MAX, SessionEntry, SessionMapUnavailableError
from chatgrpc.trouble import Trouble

_PUT = Script("put_session.lua")
_REMOVE = Script("remove_session.lua")

ENTRIES_PER_TRIP_MAX: Final = 1_000
"""Node after node writes all its entries back when Redis lost them; others must not wait for that."""
USERS_PER_TRIP_MAX: Final = 10_000
KEPT_S: Final = 7 * 24 * 3600
"""Longer than any stream lasts: a device that never comes back after its node crashed leaves nothing for ever."""
VALUE_BYTES_MAX: Final = 256 * 1024
"""Size of one user's entries; a longer value was not written by us."""


class RedisSessionMap:
    """`ports.session_map.SessionMap`.

    One string a user, since reading is what counts: one MGET finds the devices of thousands of users, a hash each would be a
    command each. A write that was given up may still be done a moment later, after a newer one of the same node: it looks
    again. What stands at a key and is not what we write is passed over, and written over in time: it must not cost others their
    pushes.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._malformed = Trouble("session_map_malformed")

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """See the port."""
        returned = await self._run(_PUT, entries, str(NODES_PER_DEVICE_MAX), str(KEPT_S), str(VALUE_BYTES_MAX))
        return [
            SessionEntry(entry.user_id, entry.device_id, node_id)
            for entry, node_ids in zip(entries, returned, strict=True)
            for node_id in node_ids
            if _is_node_id(node_id)
        ]

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        """See the port."""
        await self._run(_REMOVE, entries)

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        """See the port; more than `USERS_PER_TRIP_MAX` users take another trip."""
        found: dict[str, list[SessionEntry]] = {}
        for start in range(0, len(user_ids), USERS_PER_TRIP_MAX):
            asked = user_ids[start : start + USERS_PER_TRIP_MAX]
            async with _mapped_errors(), self._client.bounded() as redis:
                answers = await redis.mget([self._key(user_id) for user_id in asked])
            for user_id, answer in zip(asked, answers, strict=True):
                entries = self._entries(user_id, answer) if answer is not None else []
                if entries:
                    found[user_id] = entries
        return found

    async def stands(self, user_id: str) -> bool:
        """See the port. It is a write, so that a Redis that has become a copy of another one refuses it."""
        async with _mapped_errors(), self._client.bounded() as redis:
            return bool(await redis.expire(self._key(user_id), KEPT_S))

    def _entries(self, user_id: str, answer: str | bytes) -> list[SessionEntry]:
        try:
            sessions = json.loads(answer) if len(answer) <= VALUE_BYTES_MAX else None
        except (ValueError, RecursionError):
            sessions = None
        if not isinstance(sessions, dict):
            self._malformed.failed(ValueError("what stands at a user's key is no session of ours; it is passed over"))
            return []
        return [
            SessionEntry(user_id, device_id, node_id)
            for device_id, node_ids in sessions.items()
            if is_device_id(device_id) and isinstance(node_ids, list)
            for node_id in node_ids
            if _is_node_id(node_id)
        ]

    def _key(self, user_id: str) -> str:
        return self._client.key("session", user_id)

    async def _run(self, script: Script, entries: Sequence[SessionEntry], *arguments: str) -> list[Any]:
        returned: list[Any] = []
        for start in range(0, len(entries), ENTRIES_PER_TRIP_MAX):
            trip = entries[start : start + ENTRIES_PER_TRIP_MAX]
            async with _mapped_errors():
                returned += await self._client.run(
                    script, [((self._key(entry.user_id),), (entry.device_id, entry.node_id, *arguments)) for entry in trip]
                )
        return returned


def _is_node_id(value: object) -> bool:
    """JSON knows texts that cannot be sent anywhere, not even back to Redis."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and value != ""


@asynccontextmanager
async def _mapped_errors() -> AsyncIterator[None]:
    try:
        yield
    except RedisUnavailableError as error:
        raise SessionMapUnavailableError(str(error)) from error
