"""The parts a simulated node is made of: those of the core, or one with a mistake planted in it."""

from collections.abc import Callable, Iterable

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

    def __init__(self) -> None:
        self.lease: type[Lease] = Lease
        self.shard: Callable[..., Shard] = Shard
        self.edge_desk: type[EdgeDesk] = EdgeDesk
        self.owner_desk: type[OwnerDesk] = OwnerDesk
        self.edge_lanes: type[EdgeLanes] = EdgeLanes
        self.owner_lanes: type[OwnerLanes] = OwnerLanes
        self.feed: type[EventFeed] = EventFeed
        self.session: type[Session] = Session
        self.doubts: type[Doubts[str]] = Doubts
        self.session_book: type[SessionBook] = SessionBook
        self.read_committed = read_committed
        self.erase = erase
        self.users_concerned = users_concerned
        self.limits = LIMITS
        self.one_entry_a_device = False
        """In the session map; see there."""
