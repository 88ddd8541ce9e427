"""The sequencer against a model log, under random schedules: the guarantees G1 to G3, G6 and the sender's order (M7)."""

import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from chatgrpc.core.active_chat import ActiveChat, event_meta
from chatgrpc.core.clock import Now
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.entries import StoredChat
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.refusal import is_retryable
from chatgrpc.core.rules import EventMeta
from chatgrpc.core.sequencer import Answer, Delivery, Group, Lookup, Sequencer
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_log import ModelLog

LIMITS = Limits(
    group_members_max=4,
    chats_per_user_max=2,
    groups_by_others_max=4,
    additions_rate=Rate(1_000_000, 1),
    groups_rate=Rate(1_000_000, 1),
    joins_rate=Rate(1_000_000, 1),
    direct_chats_rate=Rate(1_000_000, 1),
    dedupe_span_max=12,
    recent_events_per_chat=2,
    chats_active_max=2,
    group_entries_max=3,
    writes_waiting_per_chat_max=24,
)
USERS = ["alice", "bob", "carol", "dave", "erin"]
LINK = "secret"
WHO = st.integers(0, 5) | st.integers(0, 9)
WHERE = st.integers(0, 2) | st.integers(0, 5)
STEPS = st.lists(
    st.sampled_from(["commit", "commit", "read", "read", "late read", "last read", "failed read", "fail", "fail but store"]),
    max_size=5,
)
"""What the store does at once after a write."""


@dataclass(eq=False)
class Message:
    """One write that a device wants committed, kept until it is."""

    write: Write
    seen_seq: int
    device_number: int
    seqs: set[int] = field(default_factory=set)
    """Seqs that results gave: one at most (G3)."""
    refused: bool = False
    """A try was refused for good; a later one, after a cut that swallowed the refusal, may still find the chat changed."""


@dataclass(eq=False)
class Device:
    """A device: what it holds, and what of its writes is not answered yet, in order."""

    user_id: str
    held: dict[str, int] = field(default_factory=dict)
    outbox: dict[str, list[Message]] = field(default_factory=dict)
    acknowledged: dict[str, list[Message]] = field(default_factory=dict)
    unsent: dict[str, int] = field(default_factory=dict)
    """Chat id to the place in its outbox from which on writes must be sent (again): go-back-N."""
    session: int = 0


@dataclass(eq=False)
class Try:
    """One submission of a message: the ticket."""

    device: Device
    session: int
    message: Message
    head_seq: int
    """Of the log, when it was submitted."""
    answered: bool = False


class Schedules(RuleBasedStateMachine):
    """Users on several devices write to chats, the store fails in all its ways, and the owner starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ModelLog()
        self.numbers = count()
        self.epoch = 0
        self.now_ms = 1_000_000
        """By the wall clock."""
        self.monotonic_ms = 5_000
        self.devices = [Device(user_id) for user_id in USERS for _ in range(2)]
        self.groups: list[str] = []
        self.tries: list[Try] = []
        self.messages: list[Message] = []
        self.start()

    def start(self) -> None:
        """A new owner: it remembers nothing."""
        self.epoch += 1
        self.sequencer = Sequencer(self.epoch, LIMITS, random.Random(self.epoch))
        self.group: Group | None = None
        self.loads: list[tuple[ActiveChat, StoredChat | None]] = []
        self.lookups: list[tuple[Lookup, list[EventMeta], dict[str, int]]] = []
        self.intervals: list[tuple[ReadIntervals, tuple[Interval, ...]]] = []
        self.delivered_seq: dict[str, int] = {}
        self.answered_seq: dict[str, int] = {}

    @initialize()
    def befriend(self) -> None:
        """Two groups, one of them with a link, and a direct chat; all of it committed and held by everyone."""
        for who in (0, 2):
            self.create_group(who, {"alice", "bob", "carol"}, [])
        self.change_group(0, 0, "alice", "link", False, [])
        self.text(0, 0, 0, [])
        self.settle()
        for who in range(len(self.devices)):
            self.sync(who)

    # Writes.

    def compose(self, device: Device, chat_id: str, content: content_pb2.Content, **fields: Any) -> Message:
        number = next(self.numbers)
        seen_seq = device.held.get(chat_id, 0)
        key = number.to_bytes(16)
        if content.WhichOneof("body") == "chat_created":
            chat_id = group_chat_id(device.user_id, key)
            self.groups.append(chat_id)
        write = Write(chat_id, device.user_id, content, key, seen_seq, "device", **fields)
        message = Message(write, seen_seq, self.devices.index(device))
        self.messages.append(message)
        device.outbox.setdefault(chat_id, []).append(message)
        self.send(device, chat_id)
        return message

    def send(self, device: Device, chat_id: str) -> None:
        """Sends what is to be sent to a chat, in order, from the first that failed on."""
        outbox = device.outbox[chat_id]
        first = device.unsent.pop(chat_id, len(outbox) - 1)
        for message in outbox[first:]:
            attempt = Try(device, device.session, message, self.log.head_seq(chat_id))
            self.tries.append(attempt)
            content = content_pb2.Content()
            content.CopyFrom(message.write.content)
            write = message.write
            self.sequencer.submit(
                attempt,
                Write(
                    write.chat_id,
                    write.sender_user_id,
                    content,
                    write.client_message_id,
                    message.seen_seq,
                    write.sender_device_id,
                    write.peer_user_id,
                    write.join_token,
                    stream_id=f"{message.device_number}.{device.session}",
                ),
                self.now,
            )
        self.progress()

    def pick(self, index: int) -> Device:
        return self.devices[index % len(self.devices)]

    def chat_of(self, device: Device, index: int) -> tuple[str, str]:
        """One of the chats that a device may write to, or may not, and the peer if it is a direct one."""
        peer = "bob" if device.user_id == "alice" else "alice"
        choices = [(chat_id, "") for chat_id in self.groups]
        choices += [(direct_chat_id(device.user_id, peer), peer), (self_chat_id(device.user_id), "")]
        return choices[index % len(choices)]

    def work(self, steps: list[str]) -> None:
        """Lets the store do some steps, as far as there is something to do."""
        for step in steps:
            if step in {"commit", "fail", "fail but store"}:
                if self.group is not None:
                    self.commit() if step == "commit" else self.fail_to_commit(stored=step == "fail but store")
            elif self.loads or self.lookups or self.intervals:
                self.finish_read(-1 if step == "last read" else 0, step != "failed read", step != "late read")

    def settle(self) -> None:
        """Lets the store do all there is to do."""
        while self.group is not None or self.loads or self.lookups or self.intervals:
            self.work(["read", "commit"])

    @rule(who=WHO, where=WHERE, reply_to_seq=st.integers(0, 3), steps=STEPS)
    def text(self, who: int, where: int, reply_to_seq: int, steps: list[str]) -> None:
        device = self.pick(who)
        chat_id, peer = self.chat_of(device, where)
        content = content_pb2.Content(text=content_pb2.TextContent(text="hi"), reply_to_seq=reply_to_seq)
        self.compose(device, chat_id, content, peer_user_id=peer)
        self.work(steps)

    @rule(who=WHO, where=WHERE, how_many=st.integers(2, 8), steps=STEPS)
    def burst(self, who: int, where: int, how_many: int, steps: list[str]) -> None:
        for _ in range(how_many):
            self.text(who, where, 0, [])
        self.work(steps)

    @rule(
        who=WHO,
        where=WHERE,
        arm=st.sampled_from(["edit", "edit", "delete", "delete", "reaction", "encrypted"]),
        which=st.integers(-3, 3),
        steps=STEPS,
    )
    def refer(self, who: int, where: int, arm: str, which: int, steps: list[str]) -> None:
        """To one of the sender's own texts, or to any event near the beginning."""
        device = self.pick(who)
        chat_id, peer = self.chat_of(device, where)
        own = [
            seq
            for message in self.messages
            if message.write.content.HasField("text")
            for seq in message.seqs
            if message.write.chat_id == chat_id and message.write.sender_user_id == device.user_id
        ]
        target_seq = own[which % len(own)] if which < 0 and own else abs(which) + 1
        content = {
            "edit": content_pb2.Content(edit=content_pb2.EditContent(target_seq=target_seq, text="ho")),
            "delete": content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=target_seq)),
            "reaction": content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=target_seq, emoji="👍")),
            "encrypted": content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="s", ciphertext=b"c")),
        }[arm]
        self.compose(device, chat_id, content, peer_user_id=peer)
        self.work(steps)

    @rule(who=WHO, target_seq=st.integers(1, 9), hide=st.booleans(), steps=STEPS)
    def settings_of_my_own(self, who: int, target_seq: int, hide: bool, steps: list[str]) -> None:
        device = self.pick(who)
        chat_id = self_chat_id(device.user_id)
        content = content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=chat_id, archived=True))
        if hide:
            content = content_pb2.Content(hide=content_pb2.HideContent(chat_id=chat_id, seqs=[target_seq]))
        self.compose(device, chat_id, content)
        self.work(steps)

    @rule(who=WHO, others=st.sets(st.sampled_from(USERS), max_size=4), steps=STEPS)
    def create_group(self, who: int, others: set[str], steps: list[str]) -> None:
        if len(self.groups) == 4:
            return
        device = self.pick(who)
        created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
        created.members.add(user_id=device.user_id, role=content_pb2.MEMBER_ROLE_OWNER)
        for user_id in sorted(others - {device.user_id}):
            created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER)
        self.compose(device, "", content_pb2.Content(chat_created=created))
        self.work(steps)

    @rule(
        who=WHO,
        where=st.integers(0, 1),
        whom=st.sampled_from(USERS),
        arm=st.sampled_from(["add", "add", "remove", "leave", "role", "title", "mute", "link", "no_link", "join", "decline"]),
        flag=st.booleans(),
        steps=STEPS,
    )
    def change_group(self, who: int, where: int, whom: str, arm: str, flag: bool, steps: list[str]) -> None:
        device = self.pick(who)
        chat_id = self.groups[where % len(self.groups)]
        content = content_pb2.Content()
        match arm:
            case "add":
                content.members_added.user_ids.extend([whom, device.user_id] if flag else [whom])
            case "remove":
                content.member_removed.user_id = whom
            case "leave":
                content.member_removed.user_id = device.user_id
            case "role":
                content.role_changed.user_id = whom
                content.role_changed.role = content_pb2.MEMBER_ROLE_OWNER if flag else content_pb2.MEMBER_ROLE_ADMIN
            case "title":
                content.chat_info_changed.title = "t"
            case "mute":
                content.member_muted.user_id = whom
                content.member_muted.muted_until_ms = self.now_ms + 5_000 if flag else 0
            case "link":
                content.join_link_changed.join_link.token = LINK
                content.join_link_changed.join_link.approval_required = flag
            case "no_link":
                content.join_link_changed.SetInParent()
            case "join":
                content.join_requested.SetInParent()
            case "decline":
                content.join_declined.user_id = whom
        self.compose(device, chat_id, content, join_token=LINK if arm == "join" else "")
        self.work(steps)

    @rule(who=WHO, lost=st.integers(0, 3))
    def come_again(self, who: int, lost: int) -> None:
        """The device's stream is cut, with the last few results on it; on a new one it sends again what it knows nothing of.

        Its writes that are under way go on.
        """
        device = self.pick(who)
        device.session += 1
        for chat_id, outbox in device.outbox.items():
            acknowledged = device.acknowledged.setdefault(chat_id, [])
            first = max(0, len(acknowledged) - lost)
            outbox[:0] = acknowledged[first:]
            del acknowledged[first:]
            if outbox:
                device.unsent[chat_id] = 0
                self.send(device, chat_id)

    @rule(who=WHO)
    def send_failed_again(self, who: int) -> None:
        device = self.pick(who)
        for chat_id in list(device.unsent):
            self.send(device, chat_id)

    @rule(who=WHO)
    def sync(self, who: int) -> None:
        """The device receives everything that is committed."""
        device = self.pick(who)
        for chat_id in self.log.events:
            if self.log.is_member(chat_id, device.user_id):
                device.held[chat_id] = self.log.head_seq(chat_id)

    @property
    def now(self) -> Now:
        return Now(self.now_ms, self.monotonic_ms)

    @rule(passed_ms=st.sampled_from([1, 1_000, 61_000, LIMITS.edit_window_ms]))
    def pass_time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.monotonic_ms += passed_ms

    @rule(backwards_ms=st.integers(1, 10_000))
    def set_the_clock_back(self, backwards_ms: int) -> None:
        self.now_ms -= backwards_ms

    # The store.

    @precondition(lambda self: self.group is not None)
    @rule()
    def commit(self) -> None:
        assert self.group is not None
        group, self.group = self.group, None
        self.log.append(group.entries)
        self.take_deliveries(group, self.sequencer.committed(group))
        for chat in self.sequencer.take_admitted():
            self.sequencer.go_on(chat, self.now)
        self.progress()

    @precondition(lambda self: self.group is not None)
    @rule(stored=st.booleans())
    def fail_to_commit(self, stored: bool) -> None:
        """Cleanly, or with an outcome that nobody knows, and that was a success."""
        assert self.group is not None
        group, self.group = self.group, None
        if stored:
            self.log.append(group.entries)
        for entry in group.entries:
            self.delivered_seq.pop(entry.chat_id, None)
        self.sequencer.failed(group)
        self.progress()

    @precondition(lambda self: self.loads or self.lookups or self.intervals)
    @rule(index=st.integers(0, 9), works=st.sampled_from([True, True, True, False]), early=st.booleans())
    def finish_read(self, index: int, works: bool, early: bool) -> None:
        """A read returns what the store held when it began, or what it holds now."""
        index %= len(self.loads) + len(self.lookups) + len(self.intervals)
        if index >= len(self.loads) + len(self.lookups):
            read, found = self.intervals.pop(index - len(self.loads) - len(self.lookups))
            if works:
                self.sequencer.intervals_read(read, found if early else self.intervals_of(read), self.now)
            else:
                self.sequencer.intervals_failed(read)
        elif index < len(self.loads):
            chat, stored = self.loads.pop(index)
            if works:
                self.sequencer.loaded(chat, stored if early else self.log.load(chat.chat_id), self.now)
            else:
                self.sequencer.read_failed(chat)
        else:
            lookup, heads, counts = self.lookups.pop(index - len(self.loads))
            if not works:
                self.sequencer.read_failed(lookup.chat)
            elif early:
                self.sequencer.looked_up(lookup, heads, counts, self.now)
            else:
                self.sequencer.looked_up(lookup, *self.look_up(lookup), self.now)
        self.progress()

    @rule(stored=st.booleans(), really=st.sampled_from([True, False, False, False]))
    def restart(self, stored: bool, really: bool) -> None:
        """The owner's process dies, with or without its last group in the log; every device comes again."""
        if not really:
            return
        if self.group is not None and stored:
            self.log.append(self.group.entries)
        for attempt in self.tries:
            attempt.answered = True  # nobody will answer it any more
        self.start()
        for who in range(len(self.devices)):
            self.come_again(who, 1)

    @rule(chat=st.integers(0, 5))
    def look_at_a_chat(self, chat: int) -> None:
        """Someone else wants the chat loaded: an audience, a receipt."""
        self.sequencer.activate(self.groups[chat % len(self.groups)])
        self.progress()

    # The shell.

    def intervals_of(self, read: ReadIntervals) -> tuple[Interval, ...]:
        membership = self.log.membership(read.user_id, read.chat_id)
        return membership.intervals if membership is not None else ()

    def look_up(self, lookup: Lookup) -> tuple[list[EventMeta], dict[str, int]]:
        chat_id = lookup.chat.chat_id
        events = [
            event for after_seq, up_to_seq in lookup.ranges for event in self.log.read_after(chat_id, after_seq, up_to_seq)
        ]
        assert [e.seq for e in events] == sorted({e.seq for e in events}), "ranges overlap, or stand in the wrong order"
        assert not lookup.ranges or self.was_member(lookup), "nothing is looked up for who never was a member"
        heads = [event_meta(chat_id, event.seq, event.event) for event in events]
        return heads, self.log.count_groups(lookup.user_ids) if lookup.user_ids else {}

    def was_member(self, lookup: Lookup) -> bool:
        if not lookup.chat.waiting:
            return True  # the chat was forgotten meanwhile: its writes have their answers, and what is read is dropped
        _, write, _, _ = lookup.chat.waiting[0]
        if write.content.WhichOneof("body") in {"join_requested", "chat_created"} or write.peer_user_id:
            return True
        members = self.log.members.get(lookup.chat.chat_id, [])
        return any(write.sender_user_id in at_seq for at_seq in members)

    def progress(self) -> None:
        """What the shell does in a tick, after the store has answered."""
        self.loads += [(chat, self.log.load(chat.chat_id)) for chat in self.sequencer.take_loads()]
        self.intervals += [(read, self.intervals_of(read)) for read in self.sequencer.take_intervals()]
        for lookup in self.sequencer.take_lookups():
            self.lookups.append((lookup, *self.look_up(lookup)))
        if self.group is None:
            self.group = self.sequencer.take_group()
            assert self.group is None or 0 < len(self.group.entries) <= LIMITS.group_entries_max
        for answer in self.sequencer.take_answers():
            self.take_answer(answer)

    def take_answer(self, answer: Answer) -> None:
        attempt = answer.ticket
        assert isinstance(attempt, Try)
        assert not attempt.answered, "answered twice"
        attempt.answered = True
        message, device = attempt.message, attempt.device
        chat_id = message.write.chat_id
        if isinstance(answer.outcome, chat_pb2.SendResult):
            self.check_result(message, answer.outcome)
        elif not is_retryable(answer.outcome):
            message.refused = True
            # Too far back to look, which is told to members only; who is none learns it from the events up to their leaving.
            too_far = self.log.head_seq(chat_id) - message.seen_seq > LIMITS.dedupe_span_max and answer.outcome.code in {
                chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD,
                chat_pb2.ERROR_CODE_NOT_A_MEMBER,
            }
            assert too_far or not self.is_committed(message), "G3: a try of a committed write was refused"
        if isinstance(answer.outcome, chat_pb2.Error) and answer.outcome.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER:
            heads = range(attempt.head_seq, self.log.head_seq(chat_id) + 1)
            assert not all(self.log.is_member(chat_id, device.user_id, seq) for seq in heads), "refused by what never was"
        if attempt.session != device.session or message not in device.outbox[chat_id]:
            return
        outbox = device.outbox[chat_id]
        place = outbox.index(message)
        if isinstance(answer.outcome, chat_pb2.SendResult):
            outbox.remove(message)
            device.acknowledged.setdefault(chat_id, []).append(message)
        elif is_retryable(answer.outcome):
            device.unsent[chat_id] = min(device.unsent.get(chat_id, place), place)
            return
        elif answer.outcome.code == chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD and not self.is_committed(message):
            message.seen_seq = device.held[chat_id] = self.log.head_seq(chat_id)  # the device syncs, looks, and tries again
            device.unsent[chat_id] = min(device.unsent.get(chat_id, place), place)
            return
        else:
            assert answer.outcome.code != chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD
            outbox.remove(message)
        if chat_id in device.unsent and place < device.unsent[chat_id]:
            device.unsent[chat_id] -= 1

    def is_committed(self, message: Message) -> bool:
        return any(
            (event.sender_user_id, event.client_message_id) == (message.write.sender_user_id, message.write.client_message_id)
            for event in self.log.events.get(message.write.chat_id, [])
        )

    def check_result(self, message: Message, result: chat_pb2.SendResult) -> None:
        chat_id = message.write.chat_id
        assert result.chat_id == chat_id
        assert 0 < result.seq <= self.log.head_seq(chat_id), "G1: answered before it was committed"
        event = self.log.events[chat_id][result.seq - 1]
        assert event.client_message_id == message.write.client_message_id
        assert event.sender_user_id == message.write.sender_user_id
        assert (event.message_id, event.sent_at_ms) == (result.message_id, result.sent_at_ms)
        if not result.duplicate:
            assert not message.seqs, "the first result can only be given once"
            assert result.seq > self.answered_seq.get(chat_id, 0), "answers leave in order of seq"
            self.answered_seq[chat_id] = result.seq
        message.seqs.add(result.seq)
        assert len(message.seqs) == 1, "G3: every try gets the same seq"

    def take_deliveries(self, group: Group, deliveries: list[Delivery]) -> None:
        """G6, and that every committed event is delivered once, in order."""
        assert [(d.chat_id, d.seq) for d in deliveries] == [(entry.chat_id, entry.seq) for entry in group.entries]
        for delivery in deliveries:
            before, after = self.log.members[delivery.chat_id][delivery.seq - 1 : delivery.seq + 1]
            assert sorted(delivery.recipients) == sorted(before | after)
            assert {delivery.left_user_id} - {""} == before - after
            assert delivery.seq == self.delivered_seq.get(delivery.chat_id, delivery.seq - 1) + 1
            self.delivered_seq[delivery.chat_id] = delivery.seq

    # What holds in the end.

    def teardown(self) -> None:
        for _ in range(200):
            self.settle()
            for who in range(len(self.devices)):
                self.send_failed_again(who)
        assert all(attempt.answered for attempt in self.tries), "something was never answered"
        assert not any(outbox for device in self.devices for outbox in device.outbox.values())
        self.check_senders()
        self.check_order_of_senders()
        self.check_erased()

    def check_senders(self) -> None:
        for chat_id, events in self.log.events.items():
            for event in events[1:]:
                arm = event.content.WhichOneof("body")
                joins = arm == "join_requested" or (
                    arm == "members_added" and list(event.content.members_added.user_ids) == [event.sender_user_id]
                )
                assert joins or self.log.is_member(chat_id, event.sender_user_id, event.seq - 1)

    def check_order_of_senders(self) -> None:
        """M7: what one device sends to a chat stands in the log in the order in which it was composed."""
        last_seq: dict[tuple[int, str], int] = {}
        for message in self.messages:
            if message.seqs and not message.refused:
                [seq] = message.seqs
                place = (message.device_number, message.write.chat_id)
                assert seq > last_seq.get(place, 0)
                last_seq[place] = seq

    def check_erased(self) -> None:
        """Nothing is said about a message after it was deleted, and nothing of it is left."""
        for events in self.log.events.values():
            deleted: set[int] = set()
            for event in events:
                match event.content.WhichOneof("body"):
                    case "delete":
                        assert event.content.delete.target_seq not in deleted
                        deleted.add(event.content.delete.target_seq)
                    case "edit":
                        assert event.content.edit.target_seq not in deleted
            for seq in deleted:
                assert events[seq - 1].content.WhichOneof("body") == "erased"


Schedules.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


class TestG1G2G3G6UnderRandomSchedules(Schedules.TestCase):  # type: ignore[misc,valid-type]
    """See the machine's checks, each of which names the guarantee it is of."""
