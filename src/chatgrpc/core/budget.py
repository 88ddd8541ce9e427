"""The budget of a node: what all its shards together may hold, however many they are."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.limits import Limits

_BUSY_SCAN_MAX = 64

Drop = Callable[[ActiveChat], bool]
"""Forgets a chat that is idle; False if it is not."""


@dataclass(slots=True)
class _Loaded:
    drop: Drop
    size_bytes: int


class Budget:
    """Counts what the shards of one node hold, and drops idle chats to make room for those that are written to.

    The longest idle chat is dropped first. One that was loaded only to answer a question is dropped before all others, and
    never makes another one go.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0
        """Contents that wait to be decided or committed."""
        self._held_of: dict[str, int] = {}  # the same by sender, of those who have some
        self.chats_bytes = 0
        """About what the loaded chats take."""
        self._last: ActiveChat | None = None
        self._chats: OrderedDict[ActiveChat, _Loaded] = OrderedDict()  # the first to go first
        self._heads: OrderedDict[str, tuple[object, int]] = OrderedDict()

    # Writes.

    def take(self, user_id: str, size_bytes: int) -> bool:
        """Counts what is to be held of a sender; False if there is no room for it, or none of theirs."""
        of_user = self._held_of.get(user_id, 0) + size_bytes
        if (
            of_user > self._limits.writes_waiting_bytes_per_user_max
            or self.held_bytes + size_bytes > self._limits.writes_waiting_bytes_max
        ):
            return False
        self._held_of[user_id] = of_user
        self.held_bytes += size_bytes
        return True

    def give(self, user_id: str, size_bytes: int) -> None:
        """It is held no more."""
        self.held_bytes -= size_bytes
        if left_bytes := self._held_of.get(user_id, 0) - size_bytes:
            self._held_of[user_id] = left_bytes
        else:
            self._held_of.pop(user_id, None)

    # Chats.

    @property
    def chats(self) -> int:
        """How many chats are loaded, or about to be."""
        return len(self._chats)

    def add(self, chat: ActiveChat, drop: Drop) -> None:
        """A chat is to be loaded. Until it is written to it is the first to go."""
        self._heads.pop(chat.chat_id, None)
        self._chats[chat] = _Loaded(drop, chat.size_bytes)
        self._chats.move_to_end(chat, last=False)
        self.chats_bytes += chat.size_bytes

    def written_to(self, chat: ActiveChat) -> None:
        """It is the last to go now, and others go for it, if there are too many."""
        loaded = self._chats[chat]
        size_bytes = chat.size_bytes
        self.chats_bytes += size_bytes - loaded.size_bytes
        loaded.size_bytes = size_bytes
        if chat is not self._last:
            self._last = chat
            self._chats.move_to_end(chat)
        if not self.has_room:
            self._make_room(chat)

    def _make_room(self, chat: ActiveChat) -> None:
        for _ in range(_BUSY_SCAN_MAX):
            if self.has_room:
                return
            first = next(iter(self._chats))
            if first is chat:
                return
            if not self._chats[first].drop(first):
                self._chats.move_to_end(first)  # so that the next scan begins behind it

    @property
    def has_room(self) -> bool:
        """Whether all chats that are loaded may stay."""
        return len(self._chats) <= self._limits.chats_active_max and self.chats_bytes <= self._limits.chats_active_bytes_max

    def remove(self, chat: ActiveChat) -> None:
        """The chat is not loaded any more."""
        self.chats_bytes -= self._chats.pop(chat).size_bytes
        if chat is self._last:
            self._last = None

    # Heads of chats that are not loaded.

    def remember_head(self, owner: object, chat_id: str, seq: int) -> None:
        """Nobody but this owner commits anything to the chat, so this stays its head until it is loaded again."""
        self._heads[chat_id] = (owner, seq)
        self._heads.move_to_end(chat_id)
        if len(self._heads) > self._limits.heads_remembered_max:
            self._heads.popitem(last=False)

    def head_of(self, owner: object, chat_id: str) -> int:
        """The head that this owner remembers of a chat that is not loaded; 0 for none."""
        remembered_by, seq = self._heads.get(chat_id, (None, 0))
        return seq if remembered_by is owner else 0
