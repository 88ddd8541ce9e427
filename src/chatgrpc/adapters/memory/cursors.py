"""What each device has acknowledged, in memory."""

from collections.abc import Sequence

from chatgrpc.adapters.memory.shelf import Shelf
from chatgrpc.ports.cursors import Cursor


class MemoryCursorStore:
    """`ports.cursors.CursorStore`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._cursors: dict[tuple[str, str], dict[str, int]] = {}

    async def save(self, cursors: Sequence[Cursor]) -> None:
        """See the port."""
        self._shelf.check_open()
        for cursor in cursors:
            device = self._cursors.setdefault((cursor.user_id, cursor.device_id), {})
            device[cursor.chat_id] = max(device.get(cursor.chat_id, 0), cursor.acked_seq)

    async def forget(self, user_id: str, device_id: str) -> None:
        """See the port."""
        self._shelf.check_open()
        self._cursors.pop((user_id, device_id), None)

    async def of_device(self, user_id: str, device_id: str) -> dict[str, int]:
        """See the port."""
        self._shelf.check_open()
        return dict(self._cursors.get((user_id, device_id), {}))
