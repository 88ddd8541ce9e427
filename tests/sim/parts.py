"""The parts a simulated node is made of: those of the core, or one with a mistake planted in it."""

from collections.abc import Iterable

from chatgrpc.cluster.missed import users_concerned
from chatgrpc.core.doubts import Doubts
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.entries import Entry
from chatgrpc.core.epochs import Row, committed_run
from chatgrpc.core.event_feed import EventFeed
from chatgrpc.core.lanes import EdgeLanes, OwnerLanes
from chatgrpc.core.lease import Lease
from chatgrpc.core.limits import Limits
from chatgrpc.core.owner_desk import OwnerDesk
from chatgrpc.core.session import Session
from chatgrpc.core.session_book import SessionBook
from chatgrpc.core.shard import Shard
from tests.sim.store import Replica

LIMITS = Limits(
    appends_in_flight_per_chat_max=6,
    unacknowledged_events_max=8,
    recent_events_per_chat=4,
    chats_active_max=2,
)
"""Small, so that every limit is met within seconds."""

BUCKET_SEQS = 3


def read_committed(rows: Iterable[Row], after_seq: int, stated_seq: int) -> list[Row]:
    """How an edge reads the log."""
    return committed_run(rows, after_seq, stated_seq)


def erase(replica: Replica, chat_id: str, bucket: int, row: Row, entry: Entry) -> None:
    """How an owner erases what a row says, for an event of its own."""
    replica.erase(chat_id, bucket, row, entry.epoch)


class Parts:
    """What nodes are built from; a planted mistake overrides one of these."""

    lease: type[Lease] = Lease
    shard: type[Shard] = Shard
    edge_desk: type[EdgeDesk] = EdgeDesk
    owner_desk: type[OwnerDesk] = OwnerDesk
    edge_lanes: type[EdgeLanes] = EdgeLanes
    owner_lanes: type[OwnerLanes] = OwnerLanes
    feed: type[EventFeed] = EventFeed
    session: type[Session] = Session
    doubts: type[Doubts[str]] = Doubts
    session_book: type[SessionBook] = SessionBook
    read_committed = staticmethod(read_committed)
    erase = staticmethod(erase)
    users_concerned = staticmethod(users_concerned)
    limits: Limits = LIMITS
    one_entry_a_device = False
    """In the session map; see there."""
