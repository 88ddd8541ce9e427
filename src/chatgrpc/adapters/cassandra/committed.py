"""The log as readers may see it, in Cassandra."""

import asyncio
from collections.abc import Sequence
from typing import Final

from chatgrpc.adapters.cassandra.client import CassandraClient
from chatgrpc.core.epochs import BUCKET_SEQS, SEQ_MAX, Row, bucket_of, committed_run
from chatgrpc.core.visibility import Interval
from chatgrpc.ports.errors import ChatDamagedError
from chatgrpc.ports.row_store import StoredEvent

_FIRST_SEQS: Final = 20
"""How many seqs a page asks for first; what they weigh says how many more fit."""
_GROWTH_MAX: Final = 8
"""How many times more than it has a page asks for at once."""
_HOLE_WAITS_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5)
"""A row that must be there and is not, was stated before this read began and not seen by it: it is there a moment later."""
_MEMBERS_PAGE_ROWS: Final = 200
_CHATS_IN_QUERY: Final = 100


class CassandraCommittedLog:
    """`ports.row_store.CommittedLog`."""

    def __init__(self, client: CassandraClient) -> None:
        """Prepares its statements, which blocks."""
        self._client = client
        self._rows = client.prepare(
            "SELECT seq, epoch, event FROM {keyspace}.log WHERE chat_id = ? AND bucket = ? AND seq >= ? AND seq <= ?"
        )
        self._chat = client.prepare("SELECT chat FROM {keyspace}.chats WHERE chat_id = ?")
        self._intervals = client.prepare(
            "SELECT joined_seq, left_seq FROM {keyspace}.members WHERE user_id = ? AND chat_id = ?"
        )
        self._chats_of_user = client.prepare(
            "SELECT chat_id, joined_seq, left_seq FROM {keyspace}.members WHERE user_id = ? AND chat_id > ?"
        )
        self._chats_of_user.fetch_size = _MEMBERS_PAGE_ROWS
        # The store looks through what is past, and does not send it.
        self._present_chats_of_user = client.prepare(
            "SELECT chat_id FROM {keyspace}.members WHERE user_id = ? AND chat_id > ? AND left_seq = 0 LIMIT ? ALLOW FILTERING"
        )
        self._intervals_of_chats = client.prepare(
            "SELECT chat_id, joined_seq, left_seq FROM {keyspace}.members WHERE user_id = ? AND chat_id IN ?"
        )
        # Within the one partition of a user; a chat has at most one interval that is open.
        self._count_groups = client.prepare(
            "SELECT count(*) FROM {keyspace}.members "
            "WHERE user_id = ? AND chat_id >= 'g.' AND chat_id < 'g/' AND left_seq = 0 ALLOW FILTERING"
        )

    async def read_after(self, chat_id: str, after_seq: int, stated_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        page = _Page(limit, bytes_max)
        next_seq = after_seq + 1
        while next_seq <= stated_seq and (wanted := page.wanted()):
            last_seq = min(next_seq + wanted - 1, stated_seq, _last_of_bucket(next_seq))
            for row in await self._run(chat_id, next_seq, last_seq):
                page.add(row)
            next_seq = last_seq + 1
        return page.events

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        page = _Page(limit, bytes_max)
        next_seq, lowest_seq = before_seq - 1, max(down_to_seq, 1)
        while next_seq >= lowest_seq and (wanted := page.wanted()):
            first_seq = max(next_seq - wanted + 1, lowest_seq, _first_of_bucket(next_seq))
            for row in reversed(await self._run(chat_id, first_seq, next_seq)):
                page.add(row)
            next_seq = first_seq - 1
        return page.events[::-1]

    async def chat_view(self, chat_id: str) -> bytes:
        """See the port."""
        rows = await self._client.read(self._chat.bind((chat_id,)))
        return (rows[0][0] or b"") if rows else b""

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        """See the port."""
        if present_only:
            return await self._present_intervals_of_user(user_id, after_chat_id, limit)
        found: dict[str, list[Interval]] = {}
        async for page in self._client.pages(self._chats_of_user.bind((user_id, after_chat_id))):
            for chat_id, joined_seq, left_seq in page:
                found.setdefault(chat_id, []).append(_interval(joined_seq, left_seq))
            if len(found) > limit:  # so those before the last are complete
                break
        return [(chat_id, tuple(intervals)) for chat_id, intervals in list(found.items())[:limit]]

    async def _present_intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        rows = await self._client.read(self._present_chats_of_user.bind((user_id, after_chat_id, limit)))
        chat_ids = sorted({chat_id for (chat_id,) in rows})
        found: dict[str, list[Interval]] = {chat_id: [] for chat_id in chat_ids}
        for begin in range(0, len(chat_ids), _CHATS_IN_QUERY):
            some = chat_ids[begin : begin + _CHATS_IN_QUERY]
            async for page in self._client.pages(self._intervals_of_chats.bind((user_id, some))):
                for chat_id, joined_seq, left_seq in page:
                    found[chat_id].append(_interval(joined_seq, left_seq))
        return [(chat_id, tuple(intervals)) for chat_id, intervals in found.items() if intervals]

    async def intervals(self, user_id: str, chat_id: str) -> tuple[Interval, ...]:
        """See the port."""
        rows = await self._client.read(self._intervals.bind((user_id, chat_id)))
        return tuple(_interval(joined_seq, left_seq) for joined_seq, left_seq in rows)

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        answers = await asyncio.gather(*(self._client.read(self._count_groups.bind((user_id,))) for user_id in user_ids))
        return {user_id: rows[0][0] for user_id, rows in zip(user_ids, answers, strict=True)}

    async def _run(self, chat_id: str, first_seq: int, last_seq: int) -> list[Row]:
        """The events at these seqs, of one bucket, every one of which was stated."""
        if last_seq > SEQ_MAX:
            raise ChatDamagedError(chat_id, f"seq {last_seq} was stated as committed, and no chat gets there")
        read = self._rows.bind((chat_id, bucket_of(first_seq), first_seq, last_seq))
        for wait_s in (*_HOLE_WAITS_S, None):
            # A row that has lost its event is no event, which whoever looks at it finds.
            rows = (Row(seq, epoch, event or b"") for seq, epoch, event in await self._client.read(read))
            run = committed_run(rows, first_seq - 1, last_seq)
            if len(run) == last_seq - first_seq + 1:
                return run
            if wait_s is not None:
                await asyncio.sleep(wait_s)
        raise ChatDamagedError(chat_id, f"there is no row at seq {first_seq + len(run)}, which was stated as committed")


class _Page:
    """Events, up to the one that makes the page larger than it may be."""

    def __init__(self, limit: int, bytes_max: int) -> None:
        self.events: list[StoredEvent] = []
        self._bytes = 0
        self._limit = limit
        self._bytes_max = bytes_max

    def add(self, row: Row) -> None:
        """Adds an event, if there is room."""
        if self._has_room():
            self.events.append(StoredEvent(row.seq, row.event))
            self._bytes += len(row.event)

    def wanted(self) -> int:
        """How many events to ask for next; 0 when there are enough."""
        if not self._has_room():
            return 0
        if not self.events:
            return min(self._limit, _FIRST_SEQS)
        count = len(self.events)
        fitting = (self._bytes_max - self._bytes) * count // max(self._bytes, 1) + 1
        return min(self._limit - count, fitting, count * _GROWTH_MAX)

    def _has_room(self) -> bool:
        return len(self.events) < self._limit and self._bytes <= self._bytes_max


def _interval(joined_seq: int, left_seq: int | None) -> Interval:
    """A row that has lost its end is not taken for a present membership: it shows no more than the joining."""
    return Interval(joined_seq, joined_seq if left_seq is None else left_seq)


def _first_of_bucket(seq: int) -> int:
    return bucket_of(seq) * BUCKET_SEQS


def _last_of_bucket(seq: int) -> int:
    return _first_of_bucket(seq) + BUCKET_SEQS - 1
