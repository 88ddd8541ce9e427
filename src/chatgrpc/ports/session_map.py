"""The port that says which node holds each device's stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """One live stream."""

    user_id: str
    device_id: str
    node_id: str
    """The incarnation of the node that holds it: another one after each start of the process."""


class SessionMap(Protocol):
    """Which devices are connected, and where.

    Entries carry no timers (design §5): an entry counts only while its node's incarnation is live in the cluster, which the
    reader checks. So a crash leaves entries behind that nobody believes, and ten million devices cost no refresh. The map may
    lose everything; then each node writes its own sessions back. Nothing of the guarantees rests on it but the speed of a push.

    Every method raises `SessionMapUnavailableError` and nothing else when the map fails, within seconds; what was to be written
    may then be written in part, or a moment later.
    """

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """Writes entries; a device has one, and the last one written counts.

        Returns the entries that named another node and were replaced: of two nodes that write a device at the same time, the
        second gets the first one's. A trip that had to be repeated may leave some out.
        """
        ...

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        """Removes entries that still stand as given; a device that has gone to another node meanwhile keeps its entry there."""
        ...

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        """Reads the entries of many users with one trip; users without any are left out."""
        ...


class SessionMapUnavailableError(Exception):
    """The map did not answer. Pushes may be left out meanwhile: devices find by their heartbeats what they miss."""
