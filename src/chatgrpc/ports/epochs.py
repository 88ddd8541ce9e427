"""The port of ownership: who may order chats, and since when."""

from typing import Protocol


class EpochCounter(Protocol):
    """The embedded owner's epoch (design §4): one process owns all shards, and each start is a new epoch."""

    async def next_epoch(self) -> int:
        """Raises the counter durably and returns it: 1, 2, 3, …"""
        ...
