"""The feed of a device under random schedules: what it is sent is what its user may see, once, in order (G4, G5, G6)."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatgrpc.core.clock import Now
from chatgrpc.core.effects import Admission, Admit, Marked
from chatgrpc.core.entries import Membership
from chatgrpc.core.event_feed import FeedRead, LoadChat, ReadLog
from chatgrpc.core.events import event_chunk
from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, State, Timings
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.unit.core.model_log import ModelLog

LIMITS = Limits(
    unacknowledged_events_max=6,
    unacknowledged_bytes_max=900,
    page_bytes_max=300,
    gathered_bytes_max=500,
    frames_per_batch_max=4,
    heartbeat_heads_max=2,
)
EVENT_BYTES_MAX = 250
"""No event of this test is larger."""
ALICE = "alice"
GROUPS = [group_chat_id("bob", bytes([number] * 16)) for number in range(2)]
CHATS = [*GROUPS, direct_chat_id(ALICE, "bob"), self_chat_id(ALICE)]
MEMBER = content_pb2.MEMBER_ROLE_MEMBER
NOW_MS = 1_000_000


@dataclass
class Device:
    """What a device keeps: of each chat the next event that it expects."""

    next_seq: dict[str, int] = field(default_factory=dict)
    states: dict[str, chat_pb2.Chat] = field(default_factory=dict)
    """What it was shown of each chat, folded."""
    acked_at_server: dict[str, int] = field(default_factory=dict)
    """What the server has stored of its acknowledgements."""


class Devices(RuleBasedStateMachine):
    """Alice's device comes and goes, reads slowly, and is in and out of groups, while the others write."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ModelLog()
        self.device = Device()
        self.session: Session | None = None
        self.hello = session_pb2.Hello()
        self.admission: Admission | None = None
        self.reading: FeedRead | None = None
        self.read_early: object = None
        self.heads_at_hello: dict[str, int] = {}
        self.synced = False
        self.lost: dict[str, None] = {}
        self.starts_after: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        for chat_id in CHATS:
            created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="t")
            users = {GROUPS[0]: ["bob", ALICE], GROUPS[1]: ["bob"], CHATS[2]: [ALICE, "bob"], CHATS[3]: [ALICE]}[chat_id]
            for user_id in users:
                created.members.add(user_id=user_id, role=MEMBER, joined_seq=1)
            self.put(chat_id, content_pb2.Content(chat_created=created), lost=False)

    # The others, and the owner.

    def put(self, chat_id: str, content: content_pb2.Content, lost: bool) -> None:
        before = self.log.is_member(chat_id, ALICE)
        entry = self.log.put(chat_id, content)
        assert len(entry.event) < EVENT_BYTES_MAX
        after = self.log.is_member(chat_id, ALICE)
        session = self.session
        if session is not None and (before or after):
            if lost:
                self.lost[chat_id] = None
                return
            session.deliver(chat_id, entry.seq, event_chunk(entry.event), last=before and not after)

    @rule(
        chat_id=st.sampled_from(CHATS),
        size=st.integers(1, 100),
        count=st.integers(1, 4),
        lost=st.sampled_from([False, False, False, True]),
    )
    def write(self, chat_id: str, size: int, count: int, lost: bool) -> None:
        for _ in range(count):
            self.put(chat_id, content_pb2.Content(text=content_pb2.TextContent(text="x" * size)), lost)

    @rule(chat_id=st.sampled_from(GROUPS), lost=st.sampled_from([False, False, False, True]))
    def join_or_leave(self, chat_id: str, lost: bool) -> None:
        if self.log.is_member(chat_id, ALICE):
            removed = content_pb2.MemberRemovedContent(user_id=ALICE)
            self.put(chat_id, content_pb2.Content(member_removed=removed), lost)
        else:
            added = content_pb2.MembersAddedContent(user_ids=[ALICE])
            self.put(chat_id, content_pb2.Content(members_added=added), lost)

    # The device.

    @precondition(lambda self: self.session is None)
    @rule(how=st.sampled_from(["resume", "resume", "acknowledged", "at head"]), at_once=st.booleans())
    def connect(self, how: str, at_once: bool) -> None:
        """With what the device holds; or, having lost it, from what it acknowledged; or as a new device, at the head."""
        hello = session_pb2.Hello(device_id="phone", token="token")
        self.starts_after = {}
        if how != "resume":
            self.device.next_seq = {}
        if how == "at head":
            self.device = Device()
            hello.start_at = session_pb2.START_AT_HEAD
        for chat_id, next_seq in self.device.next_seq.items():
            hello.positions.add(chat_id=chat_id, seq=next_seq - 1)
        self.hello = hello
        self.session = Session("session", None, LIMITS, Timings(), NOW_MS)
        [admit] = self.session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), NOW_MS)
        assert isinstance(admit, Admit)
        self.heads_at_hello = {chat_id: self.log.head_seq(chat_id) for chat_id in CHATS}
        self.admission = None
        self.synced = False
        self.reading = None
        self.lost = {}
        if at_once:
            self.read_memberships(0)
            self.open()

    @precondition(lambda self: self.session is not None and self.session.state is State.OPENING and self.admission is None)
    @rule(stale_by=st.integers(0, 3))
    def read_memberships(self, stale_by: int) -> None:
        acked = {chat_id: max(0, seq - stale_by) for chat_id, seq in self.device.acked_at_server.items()}
        self.admission = Admission(ALICE, NOW_MS + 10**9, self.log.memberships(ALICE), acked, [], "sync")
        for membership in self.admission.memberships:
            chat_id = membership.chat_id
            if self.hello.start_at != session_pb2.START_AT_HEAD:
                self.starts_after[chat_id] = acked.get(chat_id, 0)
            elif not chat_id.startswith("s."):
                self.starts_after[chat_id] = membership.head_seq

    @precondition(lambda self: self.admission is not None and self.session is not None)
    @rule()
    def open(self) -> None:
        assert self.session is not None
        assert self.admission is not None
        effects = self.session.admitted(self.admission, Now(NOW_MS, NOW_MS))
        self.admission = None
        for effect in effects:
            assert isinstance(effect, Marked)
            self.mark(effect)

    @precondition(lambda self: self.session is not None)
    @rule(really=st.sampled_from([True, False, False]))
    def cut(self, really: bool) -> None:
        if really and self.session is not None:
            self.session.closed()
            assert not self.session.events
            self.session = None
            self.admission = None
            self.reading = None

    @precondition(lambda self: self.session is not None and self.session.state is State.OPEN)
    @rule(messages=st.integers(1, 5))
    def receive(self, messages: int) -> None:
        assert self.session is not None
        for _ in range(messages):
            message = self.session.take_output(NOW_MS)
            frames = session_pb2.ConnectResponse.FromString(message).frames
            assert len(frames) <= LIMITS.frames_per_batch_max
            assert len(message) <= LIMITS.gathered_bytes_max or len(frames) == 1
            for frame in frames:
                self.take(frame)

    @precondition(lambda self: self.session is not None and self.session.state is State.OPEN)
    @rule(chat_id=st.sampled_from(CHATS), back=st.sampled_from([0, 0, 1, 3]), beyond=st.sampled_from([0, 0, 2]))
    def acknowledge(self, chat_id: str, back: int, beyond: int) -> None:
        """What the device has, or a part of it, or, when nothing is under way to it, more than that."""
        assert self.session is not None
        beyond *= not self.session.events
        seq = max(0, self.device.next_seq.get(chat_id, 1) - 1 - back + beyond)
        frame = session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=chat_id, seq=seq))
        for effect in self.session.receive(frame, NOW_MS):
            assert isinstance(effect, Marked)
            assert effect.read_seq == 0
            self.mark(effect)

    def mark(self, marked: Marked) -> None:
        assert marked.delivered_seq <= self.log.head_seq(marked.chat_id)
        stored = self.device.acked_at_server.get(marked.chat_id, 0)
        self.device.acked_at_server[marked.chat_id] = max(stored, marked.delivered_seq)

    # The store.

    @precondition(lambda self: self.session is not None and self.reading is None)
    @rule()
    def begin_read(self) -> None:
        assert self.session is not None
        for chat_id, _ in self.session.feed.take_set_aside():
            self.session.feed.resume(chat_id)
        self.reading = self.session.next_read()
        if self.reading is not None:
            self.read_early = self.read(self.reading)

    @precondition(lambda self: self.reading is not None)
    @rule(early=st.booleans())
    def end_read(self, early: bool) -> None:
        """A read returns what the store held when it began, or what it holds now."""
        assert self.session is not None
        assert self.reading is not None
        reading, self.reading = self.reading, None
        result = self.read_early if early else self.read(reading)
        if isinstance(reading, ReadLog):
            self.session.log_read(result)  # type: ignore[arg-type]
        elif isinstance(reading, LoadChat):
            self.session.chat_loaded(result)  # type: ignore[arg-type]
        else:
            assert result is None or isinstance(result, Membership)
            self.session.membership_read(reading.chat_id, result)

    @precondition(lambda self: self.session is not None and self.session.state is State.OPEN)
    @rule(steps=st.integers(1, 5))
    def keep_up(self, steps: int) -> None:
        for _ in range(steps):
            self.read_on(1)
            self.receive(2)
            for chat_id in CHATS:
                self.acknowledge(chat_id, 0, 0)

    @precondition(lambda self: self.session is not None)
    @rule(reads=st.integers(1, 6))
    def read_on(self, reads: int) -> None:
        for _ in range(reads):
            if self.reading is None:
                self.begin_read()
            if self.reading is not None:
                self.end_read(early=False)

    def read(self, reading: FeedRead) -> object:
        if isinstance(reading, ReadLog):
            assert reading.after_seq < reading.up_to_seq <= self.log.head_seq(reading.chat_id)
            assert 0 < reading.limit <= LIMITS.unacknowledged_events_max
            page: list[object] = []
            size = 0
            for stored in self.log.read_after(reading.chat_id, reading.after_seq, reading.up_to_seq)[: reading.limit]:
                page.append(stored)
                size += len(stored.event)
                if size > reading.bytes_max:
                    break
            return page
        if isinstance(reading, LoadChat):
            return self.log.load(reading.chat_id)
        return self.log.membership(ALICE, reading.chat_id)

    # What the device checks.

    def take(self, frame: session_pb2.ServerFrame) -> None:
        match frame.WhichOneof("body"):
            case "event":
                self.take_event(frame.event)
            case "chat_opened":
                self.take_opened(frame.chat_opened)
            case "sync_complete":
                self.take_sync_complete()
            case arm:
                assert arm == "welcome"

    def take_event(self, event: chat_pb2.ChatEvent) -> None:
        chat_id = event.chat_id
        assert event.seq in self.log.visible_seqs(chat_id, ALICE), "G6: not for this user"
        assert event.seq == self.device.next_seq.get(chat_id), "G4: a hole, a repetition, or a chat that was not opened"
        assert event == self.log.events[chat_id][event.seq - 1]
        apply_event(self.device.states[chat_id], event)
        self.device.next_seq[chat_id] = event.seq + 1

    def take_opened(self, opened: session_pb2.ChatOpened) -> None:
        chat_id = opened.chat.chat_id
        visible = self.log.visible_seqs(chat_id, ALICE)
        known_next = self.device.next_seq.get(chat_id, self.starts_after.get(chat_id, 0) + 1)
        skipped = range(known_next, opened.next_seq)
        assert opened.next_seq >= known_next, "G4: what the device has comes again"
        assert not set(skipped) & set(visible), "G4: something that the user may see is left out"
        assert opened.first_visible_seq == visible[0]
        assert opened.head_seq in {0, *visible}
        self.device.next_seq[chat_id] = opened.next_seq
        self.device.states[chat_id] = opened.chat
        if opened.chat.members:
            assert self.log.is_member(chat_id, ALICE, opened.chat.as_of_seq), "G6: a state that is not for this user"
        else:
            assert opened.chat == chat_pb2.Chat(chat_id=chat_id)

    def take_sync_complete(self) -> None:
        assert not self.synced, "SyncComplete comes once"
        self.synced = True
        for chat_id, head_seq in self.heads_at_hello.items():
            visible = [seq for seq in self.log.visible_seqs(chat_id, ALICE) if seq <= head_seq]
            if visible and chat_id in self.device.next_seq:
                assert self.device.next_seq[chat_id] > visible[-1], "SyncComplete before the head of the Hello's moment"
            elif visible and self.hello.start_at != session_pb2.START_AT_HEAD:
                assert self.starts_after.get(chat_id, 0) >= visible[-1], "a chat of which nothing came"

    # What always holds.

    @invariant()
    def the_window_is_bounded(self) -> None:
        """G5: what was pushed and not acknowledged, and with it all that waits in memory."""
        if self.session is None or self.session.state is not State.OPEN:
            return
        waiting = session_pb2.ConnectResponse.FromString(b"".join(self.session.events)).frames
        feed = self.session.feed
        assert feed._unacked_events <= LIMITS.unacknowledged_events_max
        assert feed._unacked_bytes <= LIMITS.unacknowledged_bytes_max + EVENT_BYTES_MAX
        assert feed._unacked_events == sum(len(cursor.unacked or ()) for cursor in feed._cursors.values())
        assert feed._unacked_bytes == sum(size for cursor in feed._cursors.values() for _, size in cursor.unacked or ())
        assert sum(frame.HasField("event") for frame in waiting) <= feed._unacked_events
        assert len(feed.heads_behind()) <= LIMITS.heartbeat_heads_max

    # What holds in the end.

    def teardown(self) -> None:
        if self.session is None:
            self.connect("resume", True)
        if self.session is not None and self.session.state is State.OPENING:
            if self.admission is None:
                self.read_memberships(0)
            self.open()
        self.quiesce()
        for chat_id in self.lost:  # the next push after a lost one
            self.put(chat_id, content_pb2.Content(text=content_pb2.TextContent(text="last")), lost=False)
        self.quiesce()
        assert self.synced
        for chat_id in CHATS:
            visible = self.log.visible_seqs(chat_id, ALICE)
            assert chat_id in self.device.next_seq or not self.log.is_member(chat_id, ALICE)
            left_unheard = chat_id in self.lost and not self.log.is_member(chat_id, ALICE)  # no next push tells of it
            if chat_id in self.device.next_seq and not left_unheard:
                assert self.device.next_seq[chat_id] == visible[-1] + 1, "G4: something never came"
            if self.log.is_member(chat_id, ALICE):
                stored = self.log.load(chat_id)
                assert stored is not None
                fresh = chat_pb2.Chat.FromString(stored.chat)
                assert self.device.states[chat_id] == fresh, "what the device was shown does not make the chat as it is"
        assert self.session is not None
        assert self.session.feed._unacked_events == 0
        assert not self.session.feed.is_behind

    def quiesce(self) -> None:
        for _ in range(100):
            self.keep_up(1)


Devices.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


class TestG4G5G6UnderRandomSchedules(Devices.TestCase):  # type: ignore[misc,valid-type]
    """See the machine's checks, each of which names the guarantee it is of."""
