"""Pages of history, read by the server's own code on virtual time."""

from collections.abc import Awaitable, Callable
from typing import cast

from chatgrpc.core.entries import Membership, StoredEvent
from chatgrpc.core.limits import Limits
from chatgrpc.edge.history import Page, Side, read_page
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.v1 import session_pb2

ReadRun = Callable[[str, int, int, int], Awaitable[list[StoredEvent]]]


class _Reader:
    """As much of `ports.chat_log.ChatReader` as a page needs."""

    def __init__(self, read_after: ReadRun, read_before: ReadRun) -> None:
        self._read_after = read_after
        self._read_before = read_before

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port; the simulated store reads one bucket at a time."""
        events: list[StoredEvent] = []
        while len(events) < min(limit, up_to_seq - after_seq):
            events += await self._read_after(chat_id, after_seq + len(events), up_to_seq, limit - len(events))
        return events

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        return await self._read_before(chat_id, before_seq, down_to_seq, limit)


async def read_history(
    read_after: ReadRun, read_before: ReadRun, membership: Membership, request: session_pb2.FetchHistory, limits: Limits
) -> Page:
    """Reads the page that a device asked for."""
    reader = cast("ChatReader", _Reader(read_after, read_before))
    side: Side = "before"
    seq = membership.head_seq + 1
    match request.WhichOneof("from"):
        case "before_seq":
            seq = request.before_seq
        case "after_seq":
            side, seq = "after", request.after_seq
        case "around_seq":
            side, seq = "around", request.around_seq
    return await read_page(reader, membership, side, seq, limit=request.limit, limits=limits)
