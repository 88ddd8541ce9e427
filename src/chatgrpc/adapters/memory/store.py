"""The ports of one engine, in memory."""

from chatgrpc.adapters.memory.accounts import MemoryDeviceStore, MemoryProfileStore
from chatgrpc.adapters.memory.chat_log import MemoryChatLog
from chatgrpc.adapters.memory.cursors import MemoryCursorStore
from chatgrpc.adapters.memory.epochs import MemoryEpochCounter
from chatgrpc.adapters.memory.receipts import MemoryReceiptStore
from chatgrpc.adapters.memory.shelf import Shelf


class MemoryStore:
    """A store that lives as long as the object. Every call is done when it first runs; none waits for another."""

    def __init__(self) -> None:
        self._shelf = Shelf()
        self.log = MemoryChatLog(self._shelf)
        self.receipts = MemoryReceiptStore(self._shelf, self.log)
        self.cursors = MemoryCursorStore(self._shelf)
        self.profiles = MemoryProfileStore(self._shelf)
        self.devices = MemoryDeviceStore(self._shelf)
        self.epochs = MemoryEpochCounter(self._shelf)

    async def close(self) -> None:
        """Ends it; calls after it raise `StoreUnavailableError`."""
        self._shelf.close()
