"""The port that remembers for a while when users were connected last."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class LastSeen(Protocol):
    """When users who are not connected now were connected last. May forget: after a while, or everything.

    Every method raises `LastSeenUnavailableError` and nothing else when it fails, within seconds.
    """

    async def put(self, seen_ms: Mapping[str, int]) -> None:
        """Notes, by user id, times in milliseconds since the Unix epoch; a later time stays."""
        ...

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Reads times by user id with one trip; users of whom nothing is known are left out."""
        ...


class LastSeenUnavailableError(Exception):
    """It did not answer. Users are then shown without the time."""
