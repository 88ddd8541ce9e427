"""A shard in the hands of one owner: its chats are activated, ordered, appended, answered for, as long as the lease holds.

What comes from outside is handed in with the time at which it *had* happened; what the lease does not cover any more is dropped
without a trace. Nobody is told: who waits for an answer asks the next owner.

What goes wrong with one chat, by what the store holds of it or by a mistake of ours, costs that chat and no other: it is given
up, and refused until it is looked at again (`core.damage`). If rows of it may be on their way, that is not before the next
owner: a row of this epoch that lands late would stand where another one is written.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from chatgrpc.core import row_store
from chatgrpc.core.activation import Activation
from chatgrpc.core.active_chat import ActiveChat, Pending, Ticket
from chatgrpc.core.append_pipeline import AppendPipeline
from chatgrpc.core.budget import Budget
from chatgrpc.core.clock import Now
from chatgrpc.core.damage import Damage, Kind, damage_of
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import BUCKET_SEQS
from chatgrpc.core.ids import RandomBits
from chatgrpc.core.lease import Holds
from chatgrpc.core.limits import Limits
from chatgrpc.core.rates import Rates
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoredBucket, StoredHead, WriteBoundary, WriteMark
from chatgrpc.core.rules import EventMeta
from chatgrpc.core.sequencer import Answer, Delivery, Group, Lookup, Sequencer
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write

Request: TypeAlias = row_store.StoreRead | row_store.StoreWrite | Lookup | ReadIntervals
"""What the shell runs, each until it succeeds; then it calls the method named for it."""


@dataclass(frozen=True, slots=True)
class Head:
    """The answer to `ask_head`: a committed seq, stated by the owner; None if the chat is damaged."""

    ticket: Ticket
    chat_id: str
    seq: int | None
    chat: ActiveChat | None
    """The chat, if it was asked for with it, and exists."""


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """What a shard wants and says since its last step."""

    requests: list[Request]
    """To be run, each until it succeeds."""
    answers: list[Answer]
    """Outcomes of writes; per chat in order of seq."""
    deliveries: list[Delivery]
    """Committed events on their way to the members' devices."""
    heads: list[Head]
    """Answers to `ask_head`."""
    damage: list[Damage]
    """What was found wrong with chats, to be told to operators."""


class Shard:
    """The chats of one shard, for one epoch.

    Whatever comes in, `step` is called after it, and hands out all that follows. Only committed marks are taken at other times
    (`take_marks`), since they are stored when there is time.
    """

    def __init__(
        self,
        epoch: int,
        lease: Holds,
        limits: Limits,
        random_bits: RandomBits,
        bucket_seqs: int = BUCKET_SEQS,
        budget: Budget | None = None,
        rates: Rates | None = None,
    ) -> None:
        """`budget` and `rates` are shared with the node's other shards; none = this is the only one."""
        self.epoch = epoch
        self._lease = lease
        self._limits = limits
        self._bucket_seqs = bucket_seqs
        self._budget = budget or Budget(limits)
        self._tenure = object()  # whose heads the budget remembers
        self._sequencer = Sequencer(epoch, limits, random_bits, self._budget, self._dropped, rates, seals=True)
        self._loading: dict[str, ActiveChat] = {}
        self._activations: dict[str, Activation] = {}
        self._pipelines: dict[str, AppendPipeline] = {}
        self._uncommitted: dict[tuple[str, int], tuple[Entry, tuple[ActiveChat, Pending]]] = {}
        self._requests: list[Request] = []
        self._deliveries: list[Delivery] = []
        self._head_tickets: dict[str, dict[Hashable, Ticket]] = {}  # by chat and asker
        self._heads: list[Head] = []
        self._unmarked: dict[str, int] = {}
        self._kept: set[str] = set()  # chats that are wanted themselves, by questions that wait
        self._lookups_under_way = 0
        self._sealing: set[str] = set()  # chats whose boundary is written so that somebody can be refused
        self._accepting = True

    # What comes in.

    def submit(self, ticket: Ticket, write: Write, now: Now) -> bool:
        """Takes a write; False if this shard takes none any more, and the next owner is to be asked."""
        if not self._accepting or not self._lease.holds(now.monotonic_ms):
            return False
        try:
            self._sequencer.submit(ticket, write, now)
            self._work()
        except Exception as defect:
            self._give_up(write.chat_id, defect)
        return True

    def ask_head(self, ticket: Ticket, chat_id: str, now: Now, asker: Hashable = None, *, with_chat: bool = False) -> bool:
        """Asks for the committed head of a chat; 0 if it has no event. False as for `submit`.

        A chat that is read for this is not kept, and none is dropped for it. If the chat itself is wanted, `with_chat`, it is
        kept as long as there is room.

        While the chat is not ready, of each `asker` (the ticket itself, if none is named) the last ticket waits, and no more
        than `Limits.questions_waiting_per_chat_max` in all: whoever asked asks again.
        """
        if not self._accepting or not self._lease.holds(now.monotonic_ms):
            return False
        if self._sequencer.is_damaged(chat_id):
            self._heads.append(Head(ticket, chat_id, None, None))
            return True
        pipeline = self._pipelines.get(chat_id)
        if pipeline is not None and self._sequencer.holds(chat_id):
            self._heads.append(Head(ticket, chat_id, pipeline.committed_seq, self.chat(chat_id)))
            return True
        if not with_chat and (seq := self._budget.head_of(self._tenure, chat_id)):
            self._heads.append(Head(ticket, chat_id, seq, None))
            return True
        if with_chat:
            self._kept.add(chat_id)
        tickets = self._head_tickets.setdefault(chat_id, {})
        asker = ticket if asker is None else asker
        if asker in tickets or len(tickets) < self._limits.questions_waiting_per_chat_max:
            tickets[asker] = ticket
        try:
            self._sequencer.activate(chat_id)
            self._work()
        except Exception as defect:
            self._give_up(chat_id, defect)
        return True

    def head_read(self, read: ReadHead, found: StoredHead, now: Now) -> None:
        """A `ReadHead` succeeded."""
        activation = self._activations.get(read.chat_id)
        if activation is None or not self._lease.holds(now.monotonic_ms):
            return
        try:
            activation.head_read(found)
            self._go_on(activation, now)
        except Exception as error:
            self._give_up(read.chat_id, error)

    def bucket_read(self, read: ReadBucket, found: StoredBucket, now: Now) -> None:
        """A `ReadBucket` succeeded."""
        activation = self._activations.get(read.chat_id)
        if activation is None or not self._lease.holds(now.monotonic_ms):
            return
        try:
            activation.bucket_read(read, found)
            self._go_on(activation, now)
        except Exception as error:
            self._give_up(read.chat_id, error)

    def read_failed(self, chat_id: str, error: Exception) -> None:
        """A `ReadHead` or `ReadBucket` came to an end that is not the store's being away: the chat cannot be read."""
        if chat_id in self._activations:
            self._give_up(chat_id, error)

    def intervals_read(self, read: ReadIntervals, intervals: tuple[Interval, ...], now: Now) -> None:
        """A `ReadIntervals` succeeded."""
        if not self._lease.holds(now.monotonic_ms):
            return
        try:
            self._sequencer.intervals_read(read, intervals, now)
            self._work()
        except Exception as defect:
            self._give_up(read.chat_id, defect)

    def intervals_failed(self, read: ReadIntervals, error: Exception | None = None) -> None:
        """A `ReadIntervals` was not answered in its time, or came to another end, which `error` says: the writes that wait for
        it fail, retryably."""
        self._sequencer.intervals_failed(read, error)

    def looked_up(
        self,
        lookup: Lookup,
        metas: list[EventMeta],
        group_counts: dict[str, int],
        now: Now,
        opened: frozenset[str] = frozenset(),
    ) -> None:
        """A `Lookup` succeeded."""
        if not self._lease.holds(now.monotonic_ms):
            return
        self._lookups_under_way -= 1
        chat_id = lookup.chat.chat_id
        try:
            self._sequencer.looked_up(lookup, metas, group_counts, now, opened)
            self._work()
        except Exception as defect:
            self._give_up(chat_id, defect)
        self._forget(chat_id)

    def look_up_failed(self, lookup: Lookup, error: Exception | None, now: Now) -> None:
        """A `Lookup` was not answered in its time, or came to another end, which `error` says: its write fails, retryably."""
        if not self._lease.holds(now.monotonic_ms):
            return
        self._lookups_under_way -= 1
        chat_id = lookup.chat.chat_id
        try:
            self._sequencer.look_up_failed(lookup, error, now)
            self._work()
        except Exception as defect:
            self._give_up(chat_id, defect)
        self._forget(chat_id)

    def stored(self, write: row_store.StoreWrite, now: Now) -> None:
        """A write succeeded. `now` was read after the success was known: past the deadline it counts for nothing."""
        if not self._lease.holds(now.monotonic_ms):
            return
        chat_id = _chat_of(write)
        try:
            self._stored(chat_id, write, now)
        except Exception as defect:
            self._give_up(chat_id, defect)

    def write_failed(self, write: row_store.StoreWrite, error: Exception) -> None:
        """A write can never be stored: its chat cannot go on."""
        chat_id = _chat_of(write)
        if chat_id in self._activations or chat_id in self._pipelines:
            self._give_up(chat_id, error)

    def _stored(self, chat_id: str, write: row_store.StoreWrite, now: Now) -> None:
        activation = self._activations.get(chat_id)
        if activation is not None:
            activation.stored(write)
            self._go_on(activation, now)
            return
        pipeline = self._pipelines.get(chat_id)
        if pipeline is None:
            return
        for seq in pipeline.stored(write):
            entry, pair = self._uncommitted.pop((chat_id, seq))
            self._deliveries += self._sequencer.committed(Group([entry], [pair]))
            self._unmarked[chat_id] = seq
        for chat in self._sequencer.take_admitted():
            self._sequencer.go_on(chat, now)
        if isinstance(write, WriteBoundary):
            self._sealing.discard(chat_id)
            self._sequencer.sealed(chat_id)
        self._requests += pipeline.take_writes()
        self._work()

    def look_again(self) -> None:
        """Chats that were damaged may have been mended: who asks for one has it read again."""
        self._sequencer.look_again()

    def stop_accepting(self) -> None:
        """The shard is to be given away: what was taken is finished, nothing more is taken."""
        self._accepting = False

    def drop(self) -> None:
        """The shard is not ours any more."""
        self._sequencer.drop()

    # What goes out.

    @property
    def is_idle(self) -> bool:
        """Nothing is on its way to the store, and nothing waits: the shard may be given away."""
        return not (self._uncommitted or self._activations or self._lookups_under_way or self._sealing or self._sequencer.asks)

    def holds(self, now: Now) -> bool:
        """Whether the lease holds; once it does not, the shard is to be dropped."""
        return self._lease.holds(now.monotonic_ms)

    def asked(self, chat_id: str, asker: Hashable) -> Ticket | None:
        """The ticket of this asker that waits for the chat to be ready."""
        return self._head_tickets.get(chat_id, {}).get(asker)

    @property
    def held_bytes(self) -> int:
        """Contents that wait to be decided, and events that are not committed yet, of all that share the budget."""
        return self._budget.held_bytes

    @property
    def questions_waiting(self) -> int:
        """How many tickets wait for their chats to be ready."""
        return sum(map(len, self._head_tickets.values()))

    def chat(self, chat_id: str) -> ActiveChat | None:
        """A chat that is ready, as `ask_head` makes it, and exists; None otherwise."""
        return self._sequencer.chat(chat_id) if chat_id in self._pipelines else None

    @property
    def chats_active(self) -> int:
        """How many chats are ready."""
        return len(self._pipelines)

    @property
    def appends_waiting(self) -> int:
        """How many events have their seq and are not committed yet."""
        return len(self._uncommitted)

    def step(self) -> ShardOutput:
        """What the shard wants and says since the last step; all of it is handed out once."""
        sequencer = self._sequencer
        output = ShardOutput(self._requests, sequencer.take_answers(), self._deliveries, self._heads, sequencer.take_damage())
        self._requests, self._deliveries, self._heads = [], [], []
        return output

    def damaged(self) -> list[Damage]:
        """Chats that are refused now."""
        return self._sequencer.damaged()

    def take_marks(self) -> list[WriteMark]:
        """Committed marks that rose since the last call; to be written when there is time, and when the shard is given away."""
        marks = [WriteMark(chat_id, seq) for chat_id, seq in self._unmarked.items()]
        self._unmarked.clear()
        return marks

    # How it goes on.

    def _work(self) -> None:
        """Takes what the sequencer wants next."""
        for chat in self._sequencer.take_loads():
            self._activate(chat)
        self._requests += self._sequencer.take_intervals()
        lookups = self._sequencer.take_lookups()
        self._lookups_under_way += len(lookups)
        self._requests += lookups
        while (group := self._sequencer.take_group()) is not None:
            for entry, pair in zip(group.entries, group.pending, strict=True):
                self._uncommitted[entry.chat_id, entry.seq] = (entry, pair)
                pipeline = self._pipelines[entry.chat_id]
                pipeline.append(entry)
                self._requests += pipeline.take_writes()
        for chat_id in self._sequencer.take_seals():
            self._seal(chat_id)

    def _seal(self, chat_id: str) -> None:
        pipeline = self._pipelines.get(chat_id)
        if pipeline is None:
            return  # given up meanwhile, and all who waited have their answers
        if pipeline.is_sealed:
            self._sequencer.sealed(chat_id)
            return
        self._sealing.add(chat_id)
        pipeline.seal()
        self._requests += pipeline.take_writes()

    def _activate(self, chat: ActiveChat) -> None:
        """Takes a chat over: also one that the sequencer had forgotten, being idle, within the same epoch."""
        self._pipelines.pop(chat.chat_id, None)
        self._loading[chat.chat_id] = chat
        activation = self._activations[chat.chat_id] = self._new_activation(chat.chat_id)
        self._requests += activation.take_reads()

    def _new_activation(self, chat_id: str) -> Activation:
        return Activation(chat_id, self.epoch, self._bucket_seqs)

    def _new_pipeline(self, activation: Activation) -> AppendPipeline:
        return AppendPipeline(
            activation.chat_id,
            self.epoch,
            activation.head_seq,
            activation.first_seq,
            activation.buckets_with_boundary,
            self._limits.appends_in_flight_per_chat_max,
            self._bucket_seqs,
        )

    def _go_on(self, activation: Activation, now: Now) -> None:
        self._requests += activation.take_reads()
        self._requests += activation.take_writes()
        chat_id = activation.chat_id
        if activation.superseded:
            # The lease says that nobody else can be there: epochs have fallen back. To go on would be to order the chat anew.
            why = "the store holds a later epoch of it than this owner's"
            self._refuse(Damage(chat_id, Kind.EPOCH_FELL, why, for_good=True))
            return
        if not activation.ready:
            return
        del self._activations[chat_id]
        pipeline = self._pipelines[chat_id] = self._new_pipeline(activation)
        if activation.head_seq > activation.mark_seq:
            self._unmarked[chat_id] = activation.head_seq
        self._deliveries += activation.untold
        self._sequencer.loaded(self._loading.pop(chat_id), activation.stored_chat, now)
        tickets = self._head_tickets.pop(chat_id, {})
        chat = self.chat(chat_id)
        seq = None if self._sequencer.is_damaged(chat_id) else pipeline.committed_seq
        self._heads += [Head(ticket, chat_id, seq, chat) for ticket in tickets.values()]
        self._work()
        self._sequencer.answered(chat_id, keep=chat_id in self._kept)
        self._kept.discard(chat_id)
        self._forget(chat_id)

    def _give_up(self, chat_id: str, error: Exception) -> None:
        """Something is wrong with the chat: what it has in memory is dropped, half changed as it may be."""
        activation = self._activations.get(chat_id)
        may_land = (
            chat_id in self._sealing
            or any(of_chat == chat_id for of_chat, _ in self._uncommitted)
            or (activation is not None and activation.writes)
        )
        self._refuse(damage_of(chat_id, error, for_good=may_land))

    def _refuse(self, damage: Damage) -> None:
        chat_id = damage.chat_id
        self._activations.pop(chat_id, None)
        self._loading.pop(chat_id, None)
        self._pipelines.pop(chat_id, None)
        self._unmarked.pop(chat_id, None)
        self._sealing.discard(chat_id)
        for key in [key for key in self._uncommitted if key[0] == chat_id]:
            del self._uncommitted[key]
        self._heads += [Head(ticket, chat_id, None, None) for ticket in self._head_tickets.pop(chat_id, {}).values()]
        self._kept.discard(chat_id)
        self._sequencer.damage(damage)

    def _forget(self, chat_id: str) -> None:
        """Drops what the sequencer has dropped: a name that nobody made a chat of."""
        if not self._sequencer.holds(chat_id):
            self._pipelines.pop(chat_id, None)

    def _dropped(self, chat_id: str) -> None:
        """The chat was idle, and made room."""
        pipeline = self._pipelines.pop(chat_id, None)
        if pipeline is not None and pipeline.committed_seq:
            self._budget.remember_head(self._tenure, chat_id, pipeline.committed_seq)


def _chat_of(write: row_store.StoreWrite) -> str:
    return write.entry.chat_id if isinstance(write, row_store.WriteViews) else write.chat_id
