"""The history as a node among many reads it: up to heads that owners state, from the store.

The order of the reads is what makes them right. A head that was stated before a membership is read says up to where that
membership is known to hold; a page is read up to a head that was stated before.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from chatgrpc.cluster.memberships import membership_in, memberships_of_user, past_membership_in
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.ports.errors import ChatDamagedError, StoreUnavailableError
from chatgrpc.ports.row_store import CommittedLog

_HEAD_TIMEOUT_S = 8.0
"""Outlasts the lease of an owner that crashed, and the next one's way in."""
_HELLO_TIMEOUT_S = 2.0
_BEYOND_MAX = 1_000
"""Chats beyond a page of silent ones of which one is looked for that can be read."""


class ClusterHistory:
    """`ports.chat_log.ChatReader`."""

    def __init__(
        self,
        desk: EdgeDesk,
        committed: CommittedLog,
        now_ms: Callable[[], int],
        wake_up: Callable[[], None],
        *,
        head_timeout_s: float = _HEAD_TIMEOUT_S,
        hello_timeout_s: float = _HELLO_TIMEOUT_S,
    ) -> None:
        """
        Args:
            desk: asks the owners.
            committed: the store.
            now_ms: the monotonic clock of the desk.
            wake_up: lets a tick send what the desk has to ask.
            head_timeout_s: how long an owner may take to state a head.
            hello_timeout_s: the same, while a device waits that can be let in without it.
        """
        self._hello_timeout_s = hello_timeout_s
        self._head_timeout_s = head_timeout_s
        self._desk = desk
        self._committed = committed
        self._now_ms = now_ms
        self._wake_up = wake_up

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port; `head_event` is left empty, since only owners want it."""
        (head_seq,) = await self.heads([chat_id])
        chat = await self._committed.chat_view(chat_id)
        if head_seq and not chat:
            raise ChatDamagedError(chat_id, f"it has {head_seq} events, and no state is stored")
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

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        """See the port; of a chat whose owner is silent there is no interval, so that it does not hide the others.

        They may be all of a page, as of a short one: who asks for the next must come past them. So it is the first page only
        that fails, and only if no chat beyond it can be read either.
        """
        memberships, unknown = await self._memberships(user_id, after_chat_id, limit, self._head_timeout_s, present_only)
        if unknown and not memberships and not after_chat_id:
            beyond, _ = await self._memberships(user_id, unknown[-1], _BEYOND_MAX, self._hello_timeout_s, present_only)
            if not beyond:
                raise _silent_owner()
        silent = [Membership(chat_id, (), 0) for chat_id in unknown]
        return sorted(memberships + silent, key=lambda membership: membership.chat_id)

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See the port."""
        return await self._memberships(user_id, after_chat_id, limit, self._hello_timeout_s, present_only)

    async def _memberships(
        self, user_id: str, after_chat_id: str, limit: int, timeout_s: float, present_only: bool
    ) -> tuple[list[Membership], list[str]]:
        async def heads(chat_ids: Collection[str]) -> Mapping[str, int]:
            stated = await self.heads_in_time(chat_ids, timeout_s)
            return {chat_id: self._known_head(chat_id, seq) for chat_id, seq in stated.items()}

        return await memberships_of_user(self._committed, heads, user_id, after_chat_id, limit, present_only=present_only)

    async def heads_in_time(self, chat_ids: Iterable[str], timeout_s: float | None = None) -> dict[str, int | None]:
        """Asks the owners for the heads of chats: those that they state in time, None for one that is damaged."""
        questions = {chat_id: _Question(self._desk, chat_id, self._now_ms()) for chat_id in chat_ids}
        if not questions:
            return {}
        self._wake_up()
        try:
            await asyncio.wait([question.head for question in questions.values()], timeout=timeout_s or self._head_timeout_s)
            return {chat_id: question.head.result() for chat_id, question in questions.items() if question.head.done()}
        finally:
            for question in questions.values():
                question.head.cancel()
                question.withdraw()

    def _known_head(self, chat_id: str, stated_seq: int | None) -> int:
        """A damaged chat is listed up to where it was known before: it must not keep its members out of their other chats."""
        return self._desk.stated_seq(chat_id) if stated_seq is None else stated_seq

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        return await membership_in(self._committed, self._head, user_id, chat_id)

    async def _head(self, chat_id: str) -> int:
        (head_seq,) = await self.heads([chat_id])
        return head_seq

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        return await past_membership_in(self._committed, user_id, chat_id)

    async def has_been_member(self, user_id: str, chat_id: str) -> bool:
        """See the port."""
        return bool(await self._committed.intervals(user_id, chat_id))

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        return await self._committed.count_groups(user_ids)

    async def heads(self, chat_ids: Iterable[str]) -> list[int]:
        """Asks the owners for the heads of chats; 0 for a chat that has no event.

        Raises:
            StoreUnavailableError: an owner did not answer in time.
            ChatDamagedError: the owner of one of them cannot tell.
        """
        asked = list(chat_ids)
        stated = await self.stated_heads(asked)
        heads = []
        for chat_id in asked:
            seq = stated[chat_id]
            if seq is None:
                raise ChatDamagedError(chat_id, "its owner refuses it")
            heads.append(seq)
        return heads

    async def stated_heads(self, chat_ids: Iterable[str]) -> dict[str, int | None]:
        """Asks the owners for the heads of chats; None for one that is damaged.

        Raises:
            StoreUnavailableError: an owner did not answer in time.
        """
        wanted = set(chat_ids)
        stated = await self.heads_in_time(wanted)
        if len(stated) < len(wanted):
            raise _silent_owner()
        return stated


def _silent_owner() -> StoreUnavailableError:
    return StoreUnavailableError(
        "the node that orders a chat did not answer in time, so where the chat ends is not known. Try again in a moment"
    )


class _Question:
    """Waits for the head of a chat."""

    def __init__(self, desk: EdgeDesk, chat_id: str, now_ms: int) -> None:
        self.head: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._desk = desk
        self._chat_id = chat_id
        self._callback = self._answered
        desk.ask_head(chat_id, self._callback, now_ms)

    def withdraw(self) -> None:
        """Nobody waits any more; nothing if it is answered."""
        if self.head.cancelled():
            self._desk.withdraw_head(self._chat_id, self._callback)

    def _answered(self, seq: int | None) -> None:
        if not self.head.done():
            self.head.set_result(seq)
