"""The ordered history in memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from chatgrpc.adapters.memory.shelf import Shelf
from chatgrpc.core.events import erased
from chatgrpc.core.ids import is_group_chat_id
from chatgrpc.core.visibility import is_member
from chatgrpc.ports.chat_log import ChatView, Entry, Interval, Membership, StoredChat, StoredEvent
from chatgrpc.ports.errors import StaleOwnerError


class MemoryChatLog:
    """`ports.chat_log.ChatLog`, as durable as the process."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._chats: dict[str, _Chat] = {}
        self._memberships: dict[str, dict[str, dict[int, int]]] = {}
        """User id to chat id to joined_seq to left_seq."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """See the port."""
        self._shelf.check_open()
        places: set[tuple[str, int]] = set()
        for entry in entries:
            place = (entry.chat_id, entry.seq)
            if place in places or (entry.chat_id in self._chats and entry.seq in self._chats[entry.chat_id].events):
                raise StaleOwnerError(f"chat {entry.chat_id} has an entry at seq {entry.seq} already")
            places.add(place)
        for entry in entries:
            chat = self._chats.setdefault(entry.chat_id, _Chat())
            chat.add(entry)
            if entry.view is not None:
                chat.state = entry.view.chat
                self._note_members(entry.chat_id, entry.view)

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port."""
        self._shelf.check_open()
        chat = self._chats.get(chat_id)
        return None if chat is None else StoredChat(chat.state, chat.head_seq, chat.events[chat.head_seq])

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        self._shelf.check_open()
        chat = self._chats.get(chat_id, _NO_CHAT)
        first, last = bisect_right(chat.seqs, after_seq), bisect_right(chat.seqs, up_to_seq)
        return chat.page(range(first, last)[:limit], bytes_max)

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        self._shelf.check_open()
        chat = self._chats.get(chat_id, _NO_CHAT)
        first, last = bisect_left(chat.seqs, down_to_seq), bisect_left(chat.seqs, before_seq)
        return chat.page(range(first, last)[::-1][:limit], bytes_max)[::-1]

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        """See the port."""
        self._shelf.check_open()
        listed = self.chats_now(user_id) if present_only else self._memberships.get(user_id, {})
        chat_ids = sorted(chat_id for chat_id in listed if chat_id > after_chat_id)
        return [self._membership(user_id, chat_id) for chat_id in chat_ids[:limit]]

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See the port; it is all or none."""
        return await self.memberships(user_id, after_chat_id, limit, present_only=present_only), []

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        self._shelf.check_open()
        return self._membership(user_id, chat_id) if chat_id in self._memberships.get(user_id, {}) else None

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        membership = await self.membership(user_id, chat_id)
        return None if membership is None or is_member(membership.intervals) else membership

    async def has_been_member(self, user_id: str, chat_id: str) -> bool:
        """See the port."""
        self._shelf.check_open()
        return chat_id in self._memberships.get(user_id, {})

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        self._shelf.check_open()
        return {user_id: sum(map(is_group_chat_id, self.chats_now(user_id))) for user_id in user_ids}

    def chats_now(self, user_id: str) -> list[str]:
        """The ids of the chats that the user is a member of now."""
        chats = self._memberships.get(user_id, {})
        return [chat_id for chat_id, intervals in chats.items() if 0 in intervals.values()]

    def _membership(self, user_id: str, chat_id: str) -> Membership:
        intervals = self._memberships[user_id][chat_id]
        ordered = tuple(Interval(joined_seq, intervals[joined_seq]) for joined_seq in sorted(intervals))
        return Membership(chat_id, ordered, self._chats[chat_id].head_seq)

    def _note_members(self, chat_id: str, view: ChatView) -> None:
        for member in view.members:
            intervals = self._memberships.setdefault(member.user_id, {}).setdefault(chat_id, {})
            intervals[member.interval.joined_seq] = member.interval.left_seq


class _Chat:
    """One chat's log and state."""

    def __init__(self) -> None:
        self.state = b""
        self.seqs: list[int] = []
        """Rising."""
        self.events: dict[int, bytes] = {}
        self._amended_by: dict[int, list[int]] = {}

    @property
    def head_seq(self) -> int:
        return self.seqs[-1]

    def add(self, entry: Entry) -> None:
        self.seqs.insert(bisect_left(self.seqs, entry.seq), entry.seq)
        self.events[entry.seq] = entry.event
        if entry.amends_seq:
            self._amended_by.setdefault(entry.amends_seq, []).append(entry.seq)
        if entry.erases_seq:
            for seq in (entry.erases_seq, *self._amended_by.get(entry.erases_seq, ())):
                if seq < entry.seq and seq in self.events:
                    self.events[seq] = erased(self.events[seq])

    def page(self, places: range, bytes_max: int) -> list[StoredEvent]:
        """The events at these places in `seqs`, up to the one that makes them larger than `bytes_max`."""
        page: list[StoredEvent] = []
        page_bytes = 0
        for place in places:
            seq = self.seqs[place]
            page.append(StoredEvent(seq, self.events[seq]))
            page_bytes += len(self.events[seq])
            if page_bytes > bytes_max:
                break
        return page


_NO_CHAT = _Chat()
