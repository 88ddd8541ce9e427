"""Known mistakes, each planted into one part of an otherwise right cluster, to see that the simulator finds it."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from chatgrpc.cluster.missed import EventReader
from chatgrpc.core import row_store
from chatgrpc.core.activation import Activation
from chatgrpc.core.active_chat import ActiveChat, Ticket
from chatgrpc.core.append_pipeline import AppendPipeline
from chatgrpc.core.clock import Now
from chatgrpc.core.doubts import EVERYTHING, Doubt, Doubts
from chatgrpc.core.edge_desk import EdgeDesk, ForEdge, Missed
from chatgrpc.core.entries import Entry, StoredEvent
from chatgrpc.core.epochs import Row, bucket_of, committed_run
from chatgrpc.core.event_feed import EventFeed
from chatgrpc.core.events import erased
from chatgrpc.core.lanes import EdgeLanes, Forward, Forwarded, OwnerLanes
from chatgrpc.core.lease import Keepalive, Lease
from chatgrpc.core.links import Deliver
from chatgrpc.core.owner_desk import OwnerDesk
from chatgrpc.core.row_store import WriteRow
from chatgrpc.core.rules import EventMeta
from chatgrpc.core.sequencer import Delivery, Lookup
from chatgrpc.core.session import Session, State
from chatgrpc.core.session_book import Device, News, Put, SessionBook, SessionEntry
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from tests.sim.parts import Parts
from tests.sim.store import Replica, row_timestamp

_EVERY_BUCKET = set(range(1_000))


# Who may go on.


class DeadlineAfterAnswer(Lease):
    """Counts the lease from when the keepalive's answer came."""

    def answered(self, keepalive: Keepalive, now_ms: int, ttl_ms: int | None = None) -> None:
        super().answered(Keepalive(now_ms), now_ms, ttl_ms)


class DeadlineIgnored(Lease):
    """Goes on until the coordinator says that the lease is gone."""

    def holds(self, now_ms: int) -> bool:
        return not self._over


# Who may write.


class AdmittedAtOnce(ActiveChat):
    __slots__ = ()

    def await_admission(self, user_id: str) -> bool:
        return False


class WritesOfTheAdmittedNotHeld(Shard):
    """Gives a write its seq while the event that lets its sender in is not committed."""

    def _activate(self, chat: ActiveChat) -> None:
        chat.__class__ = AdmittedAtOnce
        super()._activate(chat)


# How a chat is taken over.


class NoBoundary(Activation):
    def _boundary_writes(self) -> list[row_store.StoreWrite]:
        return []

    def _finish(self) -> None:
        self.buckets_with_boundary = set(_EVERY_BUCKET)
        super()._finish()


class BoundaryFirst(Activation):
    def _plan(self) -> list[list[row_store.StoreWrite]]:
        plan = super()._plan()
        return [plan[1], plan[0], *plan[2:]] if plan else plan


class NotWrittenAgain(Activation):
    """Takes adopted rows for committed as they stand, and rules from behind them."""

    def _first_ruled_seq(self) -> int:
        return self.head_seq + 1

    def _adopted_rows(self) -> list[row_store.StoreWrite]:
        return []


class AdoptedUnderOldEpoch(Activation):
    def _first_ruled_seq(self) -> int:
        return self.head_seq + 1

    def _adopted_rows(self) -> list[row_store.StoreWrite]:
        return [WriteRow(self.chat_id, bucket_of(row.seq, self._bucket_seqs), row) for row in self._tail]


class StaleTail(Activation):
    """Misses the last row of the tail."""

    def _find_tail(self) -> list[Row]:
        return super()._find_tail()[:-1]


# How a chat is appended to.


class AcknowledgedEarly(AppendPipeline):
    """Counts all that is under way as soon as anything lands."""

    def stored(self, write: row_store.StoreWrite) -> list[int]:
        self._landed.update(self._under_way)
        return super().stored(write)


class AcknowledgedOutOfOrder(AppendPipeline):
    """A row that has landed lets all below it count."""

    def stored(self, write: row_store.StoreWrite) -> list[int]:
        if isinstance(write, WriteRow):
            self._landed.update(seq for seq in self._under_way if seq < write.row.seq)
        return super().stored(write)


class BoundaryInFirstBucketOnly(AppendPipeline):
    """Writes no boundary into the later buckets."""

    def append(self, entry: Entry) -> None:
        if self._buckets_with_boundary or self._next_seq > self._first_seq:
            self._buckets_with_boundary |= {bucket_of(self._next_seq, self._bucket_seqs)}
        super().append(entry)


class RowChangedByRetry(AppendPipeline):
    """Gives the next event the seq of one whose write was not answered yet, if the window is full."""

    def _let_out(self) -> None:
        for seq in list(self._under_way)[1:]:
            if len(self._under_way) >= self._window and seq not in self._landed:
                entry = self._under_way[seq]
                event = entry.event[:-1] + bytes([entry.event[-1] ^ 1])
                self._writes.append(WriteRow(self.chat_id, bucket_of(seq, self._bucket_seqs), Row(seq, entry.epoch, event)))
        super()._let_out()


class MistakenShard(Shard):
    """One with another activation or pipeline."""

    def __init__(self, activation: type[Activation], pipeline: type[AppendPipeline], *of_shard: Any) -> None:
        super().__init__(*of_shard)
        self._activation = activation
        self._pipeline = pipeline

    def _new_activation(self, chat_id: str) -> Activation:
        return self._activation(chat_id, self.epoch, self._bucket_seqs)

    def _new_pipeline(self, ready: Activation) -> AppendPipeline:
        window = self._limits.appends_in_flight_per_chat_max
        return self._pipeline(
            ready.chat_id,
            self.epoch,
            ready.head_seq,
            ready.first_seq,
            ready.buckets_with_boundary,
            window,
            self._bucket_seqs,
        )


def _shard_using(
    activation: type[Activation] = Activation, pipeline: type[AppendPipeline] = AppendPipeline
) -> Callable[..., Shard]:
    return partial(MistakenShard, activation, pipeline)


class NoDedupe(Shard):
    """Looks for an earlier try in memory only: the dedupe window is too small."""

    def looked_up(
        self,
        lookup: Lookup,
        metas: list[EventMeta],
        group_counts: dict[str, int],
        now: Now,
        opened: frozenset[str] = frozenset(),
    ) -> None:
        super().looked_up(lookup, [], group_counts, now)


# How writes travel.


class AnyOrder(OwnerLanes):
    """Takes a lane's writes as they come."""

    def receive(self, forward: Forward) -> bool | Forwarded:
        verdict = super().receive(forward)
        incoming = self._lanes[forward.lane]
        return True if verdict is False and forward.number > incoming.expected else verdict


class OneLaneAtATime(EdgeLanes):
    """Sends the newest first."""

    def take_forwards(self, now_ms: int) -> list[Forward]:
        return [
            Forward(forward.lane, forward.number, forward.number, forward.write)
            for forward in reversed(super().take_forwards(now_ms))
        ]


class KeylessSentAtOnce(EdgeDesk):
    """Sends a write without a key on its way, and again to the next owner, without having asked where the chat ended."""

    def submit(self, session_id: str, ticket: Ticket, write: Write, now_ms: int) -> None:
        self._submit(session_id, ticket, write, now_ms)


class RefusedByAnyOwner(EdgeDesk):
    """Takes a refusal for the last word though the write was sent to another owner since."""

    def _is_refused_by_another(self, forwarded: Forwarded) -> bool:
        return False


class TakenForAnotherOwner(OwnerLanes):
    """Takes what was sent to an earlier owner on the same node."""

    def receive(self, forward: Forward) -> bool | Forwarded:
        return super().receive(replace(forward, epoch=0))


class StatedTakenForPushed(EdgeDesk):
    """Takes an event for pushed if anybody has stated a head above it."""

    def _was_pushed(self, sender_id: str, chat_id: str, seq: int) -> bool:
        return seq <= self.stated_seq(chat_id)


class EarlierPushNotMissed(EdgeDesk):
    """Looks only at the heads in heartbeats."""

    def receive(self, sender_id: str, message: ForEdge, now_ms: int) -> None:
        super().receive(sender_id, replace(message, after_seq=0) if isinstance(message, Deliver) else message, now_ms)


# How events are shown.


class GapAtTheSeam(EventFeed):
    """Goes live where the head is, wherever the last page ended."""

    def log_read(self, events: list[StoredEvent]) -> None:
        reading = self._reading
        super().log_read(events)
        cursor = self._cursors.get(reading.chat_id) if reading is not None else None
        if cursor is not None:
            cursor.pushed_seq = cursor.head_seq


class GapNotRepaired(EventFeed):
    """Pushes whatever comes next."""

    def deliver(self, chat_id: str, seq: int, chunk: bytes, last: bool) -> None:
        cursor = self._cursors.get(chat_id)
        if cursor is not None and not cursor.lags and seq > cursor.head_seq + 1:
            cursor.head_seq = cursor.pushed_seq = seq - 1
        super().deliver(chat_id, seq, chunk, last)


class StaleMembership(EventFeed):
    """Repairs a gap by the membership it knows, which may have ended and begun in the gap."""

    def deliver(self, chat_id: str, seq: int, chunk: bytes, last: bool) -> None:
        self.note_head(chat_id, seq - 1)
        super().deliver(chat_id, seq, chunk, last)

    def note_head(self, chat_id: str, seq: int) -> None:
        cursor = self._cursors.get(chat_id)
        if cursor is not None and cursor.is_open and cursor.head_seq < seq:
            cursor.head_seq = seq
            self._lag(chat_id, cursor)


class LostPushNotMissed(EventFeed):
    """Pays no heed to the heads in heartbeats."""

    def note_head(self, chat_id: str, seq: int) -> None:
        pass


def first_row_found(rows: Iterable[Row], after_seq: int, stated_seq: int) -> list[Row]:
    """Serves a row that a later epoch has replaced."""
    lowest: dict[int, Row] = {}
    for row in rows:
        if row.seq not in lowest or lowest[row.seq].epoch > row.epoch:
            lowest[row.seq] = row
    return committed_run(lowest.values(), after_seq, stated_seq)


def beyond_the_stated(rows: Iterable[Row], after_seq: int, stated_seq: int) -> list[Row]:
    """Trusts the last row it finds."""
    return committed_run(rows, after_seq, 1_000_000)


class UnseenNodesForgotten(OwnerDesk):
    """Takes a node that it does not see for gone."""

    def _note_absent(self, node_id: str, delivery: Delivery) -> None:
        pass


def _parts(**changed: Any) -> Parts:
    parts = Parts()
    for name, part in changed.items():
        assert hasattr(parts, name)
        setattr(parts, name, part)
    return parts


class ViewsAllAtOnce(Activation):
    """Stores what follows from the adopted events in any order."""

    def _plan(self) -> list[list[row_store.StoreWrite]]:
        plan = super()._plan()
        return [*plan[:2], [write for step in plan[2:] for write in step]] if plan else plan


class NobodyTold(Activation):
    """Adopts events, and tells nobody."""

    def _finish(self) -> None:
        super()._finish()
        self.untold.clear()


def rows_that_are_there_erased(replica: Replica, chat_id: str, bucket: int, row: Row, entry: Entry) -> None:
    """Erases what the replica holds, and not what lands there later."""
    replica.erase(chat_id, bucket, row, entry.epoch)
    replica.bucket(chat_id, bucket).shadows.clear()


def erased_under_the_epoch_of_the_row(replica: Replica, chat_id: str, bucket: int, row: Row, entry: Entry) -> None:
    """Leaves the erased row where it was: if its owner adopts it once more, what it writes is hidden, and this one void."""
    found = replica.bucket(chat_id, bucket)
    found.shadow(row.seq, row_timestamp(entry.epoch) + 1)
    found.put((row.seq, row.epoch), row_timestamp(entry.epoch) + 2, erased(row.event))


def every_row_erased(replica: Replica, chat_id: str, bucket: int, row: Row, entry: Entry) -> None:
    """Shadows the rows of later epochs too."""
    replica.erase(chat_id, bucket, row, entry.epoch)
    replica.bucket(chat_id, bucket).shadow(row.seq, 4 * entry.epoch + 1_000)


class HeadsNotAskedAgain(Doubts[str]):
    """Trusts in heartbeats, also of owners that are gone."""

    def take(self, sessions: Iterable[tuple[str, State]]) -> list[tuple[str, Doubt]]:
        return [(who, Doubt(memberships=doubt.memberships)) for who, doubt in super().take(sessions)]


class MembershipsNotReadAgain(Doubts[str]):
    """Looks only for events of chats that the sessions know."""

    def take(self, sessions: Iterable[tuple[str, State]]) -> list[tuple[str, Doubt]]:
        return [(who, Doubt(doubt.everything, doubt.shards, memberships=False)) for who, doubt in super().take(sessions)]


async def nobody_concerned(reader: EventReader, chat_id: str, missed: Missed, events_max: int) -> Collection[str]:
    """Takes it that a push that was lost let nobody in or out."""
    return ()


class LinkThatCameBackTrusted(Doubts[str]):
    """Takes it that nothing was left out while there was no link."""

    def linked(self, node_id: str, now_ms: int) -> Doubt | None:
        return None


class LostLeaseTrusted(Doubts[str]):
    """Takes it that nothing was left out while others took this node for gone."""

    def returned(self, now_ms: int) -> Doubt:
        return EVERYTHING


class OpeningSessionsForgotten(Doubts[str]):
    """Tells a session to look again only if it is open already."""

    def take(self, sessions: Iterable[tuple[str, State]]) -> list[tuple[str, Doubt]]:
        return super().take([(who, state) for who, state in sessions if state is State.OPEN])


class DeafWhileOpening(Session):
    """Pays no heed to heads that are stated while it is opened and may have read older ones."""

    def note_heads(self, heads: Mapping[str, int]) -> None:
        if self.state is State.OPEN:
            super().note_heads(heads)


class PushLostWhileOpeningForgotten(Doubts[str]):
    """Takes it that who is opening finds out by itself what was pushed meanwhile."""

    def missed(self, chat_ids: Collection[str], sessions: Iterable[tuple[str, State]]) -> None:
        pass


class ShardsOfNowSuspected(Doubts[str]):
    """Suspects only the shards that a node had to the last."""

    def see(self, owners: Mapping[int, ShardOwner], live: Collection[str], drained: Collection[str] = ()) -> Doubt | None:
        doubt = super().see(owners, live, drained)
        self._had = {
            node_id: {shard for shard in had if shard in owners and owners[shard].node_id == node_id}
            for node_id, had in self._had.items()
        }
        return doubt


class TakenOverByNobody(SessionBook):
    """Leaves alone an entry that names another node: it may be right. If it is not, nothing says so."""

    def _lacking(self, devices: Iterable[Device], found: Collection[SessionEntry]) -> tuple[SessionEntry, ...]:
        standing = {entry.device for entry in found}
        return tuple(entry for entry in super()._lacking(devices, found) if entry.device not in standing)


class WrittenBackInSilence(SessionBook):
    """Takes it that nobody pushed anything while the entries lacked."""

    def take_news(self) -> News:
        return replace(super().take_news(), in_doubt=False)


class FailedTripForgotten(SessionBook):
    """Looks at the node's own entry only, also after a trip of which nobody knows whether it was made."""

    def failed(self, now_ms: int) -> None:
        super().failed(now_ms)
        self._in_doubt = False


class CanaryLast(SessionBook):
    """Writes the node's own entry when all others stand."""

    def _write_canary(self, now_ms: int) -> Any:
        self._unchecked = deque(self._live)
        self._next_of_look = self._check_some

    def _check_some(self, now_ms: int) -> Any:
        if not self._unchecked:
            return self._step_of_look(Put((self.canary,)), lambda answer, now_ms: self._all_checked())
        return super()._check_some(now_ms)


MISTAKES: dict[str, Parts] = {
    "a write without a key sent again as it stands": _parts(edge_desk=KeylessSentAtOnce),
    "no boundary written": _parts(shard=_shard_using(NoBoundary)),
    "deadline taken after the keepalive's answer": _parts(lease=DeadlineAfterAnswer),
    "deadline ignored": _parts(lease=DeadlineIgnored),
    "acknowledgement before commit": _parts(shard=_shard_using(pipeline=AcknowledgedEarly)),
    "acknowledgement out of order": _parts(shard=_shard_using(pipeline=AcknowledgedOutOfOrder)),
    "seq from a stale tail": _parts(shard=_shard_using(StaleTail)),
    "dedupe window too small": _parts(shard=NoDedupe),
    "a write taken before its sender's admission counts": _parts(shard=WritesOfTheAdmittedNotHeld),
    "go-back-N without order": _parts(owner_lanes=AnyOrder),
    "re-sent newest first": _parts(edge_lanes=OneLaneAtATime),
    "a refusal of an earlier owner taken for the last word": _parts(edge_desk=RefusedByAnyOwner),
    "replay handing over to live with a gap": _parts(feed=GapAtTheSeam),
    "gap of a lost push not repaired": _parts(feed=GapNotRepaired),
    "lost last push not missed": _parts(feed=LostPushNotMissed),
    "gap repaired by a stale membership": _parts(feed=StaleMembership),
    "voided row served": _parts(read_committed=first_row_found),
    "a row above the stated committed seq shown to a reader": _parts(read_committed=beyond_the_stated),
    "adopted tail not written again": _parts(shard=_shard_using(NotWrittenAgain)),
    "adopted under the old epoch": _parts(shard=_shard_using(AdoptedUnderOldEpoch)),
    "boundary before the adopted rows": _parts(shard=_shard_using(BoundaryFirst)),
    "boundary in the first bucket only": _parts(shard=_shard_using(pipeline=BoundaryInFirstBucketOnly)),
    "a retry that changes the row": _parts(shard=_shard_using(pipeline=RowChangedByRetry)),
    "a stated event taken for a pushed one": _parts(edge_desk=StatedTakenForPushed),
    "nobody told of adopted events": _parts(shard=_shard_using(NobodyTold)),
    "rows of later epochs erased": _parts(erase=every_row_erased),
    "heads not asked for when a node is gone": _parts(doubts=HeadsNotAskedAgain),
    "memberships not read again after a missed push": _parts(doubts=MembershipsNotReadAgain, users_concerned=nobody_concerned),
    "sessions that were just opening not looked at": _parts(doubts=OpeningSessionsForgotten),
    "a push lost while a session opens": _parts(session=DeafWhileOpening, doubts=PushLostWhileOpeningForgotten),
    "one entry a device in the session map": _parts(one_entry_a_device=True),
    "a node that is not seen yet taken for gone": _parts(owner_desk=UnseenNodesForgotten),
    # The first alone is too rare: what the second keeps for a node makes up for it, mostly.
    "nothing doubted after a lost lease, nor kept for it": _parts(doubts=LostLeaseTrusted, owner_desk=UnseenNodesForgotten),
    "sessions written back, and nothing doubted": _parts(session_book=WrittenBackInSilence),
    "a trip to the session map that failed forgotten": _parts(session_book=FailedTripForgotten),
    "its own entry in the session map written last": _parts(session_book=CanaryLast),
    "one entry a device, and none taken over": _parts(one_entry_a_device=True, session_book=TakenOverByNobody),
    "heads not asked for of shards that were given away": _parts(doubts=ShardsOfNowSuspected),
}

TOO_RARE: dict[str, Parts] = {
    "nothing doubted after a lost lease": _parts(doubts=LostLeaseTrusted),
    "a lost push before another one not missed": _parts(edge_desk=EarlierPushNotMissed),
    "a write taken that was sent to an earlier owner": _parts(owner_lanes=TakenForAnotherOwner),
    "views of adopted events in any order": _parts(shard=_shard_using(ViewsAllAtOnce)),
    "only rows that are there erased": _parts(erase=rows_that_are_there_erased),
    "erased under the epoch of the row": _parts(erase=erased_under_the_epoch_of_the_row),
    "heads not asked for when a link is back": _parts(doubts=LinkThatCameBackTrusted),
}
"""What too much must come together for: 600 seeds did not find these. Unit tests and contract suites hold most of them."""
