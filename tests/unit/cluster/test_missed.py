"""Whom the events concern that were pushed and did not come, whoever they let in or out."""

from collections.abc import Sequence

import pytest

from chatgrpc.cluster.missed import users_concerned
from chatgrpc.core.damage import DamageError
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.entries import StoredEvent
from chatgrpc.core.fold import apply_event
from chatgrpc.v1 import chat_pb2, content_pb2


class Chat:
    """One chat's log, and its state."""

    def __init__(self) -> None:
        self.state = chat_pb2.Chat(chat_id="g.1")
        self.events: list[StoredEvent] = []
        self.read: list[tuple[int, int]] = []

    def append(self, content: content_pb2.Content) -> int:
        event = chat_pb2.ChatEvent(chat_id="g.1", seq=len(self.events) + 1, sender_user_id="alice", content=content)
        apply_event(self.state, event)
        self.events.append(StoredEvent(event.seq, event.SerializeToString()))
        return event.seq

    def texts(self, count: int) -> None:
        for _ in range(count):
            self.append(content_pb2.Content(text=content_pb2.TextContent(text="hi")))

    async def read_after(
        self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int
    ) -> Sequence[StoredEvent]:
        """See `EventReader`."""
        self.read.append((after_seq, stated_seq))
        return self.events[after_seq:stated_seq][:limit]

    async def chat_view(self, chat_id: str) -> bytes:
        """See `EventReader`."""
        return self.state.SerializeToString()


@pytest.fixture
def chat() -> Chat:
    chat = Chat()
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    for user_id in ("alice", "bob"):
        created.members.add(user_id=user_id, joined_seq=1)
    chat.append(content_pb2.Content(chat_created=created))
    return chat


async def test_events_that_are_all_read_concern_whom_they_let_in_or_out(chat: Chat) -> None:
    chat.texts(3)
    chat.append(content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"])))
    assert await users_concerned(chat, "g.1", Missed(1, 5), 4) == {"carol"}
    assert chat.read == [(1, 5)]


async def test_of_more_than_are_read_everybody_is_concerned_who_is_in_the_chat(chat: Chat) -> None:
    chat.texts(5)
    assert await users_concerned(chat, "g.1", Missed(1, 6), 4) == {"alice", "bob"}
    assert await users_concerned(chat, "g.1", Missed(0, 6), 100) == {"alice", "bob"}


async def test_of_more_than_are_read_those_are_concerned_too_who_came_and_went(chat: Chat) -> None:
    """Their sessions do not know the chat, so that no head tells them of what they may see of it."""
    chat.append(content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"])))
    chat.append(content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="carol")))
    chat.texts(6)
    assert await users_concerned(chat, "g.1", Missed(1, 9), 4) == {"alice", "bob", "carol"}


async def test_what_is_no_event_or_no_state_is_said_to_be_none(chat: Chat) -> None:
    chat.texts(3)
    chat.events[2] = StoredEvent(3, b"\xff\xff garbage")
    with pytest.raises(DamageError):
        await users_concerned(chat, "g.1", Missed(1, 4), 10)
    chat.events[2] = StoredEvent(3, chat.events[1].event)
    with pytest.raises(DamageError, match="another place"):
        await users_concerned(chat, "g.1", Missed(1, 4), 10)
    chat.state = chat_pb2.Chat(chat_id="g.2", as_of_seq=1)
    with pytest.raises(DamageError, match="another chat"):
        await users_concerned(chat, "g.1", Missed(0, 2), 10)
