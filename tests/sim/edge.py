"""The edge of a simulated node: real sessions, fed by what owners state and by the log up to there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from chatgrpc.core.effects import Admission, Admit, Effect, End, Marked, Submit
from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.event_feed import LoadChat, Read, ReadMembership
from chatgrpc.core.events import event_chunk
from chatgrpc.core.lanes import Forwarded, Lane, Outcome
from chatgrpc.core.receipts import ReceiptBook
from chatgrpc.core.sequencer import Lookup
from chatgrpc.core.session import Session, Timings
from chatgrpc.core.visibility import is_member, last_change
from chatgrpc.core.write import Write
from chatgrpc.v1 import session_pb2
from tests.sim.parts import AskHead, Deliver, HeadIs
from tests.sim.store import Replica, merge_buckets, merge_heads, merge_memberships

if TYPE_CHECKING:
    from tests.sim.device import Stream
    from tests.sim.node import Node

_FAR_MS = 4_000_000_000_000


class Edge:
    """All streams of one node."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.world = node.world
        self.sessions: dict[str, tuple[Session, Stream]] = {}
        self.lanes = node.parts.edge_lanes(resend_after_ms=200, give_up_after_ms=3_000)
        self.stated: dict[str, int] = {}
        """What owners stated as committed."""
        self._book = ReceiptBook(node.parts.limits)
        self._head_callbacks: dict[str, list[tuple[int, Callable[[int], None]]]] = {}
        self._questions = 0
        self._asked_at_ms: dict[str, int] = {}

    def crash(self) -> None:
        for _, stream in list(self.sessions.values()):
            stream.cut()

    # Streams.

    def open(self, stream: "Stream") -> None:
        """A device dialled."""
        session = Session(stream.stream_id, "token", self.node.parts.limits, Timings(), self._now_ms())
        session.feed = self.node.parts.feed(self.node.parts.limits, session.events)
        self.sessions[stream.stream_id] = (session, stream)

    def receive(self, stream: "Stream", frame: session_pb2.ClientFrame) -> None:
        entry = self.sessions.get(stream.stream_id)
        if entry is not None:
            self._run(entry[0], entry[0].receive(frame, self._now_ms()))

    def closed(self, stream: "Stream") -> None:
        """The stream is gone."""
        entry = self.sessions.pop(stream.stream_id, None)
        if entry is not None:
            entry[0].closed()
            self.lanes.close(stream.stream_id)
            self.node.cluster.forget_session(stream.device.user_id, stream.device.device_id, self.node.node_id)

    def _run(self, session: Session, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Admit():
                    self._admit(session)
                case Submit(request_id=request_id, write=write):
                    lane = Lane(self.node.node_id, session.session_id, write.chat_id)
                    self.submit(lane, (session, request_id), write)
                case Marked(chat_id=chat_id, delivered_seq=delivered_seq, read_seq=read_seq):
                    self._book.raise_mark(chat_id, session.user_id, delivered_seq, read_seq, self._now_ms())
                case End(ended=ended):
                    self.node.note(f"ends {session.session_id}: {ended}")
        self._flush(session)

    def _flush(self, session: Session) -> None:
        entry = self.sessions.get(session.session_id)
        if entry is None:
            return
        while (wanted := session.next_read()) is not None:
            self._feed(session, wanted)
        while output := session.take_output(self._now_ms()):
            entry[1].to_device(output)

    def _is_open(self, session: Session) -> Callable[[], bool]:
        return lambda: session.session_id in self.sessions

    def _now_ms(self) -> int:
        return self.node.now().wall_ms

    # Admission: the session map first, then the heads, then the memberships, so that each covers the one before.

    def _admit(self, session: Session) -> None:
        device = self.sessions[session.session_id][1].device
        self.node.cluster.note_session(device.user_id, device.device_id, self.node.node_id)
        alive = self._is_open(session)

        def with_chats(found: list[Any]) -> None:
            missing = list(merge_memberships(found))
            if not missing:
                with_heads({})
                return
            heads: dict[str, int] = {}

            def with_head(chat_id: str, seq: int) -> None:
                heads[chat_id] = seq
                if len(heads) == len(missing):
                    with_heads(heads)

            for chat_id in missing:
                self.ask_head(chat_id, partial(with_head, chat_id))

        def with_heads(heads: dict[str, int]) -> None:
            self.node.read(lambda replica: replica.memberships(device.user_id), lambda found: admitted(heads, found), alive)

        def admitted(heads: dict[str, int], found: list[Any]) -> None:
            memberships = [
                Membership(chat_id, intervals, max(heads[chat_id], last_change(intervals)))
                for chat_id, intervals in merge_memberships(found).items()
                if chat_id in heads
            ]
            admission = Admission(device.user_id, _FAR_MS, memberships, {}, [], "sync")
            if alive():
                self._run(session, session.admitted(admission, self._now_ms()))

        self.node.read(lambda replica: replica.memberships(device.user_id), with_chats, alive)

    def _read_membership(self, session: Session, chat_id: str) -> None:
        stated_seq = self.stated.get(chat_id, 0)  # before the read: the membership covers no more than this for sure
        user_id = session.user_id

        def read(found: list[Any]) -> None:
            intervals = merge_memberships(found).get(chat_id)
            known = Membership(chat_id, intervals, max(stated_seq, last_change(intervals))) if intervals else None
            session.membership_read(known)
            self._flush(session)

        self.node.read(lambda replica: replica.memberships(user_id), read, self._is_open(session))

    # The log.

    def _feed(self, session: Session, wanted: Read) -> None:
        alive = self._is_open(session)
        if isinstance(wanted, ReadMembership):
            self._read_membership(session, wanted.chat_id)
            return
        if isinstance(wanted, LoadChat):

            def loaded(found: list[Any]) -> None:
                session.chat_loaded(StoredChat(merge_heads(found).chat, 0, b""))
                self._flush(session)

            self.node.read(lambda replica: replica.head(wanted.chat_id), loaded, alive)
            return

        def page_read(events: list[StoredEvent]) -> None:
            session.log_read(events)
            self._flush(session)

        self._page(wanted.chat_id, wanted.after_seq, wanted.up_to_seq, wanted.limit, page_read, alive)

    def _page(
        self,
        chat_id: str,
        after_seq: int,
        up_to_seq: int,
        limit: int,
        done: Callable[[list[StoredEvent]], None],
        alive: Callable[[], bool],
    ) -> None:
        """Reads events from one bucket, at least one; a hole means that it was read too early, so it is read again."""
        bucket = self.node.cluster.store.bucket_of(after_seq + 1)

        def read(found: list[Any]) -> None:
            merged = merge_buckets(found)
            self.node.cluster.store.repair(chat_id, bucket, merged)
            rows = self.node.parts.read_committed(merged.rows, after_seq, up_to_seq)[:limit]
            if not rows:
                self.world.note(self.node.node_id, f"{chat_id}: a hole at {after_seq + 1}, stated {up_to_seq}")
                self.node.after(50, lambda: self._page(chat_id, after_seq, up_to_seq, limit, done, alive))
                return
            for row in rows:
                self.world.witness(f"{self.node.node_id} reads", chat_id, row.seq, row.event)
            done([StoredEvent(row.seq, row.event) for row in rows])

        self.node.read(lambda replica: replica.bucket(chat_id, bucket, after_seq + 1), read, alive)

    def look_up(self, lookup: Lookup, done: Callable[[list[StoredEvent]], None], wanted: Callable[[], bool]) -> None:
        """Reads all ranges that the sequencer asked for."""
        events: list[StoredEvent] = []
        ranges = [(after_seq, up_to_seq) for after_seq, up_to_seq in lookup.ranges if after_seq < up_to_seq]

        def step() -> None:
            if not ranges:
                done(events)
                return
            after_seq, up_to_seq = ranges[0]
            self._page(lookup.chat.chat_id, after_seq, up_to_seq, 1_000, page_read, wanted)

        def page_read(page: list[StoredEvent]) -> None:
            events.extend(page)
            _, up_to_seq = ranges.pop(0)
            if page[-1].seq < up_to_seq:
                ranges.insert(0, (page[-1].seq, up_to_seq))
            step()

        step()

    # What owners say.

    def submit(self, lane: Lane, ticket: object, write: Write) -> None:
        """Sends a write on its way."""
        self.lanes.submit(lane, ticket, write, self._now_ms())
        self._forward()

    def tick(self) -> None:
        """Sends again, gives up, asks again."""
        self._forward()
        for ticket, write, outcome in self.lanes.give_up(self._now_ms()):
            self._answer(ticket, write, outcome)
        for chat_id in list(self._head_callbacks):
            if self.world.now_ms - self._asked_at_ms[chat_id] >= 200:
                self._ask(chat_id)

    def refresh(self) -> None:
        """Looks for memberships whose push was lost: a feed that does not know a chat, or that it goes on, cannot miss it."""
        for session, stream in list(self.sessions.values()):
            read = partial(self._note_memberships, session)
            self.node.read(partial(_memberships_of, stream.device.user_id), read, self._is_open(session))

    def _note_memberships(self, session: Session, found: list[Any]) -> None:
        for chat_id, intervals in merge_memberships(found).items():
            self._state(chat_id, last_change(intervals))
            session.note_membership(chat_id, last_change(intervals))
            if is_member(intervals) and not session.feed.knows(chat_id):
                self.ask_head(chat_id, lambda seq: None)
        self._flush(session)

    def answered(self, forwarded: Forwarded) -> None:
        answer = self.lanes.answered(forwarded, self._now_ms())
        if answer is not None:
            self._answer(*answer)

    def deliver(self, deliver: Deliver) -> None:
        chat_id, seq = deliver.chat_id, deliver.seq
        self._state(chat_id, seq)
        chunk = event_chunk(deliver.event)
        for session, stream in list(self.sessions.values()):
            user_id = stream.device.user_id
            if user_id in deliver.user_ids:
                session.deliver(chat_id, seq, chunk, last=user_id == deliver.left_user_id)
                self._flush(session)

    def hear_heads(self, heads: dict[str, int]) -> None:
        for chat_id, seq in heads.items():
            self._state(chat_id, seq)
            for session, _ in list(self.sessions.values()):
                session.note_head(chat_id, seq)
                self._flush(session)

    def owner_changed(self, shard: int) -> None:
        """Whatever the old owner had not said yet is asked of the new one."""
        chat_ids = [chat_id for chat_id in self.node.cluster.chat_ids if self.node.cluster.shard_of(chat_id) == shard]
        for chat_id in chat_ids:
            self.lanes.resend(chat_id, self._now_ms())
            if any(session.feed.knows(chat_id) for session, _ in self.sessions.values()):
                self.ask_head(chat_id, lambda seq: None)
        self._forward()

    def ask_head(self, chat_id: str, callback: Callable[[int], None]) -> None:
        """Asks the owner, whoever it is, until it answers; an answer to an earlier question does not do."""
        self._head_callbacks.setdefault(chat_id, []).append((self._questions + 1, callback))
        self._ask(chat_id)

    def head_is(self, answer: HeadIs) -> None:
        chat_id = answer.chat_id
        waiting = self._head_callbacks.pop(chat_id, [])
        later = [(number, callback) for number, callback in waiting if number > answer.number]
        if later:
            self._head_callbacks[chat_id] = later
        self.hear_heads({chat_id: answer.seq})
        for number, callback in waiting:
            if number <= answer.number:
                callback(answer.seq)

    def _ask(self, chat_id: str) -> None:
        self._asked_at_ms[chat_id] = self.world.now_ms
        self._questions += 1
        owner_id = self.node.owner_of(chat_id)
        if owner_id:
            self.node.send(owner_id, AskHead(self.node.node_id, chat_id, self._questions))

    def _state(self, chat_id: str, seq: int) -> None:
        self.stated[chat_id] = max(seq, self.stated.get(chat_id, 0))

    def _forward(self) -> None:
        for forward in self.lanes.take_forwards(self._now_ms()):
            owner_id = self.node.owner_of(forward.lane.chat_id)
            if owner_id:
                self.node.send(owner_id, forward)

    def _answer(self, ticket: object, write: Write, outcome: Outcome) -> None:
        if callable(ticket):
            ticket(outcome)
            return
        session, request_id = cast("tuple[Session, int]", ticket)
        session.answered(request_id, write, outcome)
        self._flush(session)


def _memberships_of(user_id: str, replica: Replica) -> dict[str, dict[int, int]]:
    return replica.memberships(user_id)
