"""How a node among many orders writes: it asks the owners of the chats, itself among them, and answers as one.

The messages that came are taken in, as many as there is time for in a tick, what can go on goes on, and what is to be said is
handed to the links, which send it as one batch a node. What a node says to itself takes the same way, without a link.

A message that our own code trips over, whoever sent it, costs that message and nothing else.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Protocol

from chatgrpc.cluster.router import Router
from chatgrpc.cluster.store_runner import StoreRunner
from chatgrpc.core.active_chat import Ticket
from chatgrpc.core.clock import Now
from chatgrpc.core.edge_desk import EdgeDesk, Missed
from chatgrpc.core.lanes import Forward, Forwarded
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    EndStream,
    EndStreamHeard,
    HeadIs,
    Heads,
    HeadsHeard,
    Load,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.owner_desk import Notice, OwnerDesk, OwnerOutput, Tenure
from chatgrpc.core.sequencer import Answer, Delivery
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.ordering import Progress
from chatgrpc.edge.slices import Backlog, Slice
from chatgrpc.ports.lease_clock import now as moment

_TO_EDGE = (Forwarded, Deliver, Heads, HeadIs, MembersAre, ShowReceipt, ShowTyping)
_TO_OWNER = (Forward, HeadsHeard, AskHead, AskMembers, RaiseMark, TellTyping)

_INBOX_BATCHES_MAX = 64
"""What links brought and nobody has looked at; one more of each link may come."""
_TO_SHOW_MAX = 20_000
"""Receipts that wait to be shown, counted by who is to see them, before a node drops them; typing is dropped at half of it."""
_BEAT_INTERVAL_S = 1.0
_LOOK_AGAIN_INTERVAL_S = 30.0
_HEARD_INTERVAL_S = 0.05


class Listener(Protocol):
    """Who is told what owners say besides events and answers."""

    def show(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        """Receipts and typing for users of this node; shown as it is stepped through, a step for each of them."""
        ...

    def end_stream(self, sender_id: str, message: EndStream) -> None:
        """Another node says that a device has gone there, or was revoked; it says so until it is told `EndStreamHeard`."""
        ...

    def end_stream_heard(self, node_id: str, message: EndStreamHeard) -> None:
        """Another node has done what `EndStream` asked for."""
        ...

    def note_load(self, node_id: str, streams: int) -> None:
        """Another node says how busy it is."""
        ...

    def missed(self, missed: Mapping[str, Missed]) -> None:
        """Pushes of these chats were lost, that may have let users of this node in or out."""
        ...

    def shard_failed(self, tenure: Tenure, defect: Exception) -> None:
        """A mistake of the program has cost this node a shard, which is to be given back."""
        ...


class ClusterOrdering:
    """`edge.ordering.Ordering` over the owners of the cluster."""

    def __init__(
        self,
        node_id: str,
        edge: EdgeDesk,
        owner: OwnerDesk,
        runner: StoreRunner,
        router: Router,
        book: DamageBook,
        send: Callable[[str, Message], bool],
        wake_up: Callable[[], None],
        *,
        beat_interval_s: float = _BEAT_INTERVAL_S,
        look_again_interval_s: float = _LOOK_AGAIN_INTERVAL_S,
        clock_s: Callable[[], float] = perf_counter,
    ) -> None:
        """`send` hands a message to the link with a node; False = there is none, and it is lost.

        `book` is told of chats that are damaged, and of messages that could not be taken. Owners name unconfirmed pushes, and
        store committed marks, every `beat_interval_s`; they look again at damaged chats every `look_again_interval_s`.
        `clock_s` says when a slice of work is over.
        """
        self._book = book
        self._look_again_interval_ms = int(look_again_interval_s * 1000)
        self._look_again_at_ms = moment().monotonic_ms + self._look_again_interval_ms
        self.edge = edge
        self.owner = owner
        self._node_id = node_id
        self._runner = runner
        self._router = router
        self._send = send
        self._wake_up = wake_up
        self._listener: Listener | None = None
        self._clock_s = clock_s
        self._inbox: deque[tuple[str, Iterator[Message]]] = deque()
        self._room = asyncio.Event()  # in the inbox
        self._to_show = Backlog()
        self._beat_interval_ms = int(beat_interval_s * 1000)
        self._beat_at_ms = 0
        self._quiet = asyncio.Event()
        self._finishing: list[tuple[Tenure, asyncio.Future[None]]] = []

    def tell(self, listener: Listener) -> None:
        """Says who hears what is not for the tick loop."""
        self._listener = listener

    # Ordering.

    def submit(self, ticket: Ticket, session_id: str, write: Write, now: Now) -> None:
        """See the protocol."""
        self.edge.submit(session_id, ticket, write, now.monotonic_ms)

    def session_closed(self, session_id: str) -> None:
        """See the protocol."""
        self.edge.close(session_id)

    def pump(self, now: Now) -> Progress:
        """See the protocol."""
        at = moment()  # what the store has answered is judged by a clock that is read after it
        self._runner.take_in(at)
        self._router.take_in()
        self._take_inbox(at)
        self._room.set()
        progress = self._hand_out(at)
        self._note_what_is_done()
        return progress

    def _take_inbox(self, at: Now) -> None:
        """Takes what links brought, in its order, until its slice of time is over; the next tick goes on."""
        slice_ = Slice(self._clock_s)
        while self._inbox:
            sender_id, messages = self._inbox[0]
            for message in messages:
                self._receive(sender_id, message, at)
                if slice_.is_over:
                    self._wake_up()
                    return
            self._inbox.popleft()

    def pass_time(self, now: Now) -> None:
        """See the protocol."""
        at_ms = now.monotonic_ms
        self.edge.pass_time(at_ms)
        if at_ms - self._beat_at_ms >= self._beat_interval_ms:
            self._beat_at_ms = at_ms
            for node_id, message in self.owner.beat():
                self._post(node_id, message)
            self._runner.save_marks()
        if at_ms >= self._look_again_at_ms:
            self._look_again_at_ms = at_ms + self._look_again_interval_ms
            self.owner.look_again()
        self._wake_up()

    async def settle(self) -> None:
        """See the protocol; what other owners do not answer is given up after its time."""
        while not self._is_idle:
            self._quiet.clear()
            await self._quiet.wait()

    async def until_heard(self) -> None:
        """Returns when every node has confirmed what was pushed to it, and what passed it by while the session map was away."""
        while not self._is_heard():  # noqa: ASYNC110  the desk is without I/O, and has no events
            await asyncio.sleep(_HEARD_INTERVAL_S)

    def _is_heard(self) -> bool:
        if not self._router.is_idle:
            return False
        self._router.tell_of_memory()
        return self.owner.is_heard

    # Links and cluster.

    def receive(self, sender_id: str, messages: list[Message]) -> None:
        """Takes what came over a link; it is looked at in the next tick."""
        self._inbox.append((sender_id, iter(messages)))
        self._wake_up()

    async def caught_up(self) -> None:
        """Returns once not too much waits to be looked at: while the tick loop is behind, links read no more, and the nodes at
        their other ends keep what they have to say, within the bounds of their outboxes."""
        while len(self._inbox) >= _INBOX_BATCHES_MAX:
            self._room.clear()
            await self._room.wait()

    def see(self, owners: Mapping[int, ShardOwner], live_node_ids: frozenset[str]) -> None:
        """The cluster has changed."""
        self.owner.see(live_node_ids)
        self.edge.see(owners, moment().monotonic_ms)
        self._wake_up()

    def linked(self, node_id: str) -> None:
        """There is a link with this node, for the first time or again."""
        self.edge.linked(node_id, moment().monotonic_ms)
        self._wake_up()

    def say(self, node_id: str, message: Message) -> None:
        """Says something to a node."""
        self._post(node_id, message)
        self._wake_up()

    async def finish(self, tenure: Tenure) -> None:
        """A shard is to be given away: it accepts nothing more; returns when all that it accepted is done, or it is lost."""
        tenure.shard.stop_accepting()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finishing.append((tenure, done))
        self._wake_up()
        await done

    def _note_what_is_done(self) -> None:
        if self._is_idle:
            self._quiet.set()
        for tenure, done in self._finishing:
            if not done.done() and (tenure.shard.is_idle or not self.owner.holds(tenure)):
                done.set_result(None)
        self._finishing = [(tenure, done) for tenure, done in self._finishing if not done.done()]

    @property
    def _is_idle(self) -> bool:
        return self.edge.is_idle and not self._runner.writes_under_way and self._router.is_idle

    def _receive(self, sender_id: str, message: Message, at: Now) -> None:
        try:
            self._take(sender_id, message, at)
        except Exception as defect:
            self._book.defect("message", defect, kind=type(message).__name__, peer=sender_id)

    def _take(self, sender_id: str, message: Message, at: Now) -> None:
        if isinstance(message, _TO_EDGE):
            self.edge.receive(sender_id, message, at.monotonic_ms)
        elif isinstance(message, _TO_OWNER):
            self.owner.receive(sender_id, message, at)
        elif isinstance(message, EndStream):
            self._heard_by().end_stream(sender_id, message)
        elif isinstance(message, EndStreamHeard):
            self._heard_by().end_stream_heard(sender_id, message)
        elif isinstance(message, Load):
            self._heard_by().note_load(sender_id, message.streams)

    def _hand_out(self, at: Now) -> Progress:
        """Steps both desks, and takes what this node says to itself, until it has nothing more to say."""
        answers: list[Answer] = []
        deliveries: list[Delivery] = []
        missed: dict[str, Missed] = {}
        notices: list[ShowReceipt | ShowTyping] = []
        to_route: tuple[list[Delivery], list[Notice]] = [], []
        while True:
            owner, edge = self.owner.step(), self.edge.step(at.monotonic_ms)
            self._runner.start(owner.requests)
            self._tell_what_went_wrong(owner)
            to_route[0].extend(owner.deliveries)
            to_route[1].extend(owner.notices)
            answers += [Answer(ticket, outcome) for ticket, _, outcome in edge.answers]
            deliveries += [_delivery(deliver) for deliver in edge.deliveries]
            notices += edge.notices
            for chat_id, found in edge.missed.items():
                missed[chat_id] = missed[chat_id] | found if chat_id in missed else found
            if not (edge.messages or owner.messages):
                break
            for node_id, message in edge.messages + owner.messages:
                if node_id == self._node_id:
                    self._receive(node_id, message, at)
                else:
                    self._send(node_id, message)
        self._router.start(*to_route)
        for notice in notices:
            self._show_soon(notice)
        self._show()
        if missed:
            self._heard_by().missed(missed)
        return Progress(answers, deliveries, {chat_id: found.seq for chat_id, found in missed.items()})

    def _tell_what_went_wrong(self, owner: OwnerOutput) -> None:
        for damage in owner.damage:
            self._book.note(damage)
        for tenure, defect in owner.failed:
            self._heard_by().shard_failed(tenure, defect)

    def _show_soon(self, notice: ShowReceipt | ShowTyping) -> None:
        """What a message brings may be for hundreds of users. A node that is behind with it drops some, as links do: it is not
        worth that events wait for it, typing is old by then, and a receipt is told again, or said by the device's next Hello.
        """
        most = _TO_SHOW_MAX if isinstance(notice, ShowReceipt) else _TO_SHOW_MAX // 2
        if self._to_show.steps < most:
            self._to_show.add(self._shown(notice), len(notice.to_user_ids))

    def _shown(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        try:
            yield from self._heard_by().show(notice)
        except Exception as defect:
            self._book.defect("message", defect, kind=type(notice).__name__)

    def _show(self) -> None:
        """Goes on with what is to be shown, until its slice of time is over; the next tick goes on."""
        if self._to_show.go_on(Slice(self._clock_s)):
            self._wake_up()

    def _post(self, node_id: str, message: Message) -> None:
        if node_id == self._node_id:
            self._inbox.append((node_id, iter([message])))
        else:
            self._send(node_id, message)

    def _heard_by(self) -> Listener:
        assert self._listener is not None, "the node has been wired"
        return self._listener


def _delivery(deliver: Deliver) -> Delivery:
    return Delivery(
        deliver.chat_id, deliver.seq, deliver.chunk, deliver.user_ids, deliver.left_user_id, deliver.changes_members
    )
