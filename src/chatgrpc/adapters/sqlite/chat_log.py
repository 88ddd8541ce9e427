"""The ordered history in SQLite."""

import functools
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.core.epochs import SEQ_MAX
from chatgrpc.core.events import erased
from chatgrpc.core.visibility import is_member
from chatgrpc.ports.chat_log import Entry, Interval, Membership, StoredChat, StoredEvent
from chatgrpc.ports.errors import ChatDamagedError, StaleOwnerError

_SEQ_MAX = (1 << 63) - 1
"""SQLite's greatest integer. Bounds of a read above it are cut to it; no chat gets there."""
_NUMBER_MAX = 1 << 62
"""Numbers of chats are counted up and do not get there; what stands above it by damage is not counted on from."""
_ROWS_PER_INSERT_MAX = 512
_COLUMNS = 5
_NUMBERS_KEPT_MAX = 100_000

_READ_AFTER = """
    SELECT seq, event FROM log
    WHERE chat_number = (SELECT number FROM chats WHERE chat_id = :chat_id) AND seq > :after_seq AND seq <= :up_to_seq
    ORDER BY seq LIMIT :limit"""

_READ_BEFORE = """
    SELECT seq, event FROM log
    WHERE chat_number = (SELECT number FROM chats WHERE chat_id = :chat_id) AND seq >= :down_to_seq AND seq < :before_seq
    ORDER BY seq DESC LIMIT :limit"""

_LOAD = """
    SELECT chats.chat, log.seq, log.event
    FROM chats LEFT JOIN log ON log.chat_number = chats.number
    WHERE chats.chat_id = :chat_id
    ORDER BY log.seq DESC LIMIT 1"""

# The chat is looked for once there is a membership, so a stranger's question takes as long whether there is one or not. A chat
# that is gone, or whose events are, ends at 0, which is below all memberships.
_COLUMNS_OF_MEMBERSHIP = """
    chat_id,
    coalesce((SELECT max(seq) FROM log WHERE chat_number = (SELECT number FROM chats WHERE chat_id = members.chat_id)), 0),
    json_group_array(json_array(joined_seq, left_seq))"""

_MEMBERSHIPS = f"""
    SELECT {_COLUMNS_OF_MEMBERSHIP} FROM members WHERE user_id = :user_id AND chat_id > :after_chat_id
    GROUP BY chat_id ORDER BY chat_id LIMIT :limit"""  # noqa: S608

_PRESENT_MEMBERSHIPS = f"""
    SELECT {_COLUMNS_OF_MEMBERSHIP} FROM members
    WHERE user_id = :user_id AND chat_id IN (
        SELECT DISTINCT chat_id FROM members
        WHERE user_id = :user_id AND left_seq = 0 AND chat_id > :after_chat_id ORDER BY chat_id LIMIT :limit
    )
    GROUP BY chat_id ORDER BY chat_id"""  # noqa: S608

_MEMBERSHIP = f"""
    SELECT {_COLUMNS_OF_MEMBERSHIP} FROM members WHERE user_id = :user_id AND chat_id = :chat_id
    GROUP BY chat_id"""  # noqa: S608

_HAS_BEEN_MEMBER = "SELECT EXISTS (SELECT 1 FROM members WHERE user_id = :user_id AND chat_id = :chat_id)"

_COUNT_GROUPS = """
    SELECT user_id, count(DISTINCT chat_id) FROM members
    WHERE user_id IN (SELECT value FROM json_each(:user_ids)) AND left_seq = 0
    AND chat_id >= 'g.' AND chat_id < 'g/'
    GROUP BY user_id"""

# A number under which rows stand is not given to another chat, though the chat that they are of may be gone.
_ADD_CHATS = f"""
    INSERT INTO chats (number, chat_id)
    SELECT 1 + key + max(
        0,
        coalesce((SELECT max(number) FROM chats WHERE number < {_NUMBER_MAX}), 0),
        coalesce((SELECT max(chat_number) FROM log WHERE chat_number < {_NUMBER_MAX}), 0)
    ), value FROM json_each(:chat_ids) WHERE true
    ON CONFLICT (chat_id) DO NOTHING
    RETURNING chat_id"""  # noqa: S608

_NUMBERS = """
    SELECT json_group_object(chat_id, number) FROM chats WHERE chat_id IN (SELECT value FROM json_each(:chat_ids))"""

_HAS_MEMBERS = """
    SELECT members.chat_id FROM json_each(:rows) CROSS JOIN members
    WHERE members.user_id = value ->> 0 AND members.chat_id = value ->> 1 LIMIT 1"""

_SAVE_MEMBERS = """
    INSERT INTO members (user_id, chat_id, joined_seq, left_seq)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(:rows) WHERE true
    ON CONFLICT DO UPDATE SET left_seq = excluded.left_seq"""


_ERASABLE = """
    SELECT place, event FROM log INDEXED BY log_by_seq
    WHERE chat_number = :chat_number AND seq = :target_seq AND seq < :seq
    UNION ALL
    SELECT place, event FROM log INDEXED BY log_by_amended
    WHERE chat_number = :chat_number AND amends_seq = :target_seq AND seq < :seq"""

_ERASE = "UPDATE log SET event = :event, padding = zeroblob(:padding_bytes) WHERE place = :place"


class SqliteChatLog:
    """`ports.chat_log.ChatLog`."""

    def __init__(self, writer: Writer, readers: Readers, note_erasure: Callable[[], None]) -> None:
        self._writer = writer
        self._readers = readers
        self._note_erasure = note_erasure
        self._numbers: dict[str, int] = {}
        """Chat id to number, of chats written lately; belongs to the writer's thread."""
        # The numbers of chats that were added in a transaction are void when it is.
        writer.after_rollback.append(self._numbers.clear)

    async def append(self, entries: Sequence[Entry]) -> None:
        """See the port."""
        if entries:
            await self._writer.call(self._append, tuple(entries), sum(map(_size, entries)))

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port."""

        def query(db: sqlite3.Connection) -> StoredChat | None:
            row = db.execute(_LOAD, {"chat_id": chat_id}).fetchone()
            if row is None:
                return None
            chat, head_seq, head_event = row
            if head_seq is None:  # a chat is stored together with its first event
                raise ChatDamagedError(chat_id, "its events are gone")
            if head_seq > SEQ_MAX:
                raise ChatDamagedError(chat_id, f"it has an event at seq {head_seq}, to which no chat gets")
            return StoredChat(chat, head_seq, head_event)

        return await self._readers.read(query)

    async def read_after(self, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """See the port."""
        bounds = {
            "chat_id": chat_id,
            "after_seq": min(after_seq, _SEQ_MAX),
            "up_to_seq": min(up_to_seq, _SEQ_MAX),
            "limit": limit,
        }
        return await self._readers.read(lambda db: _page(db.execute(_READ_AFTER, bounds), bytes_max))

    async def read_before(
        self, chat_id: str, before_seq: int, down_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        """See the port."""
        bounds = {
            "chat_id": chat_id,
            "before_seq": min(before_seq, _SEQ_MAX),
            "down_to_seq": min(down_to_seq, _SEQ_MAX),
            "limit": limit,
        }
        return await self._readers.read(lambda db: _page(db.execute(_READ_BEFORE, bounds), bytes_max)[::-1])

    async def memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        """See the port."""
        which = {"user_id": user_id, "after_chat_id": after_chat_id, "limit": limit}
        statement = _PRESENT_MEMBERSHIPS if present_only else _MEMBERSHIPS
        return await self._readers.read(lambda db: _memberships(db.execute(statement, which)))

    async def readable_memberships(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> tuple[list[Membership], list[str]]:
        """See the port; it is all or none."""
        return await self.memberships(user_id, after_chat_id, limit, present_only=present_only), []

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        which = {"user_id": user_id, "chat_id": chat_id}
        found = await self._readers.read(lambda db: _memberships(db.execute(_MEMBERSHIP, which)))
        return found[0] if found else None

    async def past_membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        membership = await self.membership(user_id, chat_id)
        return None if membership is None or is_member(membership.intervals) else membership

    async def has_been_member(self, user_id: str, chat_id: str) -> bool:
        """See the port."""
        which = {"user_id": user_id, "chat_id": chat_id}
        return await self._readers.read(lambda db: bool(db.execute(_HAS_BEEN_MEMBER, which).fetchone()[0]))

    async def count_groups(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        which = {"user_ids": json.dumps(list(user_ids))}
        counted = await self._readers.read(lambda db: dict(db.execute(_COUNT_GROUPS, which).fetchall()))
        return {user_id: counted.get(user_id, 0) for user_id in user_ids}

    def _append(self, db: sqlite3.Connection, calls: Sequence[tuple[Entry, ...]]) -> list[None]:
        """Runs in the writer's thread."""
        entries = [entry for call in calls for entry in call]
        added = self._learn_numbers(db, {entry.chat_id for entry in entries})
        if added:
            _check_that_they_are_new(db, [entry for entry in entries if entry.chat_id in added])
        rows = [
            (self._numbers[entry.chat_id], entry.seq, entry.epoch, entry.amends_seq or None, entry.event) for entry in entries
        ]
        try:
            for start in range(0, len(rows), _ROWS_PER_INSERT_MAX):
                _insert(db, rows[start : start + _ROWS_PER_INSERT_MAX])
        except sqlite3.IntegrityError as error:
            raise StaleOwnerError("one of the entries exists already") from error
        self._save_views(db, entries)
        for entry in entries:
            if entry.erases_seq:
                self._erase(db, entry)
        return [None] * len(calls)

    def _learn_numbers(self, db: sqlite3.Connection, chat_ids: set[str]) -> set[str]:
        """Returns which of the chats it has added."""
        unknown = chat_ids - self._numbers.keys()
        if not unknown:
            return set()
        if len(self._numbers) > _NUMBERS_KEPT_MAX:
            self._numbers.clear()
            unknown = chat_ids
        which = {"chat_ids": json.dumps(sorted(unknown))}
        added = {chat_id for (chat_id,) in db.execute(_ADD_CHATS, which).fetchall()}
        self._numbers |= json.loads(db.execute(_NUMBERS, which).fetchone()[0])
        return added

    def _save_views(self, db: sqlite3.Connection, entries: Iterable[Entry]) -> None:
        views = [(entry.chat_id, entry.view) for entry in entries if entry.view is not None]
        if not views:
            return
        latest = {chat_id: view.chat for chat_id, view in views}
        db.executemany(
            "UPDATE chats SET chat = ? WHERE number = ?",
            [(chat, self._numbers[chat_id]) for chat_id, chat in latest.items()],
        )
        members = [
            (member.user_id, chat_id, member.interval.joined_seq, member.interval.left_seq)
            for chat_id, view in views
            for member in view.members
        ]
        db.execute(_SAVE_MEMBERS, {"rows": json.dumps(members)})

    def _erase(self, db: sqlite3.Connection, entry: Entry) -> None:
        which = {"chat_number": self._numbers[entry.chat_id], "target_seq": entry.erases_seq, "seq": entry.seq}
        for place, event in db.execute(_ERASABLE, which).fetchall():
            rest = erased(event)
            if rest != event:
                db.execute(_ERASE, {"place": place, "event": rest, "padding_bytes": _padding_bytes(len(event), len(rest))})
        self._note_erasure()


def _check_that_they_are_new(db: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    """A chat that has members already has lost its entry; it must not begin again at seq 1, below what devices hold."""
    members = [(member.user_id, entry.chat_id) for entry in entries if entry.view for member in entry.view.members]
    for (chat_id,) in db.execute(_HAS_MEMBERS, {"rows": json.dumps(members)}).fetchall():
        raise ChatDamagedError(chat_id, "its entry is gone, and it has members")


@functools.cache
def _insert_statement(room: int) -> str:
    row = f"({', '.join('?' * _COLUMNS)})"
    rows = ", ".join([row] * room)
    # Made of question marks only.
    return f"INSERT INTO log (chat_number, seq, epoch, amends_seq, event) SELECT * FROM (VALUES {rows}) LIMIT ?"  # noqa: S608


def _insert(db: sqlite3.Connection, rows: Sequence[tuple[int, int, int, int | None, bytes]]) -> None:
    """Inserts up to 512 rows by one statement.

    Statements have room for 1, 2, 4, … rows and a limit says how much of it is used, so ten of them, prepared once, serve
    groups of every size.
    """
    room = 1 << (len(rows) - 1).bit_length()
    values: list[int | bytes | None] = [value for row in rows for value in row]
    values += [None] * (_COLUMNS * (room - len(rows)))
    db.execute(_insert_statement(room), [*values, len(rows)])


def _padding_bytes(event_bytes: int, rest_bytes: int) -> int:
    """Size of the padding with which a row keeps its size when its event shrinks and its padding was empty.

    A blob of n bytes takes n bytes in a row's body and a varint of 2n + 12 in its header (SQLite file format, §2.1). There is
    an exact answer but for two sizes, where the row gets one byte shorter.
    """
    room = event_bytes + _header_bytes(event_bytes) + _header_bytes(0) - rest_bytes - _header_bytes(rest_bytes)
    padding = max(0, room - 4)
    while padding + 1 + _header_bytes(padding + 1) <= room:
        padding += 1
    return padding


def _header_bytes(blob_bytes: int) -> int:
    return ((2 * blob_bytes + 12).bit_length() + 6) // 7


def _page(rows: Iterable[tuple[int, bytes]], bytes_max: int) -> list[StoredEvent]:
    """Takes rows up to the one that makes the page larger than `bytes_max`."""
    page: list[StoredEvent] = []
    page_bytes = 0
    for seq, event in rows:
        page.append(StoredEvent(seq, event))
        page_bytes += len(event)
        if page_bytes > bytes_max:
            break
    return page


def _memberships(rows: Iterable[tuple[str, int, str]]) -> list[Membership]:
    return [
        Membership(chat_id, tuple(Interval(*interval) for interval in sorted(json.loads(intervals))), head_seq)
        for chat_id, head_seq, intervals in rows
    ]


def _size(entry: Entry) -> int:
    """About the bytes that an entry takes in memory."""
    if entry.view is None:
        return len(entry.event) + 200
    return len(entry.event) + len(entry.view.chat) + 200 * (1 + len(entry.view.members))
