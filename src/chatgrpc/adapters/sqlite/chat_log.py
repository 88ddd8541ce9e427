"""The ordered history in SQLite."""

import functools
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.core.events import erased
from chatgrpc.ports.chat_log import Entry, Interval, Membership, StoredChat, StoredEvent
from chatgrpc.ports.errors import StaleOwnerError, StoreUnavailableError

_SEQ_BITS = 32
_SEQ_MAX = (1 << _SEQ_BITS) - 1
_ROWS_PER_INSERT_MAX = 512
_NUMBERS_KEPT_MAX = 100_000

# In the statements below 32 is the width of a seq in a key, 4294967295 the greatest seq.

_READ_AFTER = """
    SELECT key & 4294967295, event FROM log
    WHERE key > (SELECT number << 32 FROM chats WHERE chat_id = :chat_id) + :after_seq
        AND key <= (SELECT number << 32 FROM chats WHERE chat_id = :chat_id) + :up_to_seq
    ORDER BY key LIMIT :limit"""

_READ_BEFORE = """
    SELECT key & 4294967295, event FROM log
    WHERE key >= (SELECT number << 32 FROM chats WHERE chat_id = :chat_id) + :down_to_seq
        AND key < (SELECT number << 32 FROM chats WHERE chat_id = :chat_id) + :before_seq
    ORDER BY key DESC LIMIT :limit"""

_LOAD = """
    SELECT chats.chat, log.key & 4294967295, log.event
    FROM chats JOIN log ON log.key BETWEEN chats.number << 32 AND (chats.number << 32) + 4294967295
    WHERE chats.chat_id = :chat_id
    ORDER BY log.key DESC LIMIT 1"""

_MEMBERSHIPS = """
    SELECT
        chats.chat_id,
        (SELECT max(key) & 4294967295 FROM log
            WHERE key BETWEEN chats.number << 32 AND (chats.number << 32) + 4294967295),
        json_group_array(json_array(members.joined_seq, members.left_seq))
    FROM members JOIN chats ON chats.chat_id = members.chat_id
    WHERE members.user_id = :user_id AND members.chat_id > :after_chat_id
    GROUP BY members.chat_id ORDER BY members.chat_id LIMIT :limit"""

_MEMBERSHIP = """
    SELECT
        chats.chat_id,
        (SELECT max(key) & 4294967295 FROM log
            WHERE key BETWEEN chats.number << 32 AND (chats.number << 32) + 4294967295),
        json_group_array(json_array(members.joined_seq, members.left_seq))
    FROM members JOIN chats ON chats.chat_id = members.chat_id
    WHERE members.user_id = :user_id AND members.chat_id = :chat_id
    GROUP BY members.chat_id"""

_COUNT_CHATS = """
    SELECT user_id, count(DISTINCT chat_id) FROM members
    WHERE user_id IN (SELECT value FROM json_each(:user_ids)) AND left_seq = 0
    GROUP BY user_id"""

_ADD_CHATS = """
    INSERT INTO chats (chat_id) SELECT value FROM json_each(:chat_ids) WHERE true
    ON CONFLICT DO NOTHING"""

_NUMBERS = """
    SELECT json_group_object(chat_id, number) FROM chats WHERE chat_id IN (SELECT value FROM json_each(:chat_ids))"""

_SAVE_MEMBERS = """
    INSERT INTO members (user_id, chat_id, joined_seq, left_seq)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(:rows) WHERE true
    ON CONFLICT DO UPDATE SET left_seq = excluded.left_seq"""


class _Row(NamedTuple):
    key: int
    epoch: int
    event: bytes
    amends_key: int | None


class SqliteChatLog:
    """`ports.chat_log.ChatLog`. Keeps up to 4,294,967,295 events of a chat."""

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
        if any(entry.seq > _SEQ_MAX for entry in entries):
            raise StoreUnavailableError(f"the chat is full: SQLite keeps {_SEQ_MAX} events of a chat")
        if entries:
            await self._writer.call(self._append, tuple(entries), sum(map(_size, entries)))

    async def load(self, chat_id: str) -> StoredChat | None:
        """See the port."""

        def query(db: sqlite3.Connection) -> StoredChat | None:
            row = db.execute(_LOAD, {"chat_id": chat_id}).fetchone()
            return None if row is None else StoredChat(*row)

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
            "before_seq": min(before_seq, _SEQ_MAX + 1),
            "down_to_seq": min(down_to_seq, _SEQ_MAX + 1),
            "limit": limit,
        }
        return await self._readers.read(lambda db: _page(db.execute(_READ_BEFORE, bounds), bytes_max)[::-1])

    async def memberships(self, user_id: str, after_chat_id: str, limit: int) -> list[Membership]:
        """See the port."""
        which = {"user_id": user_id, "after_chat_id": after_chat_id, "limit": limit}
        return await self._readers.read(lambda db: _memberships(db.execute(_MEMBERSHIPS, which)))

    async def membership(self, user_id: str, chat_id: str) -> Membership | None:
        """See the port."""
        which = {"user_id": user_id, "chat_id": chat_id}
        found = await self._readers.read(lambda db: _memberships(db.execute(_MEMBERSHIP, which)))
        return found[0] if found else None

    async def count_chats(self, user_ids: Sequence[str]) -> dict[str, int]:
        """See the port."""
        which = {"user_ids": json.dumps(list(user_ids))}
        counted = await self._readers.read(lambda db: dict(db.execute(_COUNT_CHATS, which).fetchall()))
        return {user_id: counted.get(user_id, 0) for user_id in user_ids}

    def _append(self, db: sqlite3.Connection, calls: Sequence[tuple[Entry, ...]]) -> list[None]:
        """Runs in the writer's thread."""
        entries = [entry for call in calls for entry in call]
        self._learn_numbers(db, {entry.chat_id for entry in entries})
        rows = [_Row(self._key(entry, entry.seq), entry.epoch, entry.event, self._amended_key(entry)) for entry in entries]
        try:
            for start in range(0, len(rows), _ROWS_PER_INSERT_MAX):
                _insert(db, rows[start : start + _ROWS_PER_INSERT_MAX])
        except sqlite3.IntegrityError as error:
            raise StaleOwnerError("one of the entries exists already") from error
        self._save_views(db, entries)
        for entry in entries:
            if entry.erases_seq:
                self._erase(db, self._key(entry, entry.erases_seq), self._key(entry, entry.seq))
        return [None] * len(calls)

    def _learn_numbers(self, db: sqlite3.Connection, chat_ids: set[str]) -> None:
        unknown = chat_ids - self._numbers.keys()
        if not unknown:
            return
        if len(self._numbers) > _NUMBERS_KEPT_MAX:
            self._numbers.clear()
            unknown = chat_ids
        which = {"chat_ids": json.dumps(sorted(unknown))}
        db.execute(_ADD_CHATS, which)
        self._numbers |= json.loads(db.execute(_NUMBERS, which).fetchone()[0])

    def _key(self, entry: Entry, seq: int) -> int:
        return self._numbers[entry.chat_id] << _SEQ_BITS | seq

    def _amended_key(self, entry: Entry) -> int | None:
        return self._key(entry, entry.amends_seq) if entry.amends_seq else None

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

    def _erase(self, db: sqlite3.Connection, target_key: int, below_key: int) -> None:
        found = db.execute(
            "SELECT key, event FROM log WHERE (key = :target OR amends_key = :target) AND key < :below",
            {"target": target_key, "below": below_key},
        ).fetchall()
        db.executemany("UPDATE log SET event = ? WHERE key = ?", [(erased(event), key) for key, event in found])
        self._note_erasure()


@functools.cache
def _insert_statement(rows: int) -> str:
    places = ", ".join(["(?, ?, ?, ?)"] * rows)
    # Made of question marks only.
    return f"INSERT INTO log (key, epoch, event, amends_key) SELECT * FROM (VALUES {places}) LIMIT ?"  # noqa: S608


def _insert(db: sqlite3.Connection, rows: Sequence[_Row]) -> None:
    """Inserts up to 512 rows by one statement.

    Statements have room for 1, 2, 4, … rows and a limit says how much of it is used, so ten of them, prepared once, serve
    groups of every size.
    """
    room = 1 << (len(rows) - 1).bit_length()
    values = [value for row in rows for value in row]
    values += [None] * (4 * (room - len(rows)))
    db.execute(_insert_statement(room), [*values, len(rows)])


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
