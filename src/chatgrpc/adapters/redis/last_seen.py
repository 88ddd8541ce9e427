"""When users were connected last, in Redis."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

from chatgrpc.adapters.redis.client import RedisClient, RedisUnavailableError, Script
from chatgrpc.ports.last_seen import LastSeenUnavailableError
from chatgrpc.ports.lease_clock import wall_clock_ms

_PUT = Script("put_last_seen.lua")

KEPT_S: Final = 30 * 24 * 3600
"""Entries end by themselves then, so that users who never come back are not kept for ever."""
USERS_PER_WRITE_MAX: Final = 1_000
"""A node that ends tells all its users at once; others must not wait for that."""
_CLOCKS_DIFFER_MS: Final = 60_000
"""A time further ahead than this is a wrong clock's."""
USERS_PER_READ_MAX: Final = 10_000
_MS_MAX: Final = 253_402_300_799_000
"""The end of the year 9999: whatever is later is no time."""
_DIGITS_MAX: Final = 15


class RedisLastSeen:
    """`ports.last_seen.LastSeen`: one number a user, so that one MGET finds thousands."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def put(self, seen_ms: Mapping[str, int]) -> None:
        """See the port; when it fails, some may be noted."""
        remaining = iter(seen_ms.items())
        while trip := list(islice(remaining, USERS_PER_WRITE_MAX)):
            async with _mapped_errors():
                await self._client.run(
                    _PUT,
                    [
                        ((self._key(user_id),), (str(at_ms), str(KEPT_S), str(wall_clock_ms() + _CLOCKS_DIFFER_MS)))
                        for user_id, at_ms in trip
                    ],
                )

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port; more than `USERS_PER_READ_MAX` users take another trip."""
        found: dict[str, int] = {}
        for start in range(0, len(user_ids), USERS_PER_READ_MAX):
            asked = user_ids[start : start + USERS_PER_READ_MAX]
            async with _mapped_errors(), self._client.bounded() as redis:
                answers = await redis.mget([self._key(user_id) for user_id in asked])
            for user_id, answer in zip(asked, answers, strict=True):
                at_ms = _time_ms(answer)
                if at_ms is not None:
                    found[user_id] = at_ms
        return found

    def _key(self, user_id: str) -> str:
        return self._client.key("seen", user_id)


def _time_ms(answer: str | bytes | None) -> int | None:
    """None also for what is no time: the user is shown without one, and gets a new one when they leave."""
    if not isinstance(answer, str) or len(answer) > _DIGITS_MAX or not answer.isascii() or not answer.isdecimal():
        return None
    return int(answer) if int(answer) <= _MS_MAX else None


@asynccontextmanager
async def _mapped_errors() -> AsyncIterator[None]:
    try:
        yield
    except RedisUnavailableError as error:
        raise LastSeenUnavailableError(str(error)) from error
