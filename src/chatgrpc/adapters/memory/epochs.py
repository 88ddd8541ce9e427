"""The embedded owner's epoch in memory."""

from chatgrpc.adapters.memory.shelf import Shelf


class MemoryEpochCounter:
    """`ports.epochs.EpochCounter`; starts anew with the process, as the log beside it does."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._epoch = 0

    async def next_epoch(self) -> int:
        """See the port."""
        self._shelf.check_open()
        self._epoch += 1
        return self._epoch
