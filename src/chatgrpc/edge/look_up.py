"""What the owner of a chat looks up in its log, read page by page: heads are kept, and what was said is let go at once."""

from collections.abc import Sequence
from typing import Protocol

from chatgrpc.core.active_chat import event_head
from chatgrpc.core.damage import DamageError
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.rules import EventHead
from chatgrpc.core.sequencer import Lookup

LOOK_UPS_AT_ONCE = 4
"""Of one node; each holds a page."""
_PAGE_EVENTS = 256
_PAGE_BYTES = 512 * 1024
"""A page is parsed in one stretch of the event loop."""


class Log(Protocol):
    """Where events are read from."""

    async def read_after(
        self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int, /
    ) -> list[StoredEvent]:
        """Reads a page."""
        ...

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Counts the groups of users."""
        ...


async def look_up(log: Log, wanted: Lookup) -> tuple[list[EventHead], dict[str, int]]:
    """Reads the heads of all ranges, in order of seq, and the counts of users' groups.

    Raises:
        StoreError: something cannot be read.
        DamageError: what is stored there is no event.
    """
    heads: list[EventHead] = []
    for after_seq, up_to_seq in wanted.ranges:
        at_seq = after_seq
        while at_seq < up_to_seq:
            page = await log.read_after(wanted.chat.chat_id, at_seq, up_to_seq, _PAGE_EVENTS, _PAGE_BYTES)
            if not page:
                raise DamageError(f"there is no row at seq {at_seq + 1}, which was committed")
            for stored in page:
                at_seq += 1
                heads.append(event_head(wanted.chat.chat_id, at_seq, stored.event))
    return heads, await log.count_groups(wanted.user_ids) if wanted.user_ids else {}
