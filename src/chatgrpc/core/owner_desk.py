"""The owner's desk: the shards in one node's hands, what edges ask of them, and what goes back (design §4, §5).

Nothing that a node says, and nothing that the store answers, makes the desk raise: what goes wrong beyond one chat costs its
shard, which is given up (`failed`), so that the next owner begins from the log.

Whatever is put in, `step` hands out what follows. What a shard has committed leaves in two steps: the shell takes the
`Delivery`s and `Notice`s, looks up which nodes hold the members' devices, once for all of them, and hands both back to `route`,
which makes one message a node for the next step.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeAlias, cast

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import Damage
from chatgrpc.core.lanes import Forward, Forwarded, HeadBook, Lane, OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    HeadIs,
    Heads,
    HeadsHeard,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.shard import Request, Shard

Question: TypeAlias = AskHead | AskMembers | RaiseMark | TellTyping
ForOwner: TypeAlias = Forward | Question | HeadsHeard
"""Messages that an owner takes."""

_HEADS_TOGETHER_MAX: Final = 500
"""Heads in a message: whoever gets it looks at all of them at a stretch."""
_ABSENT_BEATS: Final = 60
"""Heartbeats for which is kept what a node that is not seen was not told: longer than news of nodes are on their way."""
_ABSENT_HEADS_MAX: Final = 20_000
"""Chats that are noted for such a node. What it misses beyond is told by the next event of each chat, or when devices come
anew: so much in so short a time is more than a node catches up with otherwise."""


@dataclass(eq=False, slots=True)
class Tenure:
    """One shard in this node's hands. Equal only to itself: the same shard under a later epoch is another one."""

    number: int
    shard: Shard
    lanes: OwnerLanes


@dataclass(frozen=True, slots=True)
class Notice:
    """Something besides events for the devices of these users."""

    user_ids: tuple[str, ...]
    message: ShowReceipt | ShowTyping
    """With no users in it yet."""


@dataclass(frozen=True, slots=True)
class OwnerOutput:
    """What the shards of a node want and say since the last step."""

    requests: list[tuple[Tenure, Request]]
    """To be run, each until it succeeds, as long as the tenure is held; the outcome goes to `OwnerDesk.hand_over`."""
    messages: list[tuple[str, Message]]
    """Messages and the nodes they are for."""
    deliveries: list[Delivery]
    """Committed events, to be routed."""
    notices: list[Notice]
    """Receipts and typing, to be routed."""
    damage: list[Damage]
    """What was found wrong with chats, to be told to operators."""
    failed: list[tuple[Tenure, Exception]]
    """Shards that a mistake of the program has cost, and by which: to be told, and given back."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Waits for a chat to be ready: who asked what, and when."""

    sender_id: str
    question: Question
    wall_ms: int


class OwnerDesk:
    """The shards of one node."""

    def __init__(self, limits: Limits, shard_of: Callable[[str], int]) -> None:
        self.tenures: dict[int, Tenure] = {}
        """By number of the shard."""
        self._limits = limits
        self._shard_of = shard_of
        self._books: dict[str, HeadBook] = {}
        self._live: Collection[str] = ()
        self._absent: dict[str, int] = {}  # nodes with a book that are not seen: for how many heartbeats more it is kept
        self._ever_seen: set[str] = set()  # ids of nodes are never used again
        self._touched: dict[Tenure, None] = {}
        self._messages: list[tuple[str, Message]] = []
        self._damage: list[Damage] = []
        self._failed: list[tuple[Tenure, Exception]] = []
        self.events_committed = 0
        """Events that shards of this node have counted as committed, since it began; those adopted that let users in, again."""
        self._deliveries: list[Delivery] = []
        self._notices: list[Notice] = []

    # Shards come and go.

    def take(self, tenure: Tenure) -> None:
        """The shard is ours from now on."""
        self.tenures[tenure.number] = tenure

    def drop(self, tenure: Tenure) -> None:
        """The shard is not ours any more: what was not said yet is not said."""
        if self.holds(tenure):
            tenure.shard.drop()
            del self.tenures[tenure.number]
            self._touched.pop(tenure, None)

    def drop_all(self) -> None:
        """The lease is over."""
        for tenure in self.tenures.values():
            tenure.shard.drop()
        self.tenures.clear()
        self._touched.clear()

    def holds(self, tenure: Tenure) -> bool:
        """Whether it is still in our hands, under this epoch."""
        return self.tenures.get(tenure.number) is tenure

    def see(self, live_node_ids: Collection[str]) -> None:
        """The nodes that live, as far as it is known here. What is noted of others is kept for a while: see `route`."""
        self._live = live_node_ids
        self._ever_seen.update(live_node_ids)
        self._absent = {
            node_id: self._absent.get(node_id, _ABSENT_BEATS) for node_id in self._books if node_id not in live_node_ids
        }

    # What comes in.

    def receive(self, sender_id: str, message: ForOwner, now: Now) -> None:
        """Takes a message of an edge. What concerns a shard that is not ours is dropped: the edge asks again, and the owner."""
        match message:
            case HeadsHeard(heads=heads):
                if sender_id in self._books:
                    self._books[sender_id].confirmed(heads)
                return
            case Forward():
                self._receive_forward(message, now)
                return
        tenure = self.tenures.get(self._shard_of(message.chat_id))
        if tenure is None:
            return
        try:
            asker = _asker(sender_id, message)
            if isinstance(message, RaiseMark):
                message = _since_earlier(cast("_Asked | None", tenure.shard.asked(message.chat_id, asker)), message)
            with_chat = not isinstance(message, AskHead)
            if tenure.shard.ask_head(_Asked(sender_id, message, now.wall_ms), message.chat_id, now, asker, with_chat=with_chat):
                self.touch(tenure)
        except Exception as defect:
            self.fail(tenure, defect)

    def _receive_forward(self, forward: Forward, now: Now) -> None:
        tenure = self.tenures.get(self._shard_of(forward.lane.chat_id))
        if tenure is None:
            return
        try:
            verdict = tenure.lanes.receive(forward)
            if isinstance(verdict, Forwarded):
                self._messages.append((forward.lane.edge_id, verdict))
            elif verdict and tenure.shard.submit((forward.lane, forward.number), forward.write, now):
                tenure.lanes.accepted(forward)
                self.touch(tenure)
        except Exception as defect:
            self.fail(tenure, defect)

    def hand_over(self, tenure: Tenure, what: Callable[[Now], None], now: Now) -> None:
        """Hands a shard what the store answered, if it is still in our hands."""
        if not self.holds(tenure):
            return
        try:
            what(now)
        except Exception as defect:
            self.fail(tenure, defect)
        else:
            self.touch(tenure)

    def look_again(self) -> None:
        """Chats that were damaged may have been mended."""
        for tenure in self.tenures.values():
            tenure.shard.look_again()

    def fail(self, tenure: Tenure, defect: Exception) -> None:
        """A shard is not what it should be, by a mistake of ours: it is dropped as if the lease were over."""
        if self.holds(tenure):
            self.drop(tenure)
            self._failed.append((tenure, defect))

    def touch(self, tenure: Tenure) -> None:
        """Something happened to the shard: the shell handed it what the store answered."""
        self._touched[tenure] = None

    # What goes out.

    def step(self) -> OwnerOutput:
        """What follows from all that was put in since the last step; all of it is handed out once."""
        touched, self._touched = self._touched, {}
        requests: list[tuple[Tenure, Request]] = []
        for tenure in touched:
            try:
                requests += self._sort_out(tenure)
            except Exception as defect:
                self.fail(tenure, defect)
        output = OwnerOutput(requests, self._messages, self._deliveries, self._notices, self._damage, self._failed)
        self._messages, self._deliveries, self._notices, self._damage, self._failed = [], [], [], [], []
        return output

    def _sort_out(self, tenure: Tenure) -> list[tuple[Tenure, Request]]:
        output = tenure.shard.step()
        self.events_committed += len(output.deliveries)
        self._deliveries += output.deliveries
        for answer in output.answers:
            lane, number = cast("tuple[Lane, int]", answer.ticket)
            self._messages.append((lane.edge_id, tenure.lanes.answered(lane, number, answer.outcome)))
        for head in output.heads:
            asked = cast("_Asked", head.ticket)
            self._answer(asked, head.seq, head.chat)
        self._damage += output.damage
        return [(tenure, request) for request in output.requests]

    def beat(self) -> list[tuple[str, Message]]:
        """The heartbeats that are due: heads whose push a node has not confirmed. To be called at the pace of heartbeats."""
        for node_id in list(self._absent):
            self._absent[node_id] -= 1
            if not self._absent[node_id]:
                del self._absent[node_id], self._books[node_id]
        return [
            (node_id, Heads(heads))
            for node_id, book in self._books.items()
            if node_id not in self._absent
            for heads in _some_together(book.beat())
        ]

    @property
    def is_heard(self) -> bool:
        """Whether all that was pushed is confirmed, by nodes that are seen, and nothing is noted for one that has not been seen
        yet; may be asked far more often than a heartbeat is due.

        One that was seen and is not any more is gone, or looks everything through when it comes back.
        """
        return not any(
            len(book) for node_id, book in self._books.items() if node_id not in self._absent or node_id not in self._ever_seen
        )

    # How it goes on.

    def route(
        self, deliveries: Sequence[Delivery], notices: Sequence[Notice], nodes_of_user: Mapping[str, Collection[str]]
    ) -> None:
        """Makes one message a node of each delivery and notice; users who are on no node get it from the log.

        Of a node that is not seen it is noted only: it may be gone, or have come, or come back, a moment ago, which is not
        known here yet, while devices are on it. It is told by heartbeats once it is seen.
        """
        for delivery in deliveries:
            for node_id, user_ids in _by_node(delivery.recipients, nodes_of_user).items():
                if node_id not in self._live:
                    self._note_absent(node_id, delivery)
                    continue
                after_seq = self._books.setdefault(node_id, HeadBook()).note(delivery.chat_id, delivery.seq)
                deliver = Deliver(
                    delivery.chat_id,
                    delivery.seq,
                    delivery.chunk,
                    user_ids,
                    delivery.left_user_id if delivery.left_user_id in user_ids else "",
                    delivery.changes_members,
                    after_seq,
                )
                self._messages.append((node_id, deliver))
        for notice in notices:
            for node_id, user_ids in _by_node(notice.user_ids, nodes_of_user).items():
                if node_id not in self._live:
                    continue
                self._messages.append((node_id, replace(notice.message, to_user_ids=user_ids)))

    def _note_absent(self, node_id: str, delivery: Delivery) -> None:
        book = self._books.setdefault(node_id, HeadBook())
        self._absent.setdefault(node_id, _ABSENT_BEATS)
        if len(book) < _ABSENT_HEADS_MAX or delivery.chat_id in book:
            book.note(delivery.chat_id, delivery.seq)

    def doubt(self, heads: Mapping[str, int], node_ids: Collection[str]) -> None:
        """These nodes may have users of these chats who were not told: the next heartbeats name the heads, until confirmed."""
        for node_id in node_ids:
            book = self._books.setdefault(node_id, HeadBook())
            for chat_id, seq in heads.items():
                book.note(chat_id, seq)

    def _answer(self, asked: _Asked, head_seq: int | None, chat: ActiveChat | None) -> None:
        """The chat is ready, or there is none, or it is damaged."""
        sender_id, question = asked.sender_id, asked.question
        match question:
            case AskHead(chat_id=chat_id, number=number):
                self._messages.append((sender_id, HeadIs(chat_id, number, head_seq or 0, damaged=head_seq is None)))
            case AskMembers(chat_id=chat_id, number=number):
                user_ids = chat.recipients if chat is not None and self._is_small(chat) else ()
                self._messages.append((sender_id, MembersAre(chat_id, number, user_ids)))
            case RaiseMark():
                self._tell_senders(question, chat)
            case TellTyping(chat_id=chat_id, user_id=user_id, kind=kind):
                if chat is not None and chat.may_type(user_id, asked.wall_ms):
                    others = tuple(member_id for member_id in chat.recipients if member_id != user_id)
                    self._notices.append(Notice(others, ShowTyping(chat_id, user_id, kind, ())))

    def _tell_senders(self, raised: RaiseMark, chat: ActiveChat | None) -> None:
        mark = Mark(raised.chat_id, raised.user_id, raised.delivered_seq, raised.read_seq, 0)
        from_seq = Raised(mark, raised.delivered_from_seq, raised.read_from_seq).from_seq
        if from_seq is None:
            return  # it says that nothing rose
        concerned: list[str] = []
        if raised.read_seq > raised.read_from_seq:
            concerned.append(raised.user_id)  # the reader's own other devices
        if chat is not None and self._is_small(chat):
            concerned += [user_id for user_id in chat.senders_above(from_seq) if user_id != raised.user_id]
        if concerned:
            receipt = ShowReceipt(raised.chat_id, raised.user_id, raised.delivered_seq, raised.read_seq, ())
            self._notices.append(Notice(tuple(concerned), receipt))

    def _is_small(self, chat: ActiveChat) -> bool:
        return len(chat.recipients) <= self._limits.small_group_members_max


def _asker(sender_id: str, question: Question) -> tuple[str, ...]:
    """Each asker has one question waiting at a time, since the answer to a later one serves for the earlier ones."""
    match question:
        case RaiseMark(user_id=user_id) | TellTyping(user_id=user_id):
            return sender_id, type(question).__name__, user_id
    return sender_id, type(question).__name__


def _since_earlier(earlier: _Asked | None, raised: RaiseMark) -> RaiseMark:
    """A mark that rises while an earlier rise of it waits has risen from where it stood before that."""
    if earlier is None or not isinstance(earlier.question, RaiseMark):
        return raised
    before = earlier.question
    return replace(
        raised,
        delivered_seq=max(raised.delivered_seq, before.delivered_seq),
        read_seq=max(raised.read_seq, before.read_seq),
        delivered_from_seq=min(raised.delivered_from_seq, before.delivered_from_seq),
        read_from_seq=min(raised.read_from_seq, before.read_from_seq),
    )


def _some_together(heads: dict[str, int]) -> Iterator[dict[str, int]]:
    remaining = iter(heads.items())
    while some := dict(islice(remaining, _HEADS_TOGETHER_MAX)):
        yield some


def _by_node(user_ids: Sequence[str], nodes_of_user: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    by_node: dict[str, list[str]] = {}
    for user_id in user_ids:
        for node_id in nodes_of_user.get(user_id, ()):
            by_node.setdefault(node_id, []).append(user_id)
    return {node_id: tuple(found) for node_id, found in by_node.items()}
