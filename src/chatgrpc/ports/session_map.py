"""The port that says which node holds each device's stream."""

from collections.abc import Sequence
from typing import Final, Protocol

from chatgrpc.core.session_book import SessionEntry

__all__ = ["NODES_PER_DEVICE_MAX", "SessionEntry", "SessionMap", "SessionMapUnavailableError"]

NODES_PER_DEVICE_MAX: Final = 4
"""Entries that one device may have; further ones push out those that were written first, as crashed nodes leave them behind."""


class SessionMap(Protocol):
    """Which devices are connected, and where.

    Entries carry no timers that would have to be refreshed (design §5): an entry counts only while its node's incarnation is
    live in the cluster, which the reader checks. So a crash leaves entries behind that nobody believes, and ten million devices
    cost no refresh. The map may lose everything; then each node writes its own sessions back. No guarantee rests on it but the
    speed of a push.

    A device may have entries at several nodes, as one may not have noticed yet that its stream is dead; only who wrote an entry
    removes it. With one entry a device, the node with the dead stream could take the place of the one with the live stream when
    both write their sessions back, and no push would reach the device.

    Every method raises `SessionMapUnavailableError` and nothing else when the map fails, within seconds; what was to be written
    may then be written in part, or a moment later.
    """

    async def put(self, entries: Sequence[SessionEntry]) -> list[SessionEntry]:
        """Writes entries; an entry that stands already becomes the last one of its device.

        Returns the entries that the same devices have at other nodes: of two nodes that write a device at the same time, the
        second gets the first one's.
        """
        ...

    async def remove(self, entries: Sequence[SessionEntry]) -> None:
        """Removes these entries; those of the same devices at other nodes stay."""
        ...

    async def of_users(self, user_ids: Sequence[str]) -> dict[str, list[SessionEntry]]:
        """Reads the entries of many users with one trip, a device's in the order in which they were written last.

        Users without any are left out, and so is what stands there and is no entry.
        """
        ...

    async def stands(self, user_id: str) -> bool:
        """Whether the user has entries; fails if the map does not take writes just now, whatever it would answer to a read."""
        ...


class SessionMapUnavailableError(Exception):
    """The map did not answer. Pushes may be left out meanwhile: devices find by their heartbeats what they miss."""
