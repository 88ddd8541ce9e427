"""The parts a simulated node is made of: those of the core, or one with a mistake planted in it."""

from collections.abc import Iterable
from dataclasses import dataclass

from chatgrpc.core.epochs import Row, committed_run
from chatgrpc.core.event_feed import EventFeed
from chatgrpc.core.lanes import EdgeLanes, OwnerLanes
from chatgrpc.core.lease import Lease
from chatgrpc.core.limits import Limits
from chatgrpc.core.shard import Shard

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


class Parts:
    """What nodes are built from; a planted mistake overrides one of these."""

    lease: type[Lease] = Lease
    shard: type[Shard] = Shard
    edge_lanes: type[EdgeLanes] = EdgeLanes
    owner_lanes: type[OwnerLanes] = OwnerLanes
    feed: type[EventFeed] = EventFeed
    read_committed = staticmethod(read_committed)
    limits: Limits = LIMITS
    membership_before_head = False


@dataclass(frozen=True)
class Deliver:
    """A committed event on its way to an edge."""

    chat_id: str
    seq: int
    event: bytes
    left_user_id: str
    user_ids: tuple[str, ...]


@dataclass(frozen=True)
class Heads:
    """The heartbeat of a link."""

    sender_id: str
    heads: dict[str, int]


@dataclass(frozen=True)
class HeadsHeard:
    """The answer to it."""

    sender_id: str
    heads: dict[str, int]


@dataclass(frozen=True)
class AskHead:
    """What is the head of this chat?"""

    sender_id: str
    chat_id: str
    number: int
    """Rises with each question of the sender."""


@dataclass(frozen=True)
class HeadIs:
    """This is."""

    chat_id: str
    number: int
    """Of the question."""
    seq: int
