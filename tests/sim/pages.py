"""What an edge reads for a session: memberships and pages of history, by the server's own code on virtual time."""

from collections.abc import Awaitable, Callable, Collection
from typing import cast

from chatgrpc.cluster.memberships import membership_in, memberships_of_user, past_membership_in
from chatgrpc.core.entries import Membership, StoredEvent
from chatgrpc.core.limits import Limits
from chatgrpc.core.visibility import Interval, is_member
from chatgrpc.edge.history import Page, Side, read_page
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.v1 import session_pb2
from tests.sim.store_client import StoreClient, Wanted


class EdgeLog:
    """As much of `ports.chat_log.ChatReader` as the simulated edge needs, in place of `cluster.log`, which waits by a clock."""

    def __init__(
        self,
        store: StoreClient,
        wanted: Wanted,
        head_of: Callable[[str], Awaitable[int]],
        heads_in_time: Callable[[Collection[str]], Awaitable[dict[str, int]]],
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._head_of = head_of
        self._heads_in_time = heads_in_time

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See the port."""
        return await memberships_of_user(self, self._heads_in_time, user_id, after_chat_id, limit, present_only=present_only)

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        return await membership_in(self, self._head_of, user_id, chat_id)

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        return await past_membership_in(self, user_id, chat_id)

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port; the simulated store reads one bucket at a time."""
        events: list[StoredEvent] = []
        while (wanted := min(limit, up_to_seq - after_seq) - len(events)) > 0:
            events += await self._store.read_after(chat_id, after_seq + len(events), up_to_seq, wanted, self._wanted)
        return events

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        return await self._store.read_before(chat_id, before_seq, down_to_seq, limit, self._wanted)

    async def chat_view(self, chat_id: str) -> bytes:
        """See the port."""
        return await self._store.chat_view(chat_id, self._wanted)

    # `cluster.memberships.IntervalReader`.

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        """See the port."""
        found = (await self._store.memberships(user_id, self._wanted)).items()
        listed = [each for each in found if is_member(each[1])] if present_only else list(found)
        return [each for each in listed if each[0] > after_chat_id][:limit]

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """See the port."""
        return (await self._store.memberships(user_id, self._wanted)).get(chat_id, ())


async def read_history(log: EdgeLog, membership: Membership, request: session_pb2.FetchHistory, limits: Limits) -> Page:
    """Reads the page that a device asked for."""
    side: Side = "before"
    seq = membership.head_seq + 1
    match request.WhichOneof("from"):
        case "before_seq":
            seq = request.before_seq
        case "after_seq":
            side, seq = "after", request.after_seq
        case "around_seq":
            side, seq = "around", request.around_seq
    return await read_page(cast("ChatReader", log), membership, side, seq, limit=request.limit, limits=limits)
