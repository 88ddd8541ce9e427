"""The history as a node among many reads it: up to heads that owners state, from the store.

The order of the reads is what makes them right. A head that was stated before a membership is read says up to where that
membership is known to hold; a page is read up to a head that was stated before.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.visibility import last_change
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.ports.row_store import CommittedLog

_HEAD_TIMEOUT_S = 8.0
"""Outlasts the lease of an owner that crashed, and the next one's way in."""


class ClusterLog:
    """`ports.chat_log.ChatReader`."""

    def __init__(self, desk: EdgeDesk, committed: CommittedLog, now_ms: Callable[[], int], wake_up: Callable[[], None]) -> None:
        """`now_ms` is the monotonic clock of the desk; `wake_up` lets a tick send what the desk has to ask."""
        self._desk = desk
        self._committed = committed
        self._now_ms = now_ms
        self._wake_up = wake_up

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port; `head_event` is left empty, since only owners want it."""
        (head_seq,) = await self.heads([chat_id])
        chat = await self._committed.chat_view(chat_id)
        return StoredChat(chat, head_seq, b"") if chat else None

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port; `up_to_seq` is a head that this log or an owner stated."""
        if after_seq >= up_to_seq:
            return []
        return await self._committed.read_after(chat_id, after_seq, up_to_seq, limit, bytes_max)

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port; `before_seq - 1` is at most a head that this log or an owner stated."""
        if before_seq <= down_to_seq:
            return []
        return await self._committed.read_before(chat_id, before_seq, down_to_seq, limit, bytes_max)

    async def memberships(self, user_id: str, after_chat_id: str, limit: int) -> list[Membership]:
        """See the port."""
        listed = dict(await self._committed.intervals_of_user(user_id, after_chat_id, limit))
        if not listed:
            return []
        heads = await self.heads(listed)
        again = dict(await self._committed.intervals_of_user(user_id, after_chat_id, limit))
        memberships = []
        for chat_id, head_seq in zip(listed, heads, strict=True):
            intervals = again.get(chat_id, listed[chat_id])
            memberships.append(Membership(chat_id, intervals, max(head_seq, last_change(intervals))))
        return memberships

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        (head_seq,) = await self.heads([chat_id])
        intervals = await self._committed.intervals(user_id, chat_id)
        return Membership(chat_id, intervals, max(head_seq, last_change(intervals))) if intervals else None

    async def count_chats(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        return await self._committed.count_chats(user_ids)

    async def heads(self, chat_ids: Iterable[str]) -> list[int]:
        """Asks the owners for the heads of chats; 0 for a chat that has no event.

        Raises:
            StoreUnavailableError: an owner did not answer in time.
        """
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[int]] = []
        for chat_id in chat_ids:
            head: asyncio.Future[int] = loop.create_future()
            waiting.append(head)
            self._desk.ask_head(chat_id, _set(head), self._now_ms())
        self._wake_up()
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                return await asyncio.gather(*waiting)
        except TimeoutError:
            raise StoreUnavailableError(
                "the owner of a chat does not answer: its shard is on its way to another node"
            ) from None


def _set(future: asyncio.Future[int]) -> Callable[[int], None]:
    def callback(seq: int) -> None:
        if not future.done():
            future.set_result(seq)

    return callback
