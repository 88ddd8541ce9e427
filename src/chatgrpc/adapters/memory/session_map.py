"""Which node holds each device's stream, in memory."""

from collections.abc import Sequence

from chatgrpc.ports.session_map import NODES_PER_DEVICE_MAX, SessionEntry


class MemorySessionMap:
    """`ports.session_map.SessionMap`; nodes of one process share an instance. It never fails, and loses all by `lose`."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, list[SessionEntry]]] = {}

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """See the port."""
        others: list[SessionEntry] = []
        for entry in entries:
            devices = self._entries.setdefault(entry.user_id, {})
            elsewhere = [other for other in devices.get(entry.device_id, ()) if other != entry]
            others += elsewhere
            devices[entry.device_id] = [*elsewhere, entry][-NODES_PER_DEVICE_MAX:]
        return others

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        """See the port."""
        for entry in entries:
            devices = self._entries.get(entry.user_id, {})
            if entry not in devices.get(entry.device_id, ()):
                continue
            devices[entry.device_id].remove(entry)
            if not devices[entry.device_id]:
                del devices[entry.device_id]
            if not devices:
                del self._entries[entry.user_id]

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        """See the port."""
        return {
            user_id: [entry for of_device in self._entries[user_id].values() for entry in of_device]
            for user_id in user_ids
            if user_id in self._entries
        }

    async def stands(self, user_id: str) -> bool:
        """See the port."""
        return user_id in self._entries

    def lose(self) -> None:
        """Forgets everything, as Redis may."""
        self._entries.clear()
