"""The budget of a node: what all its shards together may hold, however many they are."""

from chatgrpc.core.limits import Limits


class Budget:
    """Counts what the shards of one node hold."""

    def __init__(self, limits: Limits) -> None:
        self._bytes_max = limits.writes_waiting_bytes_max
        self.held_bytes = 0
        """Contents that wait to be decided, and events that are not committed yet."""

    def take(self, size_bytes: int) -> bool:
        """Counts what is to be held; False if there is no room for it."""
        if self.held_bytes + size_bytes > self._bytes_max:
            return False
        self.held_bytes += size_bytes
        return True

    def hold(self, size_bytes: int) -> None:
        """Counts what is held in place of something that was taken."""
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """It is held no more."""
        self.held_bytes -= size_bytes
