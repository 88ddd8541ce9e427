"""Who looks at whom where there is no chat yet, in memory."""

from collections.abc import Callable, Collection

from chatgrpc.ports.shared_looks import LOOK_KEPT_S


class MemorySharedLooks:
    """`ports.shared_looks.SharedLooks`; nodes of one process share an instance. It never fails."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._until_s: dict[tuple[str, str], float] = {}

    async def look(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """See the port."""
        now_s = self._clock_s()
        self._until_s = {pair: until_s for pair, until_s in self._until_s.items() if until_s > now_s}
        self._until_s |= dict.fromkeys(pairs, now_s + LOOK_KEPT_S)
        return {(looks, looked_at) for looks, looked_at in pairs if (looked_at, looks) in self._until_s}
