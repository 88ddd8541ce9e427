"""When users were connected last, in memory."""

from collections.abc import Mapping, Sequence


class MemoryLastSeen:
    """`ports.last_seen.LastSeen`; nodes of one process share an instance. It never fails and forgets nothing."""

    def __init__(self) -> None:
        self._seen_ms: dict[str, int] = {}

    async def put(self, seen_ms: Mapping[str, int]) -> None:
        """See the port."""
        for user_id, at_ms in seen_ms.items():
            self._seen_ms[user_id] = max(at_ms, self._seen_ms.get(user_id, at_ms))

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        return {user_id: self._seen_ms[user_id] for user_id in user_ids if user_id in self._seen_ms}
