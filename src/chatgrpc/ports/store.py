"""The ports that one engine serves together."""

from typing import Protocol

from chatgrpc.ports.accounts import DeviceStore, ProfileStore
from chatgrpc.ports.chat_log import ChatLog
from chatgrpc.ports.cursors import CursorStore
from chatgrpc.ports.receipts import ReceiptStore


class Store(Protocol):
    """Everything a node keeps for ever, in one engine."""

    @property
    def log(self) -> ChatLog:
        """The ordered history."""
        ...

    @property
    def receipts(self) -> ReceiptStore:
        """How far each user is."""
        ...

    @property
    def cursors(self) -> CursorStore:
        """How far each device is."""
        ...

    @property
    def profiles(self) -> ProfileStore:
        """What users say of themselves."""
        ...

    @property
    def devices(self) -> DeviceStore:
        """The users' devices."""
        ...

    async def close(self) -> None:
        """Finishes what was asked before, then lets the engine go. Calls after it raise `StoreUnavailableError`."""
        ...
