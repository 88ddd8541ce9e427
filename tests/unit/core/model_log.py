"""A log as simple as can be, that checks what is appended to it: the model behind the core's state machines."""

from collections.abc import Sequence

from chatgrpc.core.entries import ChatView, Entry, Membership, MemberView, StoredChat, StoredEvent
from chatgrpc.core.events import erased
from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import is_group_chat_id
from chatgrpc.core.visibility import Interval
from chatgrpc.v1 import chat_pb2, content_pb2


class ModelLog:
    """Chats as lists of events; who was a member when is worked out here, without the code under test."""

    def __init__(self) -> None:
        self.events: dict[str, list[chat_pb2.ChatEvent]] = {}
        self.members: dict[str, list[frozenset[str]]] = {}
        """Chat id to the members after event 0, 1, 2, …"""
        self.views: dict[str, bytes] = {}
        self.intervals: dict[str, dict[str, dict[int, int]]] = {}
        """User id to chat id to joined_seq to left_seq, as the stored views say."""

    def head_seq(self, chat_id: str) -> int:
        return len(self.events.get(chat_id, ()))

    def is_member(self, chat_id: str, user_id: str, seq: int | None = None) -> bool:
        """Whether the user is a member after the event `seq`; None = now."""
        members = self.members.get(chat_id, [frozenset()])
        return user_id in members[-1 if seq is None else seq]

    def visible_seqs(self, chat_id: str, user_id: str) -> list[int]:
        """The events that the user may see: those before or after which they are a member."""
        members = self.members.get(chat_id, [frozenset()])
        return [seq for seq in range(1, len(members)) if user_id in members[seq] or user_id in members[seq - 1]]

    def append(self, entries: Sequence[Entry]) -> None:
        """Appends, and checks G2, G3, and that each event's view is what its log makes of it."""
        for entry in entries:
            event = chat_pb2.ChatEvent.FromString(entry.event)
            log = self.events.setdefault(entry.chat_id, [])
            assert entry.seq == event.seq == len(log) + 1, "a gap, or a seq given twice"
            assert event.chat_id == entry.chat_id
            assert len(event.message_id) == len(event.client_message_id) == 16
            assert not log or not 0 < log[-1].sent_at_ms - event.sent_at_ms <= 1_000, "only a step may set the stamps back"
            key = (event.sender_user_id, event.client_message_id)
            assert key not in {(e.sender_user_id, e.client_message_id) for e in log}, "committed twice"
            log.append(event)
            self._note_members(event)
            self._check_view(entry)
            for seq, other in enumerate(log[: entry.seq - 1], start=1):
                amends_seq = other.content.edit.target_seq if other.content.WhichOneof("body") == "edit" else 0
                if entry.erases_seq and entry.erases_seq in {seq, amends_seq}:
                    log[seq - 1] = chat_pb2.ChatEvent.FromString(erased(other.SerializeToString()))

    def put(self, chat_id: str, content: content_pb2.Content, sender_user_id: str = "bob") -> Entry:
        """Appends an event that nobody checks, with its view."""
        seq = self.head_seq(chat_id) + 1
        event = chat_pb2.ChatEvent(
            chat_id=chat_id,
            seq=seq,
            message_id=seq.to_bytes(16, "big"),
            client_message_id=seq.to_bytes(16, "big"),
            sender_user_id=sender_user_id,
            sent_at_ms=seq,
            content=content,
        )
        chat = chat_pb2.Chat.FromString(self.views.get(chat_id, b""))
        before = {member.user_id: member.joined_seq for member in chat.members}
        view = None
        if apply_event(chat, event):
            after = {member.user_id: member.joined_seq for member in chat.members}
            views = [MemberView(user_id, Interval(seq)) for user_id in after.keys() - before.keys()]
            views += [MemberView(user_id, Interval(before[user_id], seq)) for user_id in before.keys() - after.keys()]
            view = ChatView(chat.SerializeToString(), tuple(views))
        entry = Entry(chat_id, seq, 1, event.SerializeToString(), view=view)
        self.append([entry])
        return entry

    def _note_members(self, event: chat_pb2.ChatEvent) -> None:
        history = self.members.setdefault(event.chat_id, [frozenset()])
        members = set(history[-1])
        match event.content.WhichOneof("body"):
            case "chat_created":
                members = {member.user_id for member in event.content.chat_created.members}
            case "members_added":
                assert not members & set(event.content.members_added.user_ids), "added twice"
                members |= set(event.content.members_added.user_ids)
            case "member_removed":
                members.remove(event.content.member_removed.user_id)
        history.append(frozenset(members))

    def _check_view(self, entry: Entry) -> None:
        fresh = chat_pb2.Chat()
        for event in self.events[entry.chat_id]:
            apply_event(fresh, event)
        if entry.view is not None:
            self.views[entry.chat_id] = entry.view.chat
            for member in entry.view.members:
                intervals = self.intervals.setdefault(member.user_id, {}).setdefault(entry.chat_id, {})
                intervals[member.interval.joined_seq] = member.interval.left_seq
        assert chat_pb2.Chat.FromString(self.views[entry.chat_id]) == fresh
        members = self.members[entry.chat_id][-1]
        assert {member.user_id for member in fresh.members} == members
        for user_id, chats in self.intervals.items():
            if entry.chat_id in chats:
                assert (user_id in members) == (0 in chats[entry.chat_id].values())

    def load(self, chat_id: str) -> StoredChat | None:
        log = self.events.get(chat_id)
        return StoredChat(self.views[chat_id], len(log), log[-1].SerializeToString()) if log else None

    def read_after(self, chat_id: str, after_seq: int, up_to_seq: int) -> list[StoredEvent]:
        log = self.events.get(chat_id, [])
        return [StoredEvent(event.seq, event.SerializeToString()) for event in log[after_seq:up_to_seq]]

    def membership(self, user_id: str, chat_id: str) -> Membership | None:
        intervals = self.intervals.get(user_id, {}).get(chat_id)
        if intervals is None:
            return None
        ordered = tuple(Interval(joined_seq, intervals[joined_seq]) for joined_seq in sorted(intervals))
        return Membership(chat_id, ordered, self.head_seq(chat_id))

    def memberships(self, user_id: str) -> list[Membership]:
        found = (self.membership(user_id, chat_id) for chat_id in sorted(self.intervals.get(user_id, {})))
        return [membership for membership in found if membership is not None]

    def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        groups = [members[-1] for chat_id, members in self.members.items() if members and is_group_chat_id(chat_id)]
        return {user_id: sum(user_id in members for members in groups) for user_id in user_ids}
