"""The port of what each device has acknowledged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last event of a chat that a device acknowledged."""

    user_id: str
    device_id: str
    chat_id: str
    acked_seq: int


class CursorStore(Protocol):
    """Keeps cursors as watermarks: a stored cursor never falls. Written lazily, like receipts, and safe when stale."""

    async def save(self, cursors: Sequence[Cursor]) -> None:
        """Raises stored cursors to these."""
        ...

    async def forget(self, user_id: str, device_id: str) -> None:
        """Removes the cursors of a device that does not come again. Those that are saved meanwhile may stay or not."""
        ...

    async def of_device(self, user_id: str, device_id: str) -> dict[str, int]:
        """Reads a device's cursors: chat id to seq."""
        ...
