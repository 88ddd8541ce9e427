"""Which node holds each device's stream, in Redis."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from chatgrpc.adapters.redis.client import RedisClient, RedisUnavailableError, Script
from chatgrpc.ports.session_map import NODES_PER_DEVICE_MAX, SessionEntry, SessionMapUnavailableError

_PUT = Script("put_session.lua")
_REMOVE = Script("remove_session.lua")

ENTRIES_PER_TRIP_MAX: Final = 1_000
"""Node after node writes all its entries back when Redis lost them; others must not wait for that."""
USERS_PER_TRIP_MAX: Final = 10_000


class RedisSessionMap:
    """`ports.session_map.SessionMap`.

    One string a user, since reading is what counts: one MGET finds the devices of thousands of users, a hash each would be a
    command each. A write that was given up may still be done a moment later, after a newer one of the same node: it looks
    again.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """See the port."""
        returned = await self._run(_PUT, entries, str(NODES_PER_DEVICE_MAX))
        return [
            SessionEntry(entry.user_id, entry.device_id, node_id)
            for entry, node_ids in zip(entries, returned, strict=True)
            for node_id in node_ids
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
                if answer is not None:
                    sessions: dict[str, list[str]] = json.loads(answer)
                    found[user_id] = [
                        SessionEntry(user_id, device_id, node_id)
                        for device_id, node_ids in sessions.items()
                        for node_id in node_ids
                    ]
        return found

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


@asynccontextmanager
async def _mapped_errors() -> AsyncIterator[None]:
    try:
        yield
    except RedisUnavailableError as error:
        raise SessionMapUnavailableError(str(error)) from error
