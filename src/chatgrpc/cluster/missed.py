"""Whom events let in or out that were pushed and did not come. Nothing here knows of time: the simulator runs it too."""

from collections.abc import Collection, Sequence
from typing import Protocol

from chatgrpc.core.damage import stored_chat
from chatgrpc.core.doubts import users_changed
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.epochs import SEQ_MAX

_BYTES_MAX = 1 << 20


class EventReader(Protocol):
    """As much of `ports.row_store.CommittedLog` as is read here."""

    async def read_after(
        self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int
    ) -> Sequence[StoredEvent]:
        """See there."""
        ...

    async def chat_view(self, chat_id: str) -> bytes:
        """See there."""
        ...


async def users_concerned(reader: EventReader, chat_id: str, missed: Missed, events_max: int) -> Collection[str]:
    """The users whose memberships may be others than they were before these events.

    At most `events_max` events are read. If there are more, or nobody knows how many, that is everybody too who is in the
    chat, or lately was: a session that was not told of its user's coming and going does not know the chat.

    Raises:
        StoreError: they cannot be read.
        DamageError: what is stored cannot be right.
    """
    after_seq = max(missed.after_seq, missed.seq - events_max)
    events = await reader.read_after(chat_id, after_seq, missed.seq, events_max, _BYTES_MAX)
    user_ids = users_changed(chat_id, events)
    if not missed.after_seq or after_seq + len(events) < missed.seq or after_seq > missed.after_seq:
        chat = stored_chat(chat_id, await reader.chat_view(chat_id), SEQ_MAX)  # it may be later than what was missed
        user_ids.update(member.user_id for member in chat.members)
        user_ids.update(former.user_id for former in chat.former_members)
    return user_ids
