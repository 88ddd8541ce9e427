"""Who looks at whom where there is no chat yet, in Redis."""

from collections.abc import Collection
from typing import Final

from chatgrpc.adapters.redis.client import RedisClient, RedisUnavailableError
from chatgrpc.ports.shared_looks import LOOK_KEPT_S, SharedLooksUnavailableError

PAIRS_PER_TRIP_MAX: Final = 2_000
"""Others must not wait for the looks of many."""


class RedisSharedLooks:
    """`ports.shared_looks.SharedLooks`: a key a pair, which ends by itself, so that nobody who goes has to say so."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def look(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """See the port; more than `PAIRS_PER_TRIP_MAX` pairs take another trip."""
        returned: set[tuple[str, str]] = set()
        remaining = list(pairs)
        for start in range(0, len(remaining), PAIRS_PER_TRIP_MAX):
            trip = remaining[start : start + PAIRS_PER_TRIP_MAX]
            try:
                async with self._client.bounded() as redis:
                    pipeline = redis.pipeline(transaction=False)
                    for looks, looked_at in trip:
                        pipeline.set(self._key(looks, looked_at), "", ex=LOOK_KEPT_S)
                    for looks, looked_at in trip:
                        pipeline.exists(self._key(looked_at, looks))
                    answers = (await pipeline.execute())[len(trip) :]
            except RedisUnavailableError as error:
                raise SharedLooksUnavailableError(str(error)) from error
            returned |= {pair for pair, looks_back in zip(trip, answers, strict=True) if looks_back}
        return returned

    def _key(self, user_id: str, at_user_id: str) -> str:
        return self._client.key("look", f"{user_id}:{at_user_id}")  # no user id has a colon
