"""The edge of a simulated node: real sessions, fed by what owners state and by the log up to there."""

from collections.abc import Callable, Collection, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, cast

from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.edge_desk import Answered, ForEdge, Missed
from chatgrpc.core.effects import Admission, Admit, Effect, End, FetchPage, Marked, Submit, Watch
from chatgrpc.core.effects import ShowTyping as TypingSeen
from chatgrpc.core.entries import StoredChat
from chatgrpc.core.event_feed import FeedRead, LoadChat, ReadMembership
from chatgrpc.core.events import typing_chunk
from chatgrpc.core.lanes import Outcome
from chatgrpc.core.links import Deliver, Message, RaiseMark, ShowReceipt, ShowTyping, TellTyping
from chatgrpc.core.receipts import ReceiptBook
from chatgrpc.core.session import Session, Timings
from chatgrpc.core.visibility import Interval, last_change
from chatgrpc.core.write import Write
from chatgrpc.edge.admission import readable_memberships
from chatgrpc.v1 import chat_pb2, session_pb2
from tests.sim.coordinator import View
from tests.sim.pages import EdgeLog, read_history
from tests.sim.tasks import Promise, start
from tests.sim.upkeep import Upkeep

if TYPE_CHECKING:
    from tests.sim.device import Stream
    from tests.sim.node import Node

_RETRY_MS = 500
"""A chat that could not be read is read again after a while; sessions' other timers do not run here."""
_FAR_MS = 4_000_000_000_000
_HELLO_TIMEOUT_MS = 500
"""How long a device that comes waits for owners; it is let in without those chats."""
_MEMBERSHIPS_PER_READ = 2
_PAST_CHATS_MAX = 0
STATED_MAX = 3
"""Fewer than there are chats, so that some are forgotten."""


class Edge:
    """All streams of one node."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.world = node.world
        self.sessions: dict[str, tuple[Session, Stream]] = {}
        lanes = node.parts.edge_lanes(resend_after_ms=300, give_up_after_ms=3_000)
        self.desk = node.parts.edge_desk(
            node.node_id, lanes, node.cluster.shard_of, ask_again_after_ms=300, stated_max=STATED_MAX
        )
        self.upkeep = Upkeep(self)
        self._book = ReceiptBook(node.parts.limits)
        self._risen: dict[tuple[str, str], RaiseMark] = {}
        self._messages: list[tuple[str, Message]] = []
        self._answers: list[Answered] = []
        self._deliveries: list[Deliver] = []
        self._missed: dict[str, Missed] = {}
        self._notices: list[ShowReceipt | ShowTyping] = []
        node.every(250, self._tell_marks)

    def crash(self) -> None:
        for _, stream in list(self.sessions.values()):
            stream.cut()

    # Streams.

    def open(self, stream: "Stream") -> None:
        """A device dialled."""
        session = self.node.parts.session(stream.stream_id, "token", self.node.parts.limits, Timings(), self._wall_ms())
        session.feed = self.node.parts.feed(self.node.parts.limits, session.events)
        self.sessions[stream.stream_id] = (session, stream)

    def from_device(self, stream: "Stream", frame: session_pb2.ClientFrame) -> None:
        entry = self.sessions.get(stream.stream_id)
        if entry is not None:
            self._run(entry[0], entry[0].receive(frame, self._wall_ms()))

    def closed(self, stream: "Stream") -> None:
        """The stream is gone."""
        entry = self.sessions.pop(stream.stream_id, None)
        if entry is not None:
            entry[0].closed()
            self.desk.close(stream.stream_id)
            self.upkeep.disappeared(stream.device.user_id, stream.device.device_id)

    def end_device(self, user_id: str, device_id: str) -> None:
        """The device has its stream elsewhere."""
        for session, stream in self.open_sessions():
            if (stream.device.user_id, stream.device.device_id) == (user_id, device_id):
                self._run(session, session.end(Ended(session_pb2.DISCONNECT_CODE_REPLACED)))
                self.closed(stream)

    def open_sessions(self) -> list[tuple[Session, "Stream"]]:
        return list(self.sessions.values())

    def _run(self, session: Session, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Admit(held=held):
                    start(self._admit(session, held))
                case Submit(request_id=request_id, write=write):
                    self.desk.submit(session.session_id, (session, request_id), write, self._now_ms())
                case Marked(chat_id=chat_id, delivered_seq=delivered_seq, read_seq=read_seq):
                    self._mark(chat_id, session.user_id, delivered_seq, read_seq)
                case TypingSeen(chat_id=chat_id, kind=kind):
                    self.desk.tell(chat_id, TellTyping(chat_id, session.user_id, kind))
                case Watch(chat_ids=chat_ids):
                    for chat_id in chat_ids:
                        self.desk.ask_members(chat_id, lambda user_ids: None, self._now_ms())
                case FetchPage(request_id=request_id, request=request):
                    start(self._fetch_page(session, request_id, request))
                case End(ended=ended):
                    self.node.note(f"ends {session.session_id}: {ended}")
        self.flush(session)
        if effects:
            self.pump()

    def flush(self, session: Session) -> None:
        """Reads what the session wants read, and sends what it has to say."""
        entry = self.sessions.get(session.session_id)
        if entry is None:
            return
        while (wanted := session.next_read()) is not None:
            start(self._feed(session, wanted))
        for chat_id, _ in session.feed.take_set_aside():
            self.node.after(_RETRY_MS, partial(self._read_again, session, chat_id))
        while output := session.take_output(self._wall_ms()):
            entry[1].to_device(output)

    def _is_open(self, session: Session) -> Callable[[], bool]:
        return lambda: session.session_id in self.sessions

    def _wall_ms(self) -> int:
        return self.node.now().wall_ms

    def _now_ms(self) -> int:
        return self.node.now().monotonic_ms

    # Admission: the session map first, then memberships with their heads.

    async def _admit(self, session: Session, held: Set[str]) -> None:
        device = self.sessions[session.session_id][1].device
        await self.upkeep.appeared(device.user_id, device.device_id)
        log = self._log_of(session)
        memberships, unknown = await readable_memberships(log, device.user_id, held, _MEMBERSHIPS_PER_READ, _PAST_CHATS_MAX)
        if session.session_id in self.sessions:
            admission = Admission(device.user_id, _FAR_MS, memberships, {}, [], "sync", unknown)
            self._run(session, session.admitted(admission, Now(self._wall_ms(), self._wall_ms())))

    def _log_of(self, session: Session) -> EdgeLog:
        """What is read for a session, as long as it is there."""
        return EdgeLog(self.node.store, self._is_open(session), self.head_of, self._heads_in_time)

    def reader(self) -> EdgeLog:
        """What is read for nobody in particular."""
        return EdgeLog(self.node.store, lambda: True, self.head_of, self._heads_in_time)

    async def _heads_in_time(self, chat_ids: Collection[str]) -> dict[str, int]:
        """Asks the owners; what they do not say in time stays unknown."""
        stated: dict[str, int] = {}
        over: Promise[None] = Promise()

        def answered(seq: int | None, chat_id: str) -> None:
            assert seq is not None, "nothing is damaged here"
            stated[chat_id] = seq
            if len(stated) == len(chat_ids):
                over.keep(None)

        asked = {chat_id: partial(answered, chat_id=chat_id) for chat_id in chat_ids}
        for chat_id, callback in asked.items():
            self.desk.ask_head(chat_id, callback, self._now_ms())
        self.pump()
        self.node.after(_HELLO_TIMEOUT_MS, partial(over.keep, None))
        await over
        for chat_id, callback in asked.items():
            if chat_id not in stated:
                self.desk.withdraw_head(chat_id, callback)
        return stated

    def head_of(self, chat_id: str) -> Promise[int]:
        """Asks the owner, whoever it is, until it answers; an answer to an earlier question does not do."""
        head: Promise[int] = Promise()

        def stated(seq: int | None) -> None:
            assert seq is not None, "nothing is damaged here"
            head.keep(seq)

        self.desk.ask_head(chat_id, stated, self._now_ms())
        self.pump()
        return head

    # What sessions read.

    async def _feed(self, session: Session, wanted: FeedRead) -> None:
        is_open = self._is_open(session)
        match wanted:
            case ReadMembership(chat_id=chat_id):
                session.membership_read(chat_id, await self._log_of(session).membership(session.user_id, chat_id))
            case LoadChat(chat_id=chat_id):
                session.chat_loaded(StoredChat(await self.node.store.chat_view(chat_id, is_open), 0, b""))
            case _:
                read_after = self.node.store.read_after
                session.log_read(await read_after(wanted.chat_id, wanted.after_seq, wanted.up_to_seq, wanted.limit, is_open))
        self.flush(session)

    def _read_again(self, session: Session, chat_id: str) -> None:
        session.feed.resume(chat_id)
        self.flush(session)

    async def _fetch_page(self, session: Session, request_id: int, request: session_pb2.FetchHistory) -> None:
        log = self._log_of(session)
        membership = await log.membership(session.user_id, request.chat_id)
        if membership is None:
            session.page_read(request_id, chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER))
        else:
            page = await read_history(log, membership, request, self.node.parts.limits)
            frame = session_pb2.HistoryPage(chat_id=request.chat_id, more_before=page.more_before, more_after=page.more_after)
            session.page_read(request_id, frame, page.events)
        self.flush(session)

    def note_memberships(self, session: Session, found: dict[str, tuple[Interval, ...]]) -> None:
        """The memberships as stored just now."""
        for chat_id, intervals in found.items():
            self.desk.note_stated(chat_id, last_change(intervals))
            session.note_membership(chat_id, last_change(intervals))
        self.flush(session)

    # What owners say.

    def receive(self, sender_id: str, message: ForEdge) -> None:
        """Takes a message of an owner."""
        self.desk.receive(sender_id, message, self._now_ms())
        self.pump()

    def see(self, view: View) -> None:
        """The cluster has changed."""
        self.desk.see(view.owners, self._now_ms())
        self.upkeep.cluster_changed(view)
        self.pump()

    def link_is_up(self, node_id: str) -> None:
        """There is a link with this node, for the first time or again."""
        self.desk.linked(node_id, self._now_ms())
        self.upkeep.link_is_up(node_id)
        self.pump()

    def tick(self) -> None:
        """Sends again, gives up, asks again."""
        self.desk.pass_time(self._now_ms())
        self.pump()

    def submit_alone(self, write: Write, callback: Callable[[Outcome], None]) -> None:
        """A unary call: a lane of its own."""
        self.desk.submit(f"unary-{self.node.cluster.next_number()}", callback, write, self._now_ms())
        self.pump()

    def pump(self) -> None:
        """Hands to the sessions what came for them, and to the links what is to be said.

        What the sessions do about it may pump again: then what has come already has its turn there, and before what is new.
        """
        self._step()
        answers, self._answers = self._answers, []
        for ticket, write, outcome in answers:
            self._answer(ticket, write, outcome)
        deliveries, self._deliveries = self._deliveries, []
        for deliver in deliveries:
            self._deliver(deliver)
        missed, self._missed = self._missed, {}
        if missed:
            self.upkeep.missed(missed)
        for chat_id, found in missed.items():
            self.note_head(chat_id, found.seq)
        notices, self._notices = self._notices, []
        for notice in notices:
            for session, stream in self.open_sessions():
                if stream.device.user_id in notice.to_user_ids:
                    _show(session, notice)
                    self.flush(session)
        self._step()
        messages, self._messages = self._messages, []
        for node_id, message in messages:
            self.node.send(node_id, message)

    def _step(self) -> None:
        output = self.desk.step(self._now_ms())
        self._messages += output.messages
        self._answers += output.answers
        self._deliveries += output.deliveries
        self._notices += output.notices
        for chat_id, missed in output.missed.items():
            self._missed[chat_id] = self._missed[chat_id] | missed if chat_id in self._missed else missed

    def note_head(self, chat_id: str, seq: int) -> None:
        """The chat is committed up to there: sessions that have not heard of it find out what they missed."""
        for session, _ in self.open_sessions():
            session.note_head(chat_id, seq)
            self.flush(session)

    def _deliver(self, deliver: Deliver) -> None:
        for session, stream in self.open_sessions():
            user_id = stream.device.user_id
            if user_id in deliver.user_ids:
                session.deliver(deliver.chat_id, deliver.seq, deliver.chunk, last=user_id == deliver.left_user_id)
                self.flush(session)

    def _answer(self, ticket: object, write: Write, outcome: Outcome) -> None:
        if callable(ticket):
            ticket(outcome)
            return
        session, request_id = cast("tuple[Session, int]", ticket)
        session.answered(request_id, write, outcome)
        self.flush(session)

    def _tell_marks(self) -> None:
        for mark in self._risen.values():
            self.desk.tell(mark.chat_id, mark)
        if self._risen:
            self._risen.clear()
            self.pump()

    def _mark(self, chat_id: str, user_id: str, delivered_seq: int, read_seq: int) -> None:
        raised = self._book.raise_mark(chat_id, user_id, delivered_seq, read_seq, self._wall_ms())
        if raised is None:
            return
        first = self._risen.get((chat_id, user_id))
        self._risen[chat_id, user_id] = RaiseMark(
            chat_id,
            user_id,
            raised.mark.delivered_seq,
            raised.mark.read_seq,
            first.delivered_from_seq if first is not None else raised.delivered_from_seq,
            first.read_from_seq if first is not None else raised.read_from_seq,
        )


def _show(session: Session, notice: ShowReceipt | ShowTyping) -> None:
    if isinstance(notice, ShowReceipt):
        session.show_receipt(
            chat_pb2.Receipt(
                chat_id=notice.chat_id,
                user_id=notice.user_id,
                delivered_seq=notice.delivered_seq,
                read_seq=notice.read_seq,
            )
        )
    else:
        kind = cast("session_pb2.TypingKind.ValueType", notice.kind)
        typing = session_pb2.Typing(chat_id=notice.chat_id, user_id=notice.user_id, kind=kind)
        session.show_typing(notice.chat_id, notice.user_id, typing_chunk(typing))
