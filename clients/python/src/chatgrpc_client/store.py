"""What a device keeps on disk: chats, events, marks, its place in each, and the messages it has not sent yet.

One SQLite file, `synchronous=FULL`: what a method has returned survives the loss of power. Blocking; `StoreThread` calls it.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chatgrpc.core.events import erased
from chatgrpc.core.fold import CHANGES_CHAT, apply_event
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

from .effects import Record
from .exceptions import DataDirError, DiskError, WrongUserError
from .outbox import OutboxEntry

SCHEMA_VERSION = 2
FAILED_MESSAGES_MAX = 1_000
UNREAD_MAX = 1_000
SEQ_MAX = (1 << 63) - 1
"""SQLite's largest number."""
CONNECTION_NUMBER_MAX = (1 << 64) - 1
"""The largest that a Hello can carry."""

_SCHEMA = """
CREATE TABLE device (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE chats (
    chat_id TEXT PRIMARY KEY,
    chat BLOB NOT NULL,               -- chatgrpc.v1.Chat, with the events up to `seq` applied
    seq INTEGER NOT NULL,             -- every event of low_seq .. seq is in `events`
    low_seq INTEGER NOT NULL,
    first_visible_seq INTEGER NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0  -- 1: a group that the user is not in any more
) WITHOUT ROWID;
CREATE TABLE events (
    chat_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    arrival INTEGER UNIQUE,           -- order in which the stream brought it; NULL: it came in a page of history
    amends_seq INTEGER NOT NULL,      -- the message that this edits; 0 = none
    event BLOB NOT NULL,
    PRIMARY KEY (chat_id, seq)
);
CREATE INDEX events_amends ON events (chat_id, amends_seq) WHERE amends_seq > 0;
CREATE TABLE erased (chat_id TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (chat_id, seq)) WITHOUT ROWID;
CREATE TABLE hidden (chat_id TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (chat_id, seq)) WITHOUT ROWID;
CREATE TABLE receipts (
    chat_id TEXT NOT NULL, user_id TEXT NOT NULL, delivered_seq INTEGER NOT NULL, read_seq INTEGER NOT NULL,
    PRIMARY KEY (chat_id, user_id)
) WITHOUT ROWID;
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    client_message_id BLOB NOT NULL UNIQUE,
    chat_id TEXT NOT NULL,
    to_user_id TEXT NOT NULL,         -- empty: the chat exists
    seen_seq INTEGER,                 -- NULL: not yet known whether the chat exists
    content BLOB NOT NULL,
    composed_at_ms INTEGER NOT NULL,
    error_code INTEGER,               -- not NULL: refused for ever
    error_message TEXT
);
"""


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message of the outbox."""

    client_message_id: bytes
    chat_id: str
    to_user_id: str
    """The user it is addressed to, where it may create the chat; empty otherwise."""
    content: content_pb2.Content
    composed_at_ms: int
    error: chat_pb2.Error | None = None
    """Why the server will never take it; None while it waits."""


@dataclass(slots=True)
class Applied:
    """What storing a batch showed."""

    settled: list[tuple[bytes, chat_pb2.SendResult]] = field(default_factory=list)
    """Messages of the outbox that came back as events: they are committed."""
    arrival: int = 0
    """Order of the last event of the stream."""


@dataclass(frozen=True, slots=True)
class ChatState:
    """A chat as the device holds it."""

    chat: chat_pb2.Chat
    seq: int
    """Last event held."""
    first_visible_seq: int
    receipts: dict[str, chat_pb2.Receipt]
    """Marks of the members, as far as known."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some events of a chat, oldest first. Those that the user hid are left out."""

    chat_id: str
    events: tuple[chat_pb2.ChatEvent, ...]
    more_before: bool
    more_after: bool
    first_seq: int
    """The first event that it is about, whether left out or not: what came before is below it. 0 = there is none."""
    last_seq: int
    """The last one, likewise."""


class Store:
    """The device's file. Used by one thread at a time."""

    def __init__(self, path: Path, user_id: str, device_id: str) -> None:
        """Opens or makes the file.

        Raises:
            WrongUserError: it is another user's.
            DataDirError: it cannot be opened, or a later version of this library made it.
        """
        try:
            _make_private(path)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise DataDirError(f"cannot open {path}: {error.strerror}") from error
        except sqlite3.Error as error:
            raise DataDirError(f"cannot open {path}: {error}") from error
        try:
            self._prepare(path, user_id, device_id)
        except sqlite3.OperationalError as error:
            self._db.close()
            raise DataDirError(
                f"{path} cannot be opened: {error}; is there room on the disk, and may it be written?"
            ) from error
        except sqlite3.Error as error:
            self._db.close()
            raise DataDirError(f"{path} is not a usable store: {error}") from error
        except DataDirError:
            self._db.close()
            raise

    def _prepare(self, path: Path, user_id: str, device_id: str) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise DataDirError(f"{path} was made by a later version of this program; use that, or another folder")
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        elif version == 1:
            self._migrate_from_1(user_id)
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO device VALUES ('user_id', ?), ('device_id', ?)", (user_id, device_id))
        self.user_id = self._device("user_id")
        self.device_id = self._device("device_id")
        if self.user_id != user_id:
            raise WrongUserError(f"{path} holds the state of {self.user_id}, not of {user_id}; use another folder")
        self._arrival: int = self._db.execute("SELECT coalesce(max(arrival), 0) FROM events").fetchone()[0]

    def _migrate_from_1(self, user_id: str) -> None:
        with self._transaction():
            self._db.execute("ALTER TABLE chats ADD COLUMN ended INTEGER NOT NULL DEFAULT 0")
            rows = self._db.execute("SELECT chat_id, chat FROM chats").fetchall()
            ended = [(chat_id,) for chat_id, chat in rows if _is_ended(chat_pb2.Chat.FromString(chat), user_id)]
            self._db.executemany("UPDATE chats SET ended = 1 WHERE chat_id = ?", ended)
            self._db.execute("PRAGMA user_version=2")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself may have ended it, on a full disk
                self._db.execute("ROLLBACK")
            raise

    # --- the device

    def _device(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM device WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def sync_token(self) -> str | None:
        """The token of the last complete synchronization; None if there was none."""
        return self._device("sync_token") if self._device("synced") else None

    def next_connection_number(self, wall_ms: int) -> int:
        """The number of the device's next stream, above that of each earlier one: this returns once it is stored.

        The clock makes it rise where the file does not, in a folder that was copied or restored, and the file where the clock
        does not.
        """
        number = min(max(int(self._device("connection_number") or 0) + 1, wall_ms), CONNECTION_NUMBER_MAX)
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO device VALUES ('connection_number', ?)", (str(number),))
        return number

    def positions(self) -> dict[str, tuple[int, int]]:
        """The last seq held and the last seq read, by chat, of the chats that go on, the longest first."""
        rows = self._db.execute(
            "SELECT c.chat_id, c.seq, coalesce(r.read_seq, 0) FROM chats c"
            " LEFT JOIN receipts r ON r.chat_id = c.chat_id AND r.user_id = ? WHERE NOT c.ended"
            " ORDER BY c.seq DESC",
            (self.user_id,),
        )
        return {chat_id: (seq, read_seq) for chat_id, seq, read_seq in rows}

    def ended_positions(self) -> dict[str, int]:
        """The last seq held, by chat, of the groups that the user is not in any more."""
        return dict(self._db.execute("SELECT chat_id, seq FROM chats WHERE ended").fetchall())

    # --- what the stream brings

    def apply(self, records: Sequence[Record], receipts: Iterable[chat_pb2.Receipt], sync_token: str | None) -> Applied:
        """Stores what a batch brought, and the new place in each chat, in one transaction."""
        applied = Applied()
        arrival = self._arrival
        chats: dict[str, chat_pb2.Chat] = {}
        with self._transaction():
            for record in records:
                if isinstance(record, session_pb2.ChatOpened):
                    self._open_chat(record)
                    chats[record.chat.chat_id] = record.chat
                    continue
                arrival += 1
                if record.content.WhichOneof("body") in CHANGES_CHAT:
                    chat = chats.get(record.chat_id) or self._chat(record.chat_id)
                    apply_event(chat, record)
                    chats[record.chat_id] = chat
                self._append(record, arrival, applied)
            for chat_id, chat in chats.items():
                self._db.execute(
                    "UPDATE chats SET chat = ?, ended = ? WHERE chat_id = ?",
                    (chat.SerializeToString(), _is_ended(chat, self.user_id), chat_id),
                )
            for receipt in receipts:
                self._raise_marks(receipt)
            if sync_token is not None:
                self._db.execute("INSERT OR REPLACE INTO device VALUES ('sync_token', ?), ('synced', 'yes')", (sync_token,))
        self._arrival = applied.arrival = arrival
        return applied

    def _open_chat(self, opened: session_pb2.ChatOpened) -> None:
        chat_id = opened.chat.chat_id
        row = self._db.execute("SELECT seq FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
        if row is not None and opened.head_seq < row[0]:
            self._forget(chat_id)
        self._db.execute(
            "INSERT OR REPLACE INTO chats (chat_id, chat, seq, low_seq, first_visible_seq) VALUES (?, ?, ?, ?, ?)",
            (chat_id, opened.chat.SerializeToString(), opened.next_seq - 1, opened.next_seq, opened.first_visible_seq),
        )

    def _append(self, event: chat_pb2.ChatEvent, arrival: int, applied: Applied) -> None:
        self._db.execute("UPDATE chats SET seq = ? WHERE chat_id = ?", (event.seq, event.chat_id))
        self._insert_event(event, arrival)
        body = event.content.WhichOneof("body")
        if body == "delete":
            self._erase(event.chat_id, min(event.content.delete.target_seq, SEQ_MAX))
        elif body == "hide":
            hidden = ((event.content.hide.chat_id, seq) for seq in event.content.hide.seqs if seq <= SEQ_MAX)
            self._db.executemany("INSERT OR IGNORE INTO hidden VALUES (?, ?)", hidden)
        if event.sender_user_id == self.user_id:
            self._settle_own(event, applied)

    def _insert_event(self, event: chat_pb2.ChatEvent, arrival: int | None) -> None:
        amends_seq = min(event.content.edit.target_seq, SEQ_MAX) if event.content.HasField("edit") else 0
        serialized = event.SerializeToString()
        if self._db.execute(
            "SELECT 1 FROM erased WHERE chat_id = ? AND seq IN (?, ?)", (event.chat_id, event.seq, amends_seq)
        ).fetchone():
            serialized = erased(serialized)
        self._db.execute(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)",
            (event.chat_id, event.seq, arrival, amends_seq, serialized),
        )

    def _erase(self, chat_id: str, seq: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO erased VALUES (?, ?)", (chat_id, seq))
        rows = self._db.execute(
            "SELECT seq, event FROM events WHERE chat_id = ? AND (seq = ? OR (amends_seq = ? AND amends_seq > 0))",
            (chat_id, seq, seq),
        ).fetchall()
        self._db.executemany(
            "UPDATE events SET event = ? WHERE chat_id = ? AND seq = ?",
            ((erased(event), chat_id, row_seq) for row_seq, event in rows),
        )

    def _settle_own(self, event: chat_pb2.ChatEvent, applied: Applied) -> None:
        found = self._db.execute("DELETE FROM outbox WHERE client_message_id = ?", (event.client_message_id,)).rowcount
        if found:
            result = chat_pb2.SendResult(
                chat_id=event.chat_id, seq=event.seq, message_id=event.message_id, sent_at_ms=event.sent_at_ms
            )
            applied.settled.append((event.client_message_id, result))

    def _raise_marks(self, receipt: chat_pb2.Receipt) -> None:
        self._db.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " delivered_seq = max(delivered_seq, excluded.delivered_seq), read_seq = max(read_seq, excluded.read_seq)",
            (receipt.chat_id, receipt.user_id, receipt.delivered_seq, receipt.read_seq),
        )

    def raise_own_read_mark(self, chat_id: str, seq: int) -> bool:
        """Stores how far the user has read; returns whether that is news."""
        with self._transaction():
            row = self._db.execute(
                "SELECT read_seq FROM receipts WHERE chat_id = ? AND user_id = ?", (chat_id, self.user_id)
            ).fetchone()
            if row is not None and row[0] >= seq:
                return False
            self._raise_marks(chat_pb2.Receipt(chat_id=chat_id, user_id=self.user_id, read_seq=seq))
        return True

    def forget_chat(self, chat_id: str) -> None:
        """Drops what is held of a chat; its waiting messages wait again for their `seen_seq`."""
        with self._transaction():
            self._forget(chat_id)
            self._db.execute("DELETE FROM chats WHERE chat_id = ?", (chat_id,))
            self._db.execute("UPDATE outbox SET seen_seq = NULL WHERE chat_id = ? AND error_code IS NULL", (chat_id,))

    def _forget(self, chat_id: str) -> None:
        for table in ("events", "erased", "hidden", "receipts"):
            self._db.execute(f"DELETE FROM {table} WHERE chat_id = ?", (chat_id,))  # noqa: S608 (names from above)

    def arrived(self, after: int, up_to: int, limit: int) -> list[tuple[int, chat_pb2.ChatEvent]]:
        """Events of the stream in the order in which they came, `after < order <= up_to`."""
        rows = self._db.execute(
            "SELECT arrival, event FROM events WHERE arrival > ? AND arrival <= ? ORDER BY arrival LIMIT ?",
            (after, up_to, limit),
        )
        return [(arrival, chat_pb2.ChatEvent.FromString(event)) for arrival, event in rows]

    def last_arrival(self) -> int:
        """Order of the last event that the stream brought."""
        return self._arrival

    # --- chats and history

    def _chat(self, chat_id: str) -> chat_pb2.Chat:
        row = self._db.execute("SELECT chat FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
        return chat_pb2.Chat() if row is None else chat_pb2.Chat.FromString(row[0])

    def chat(self, chat_id: str) -> ChatState | None:
        """A chat; None if the device does not hold it."""
        row = self._db.execute("SELECT chat, seq, first_visible_seq FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
        if row is None:
            return None
        receipts = self._db.execute("SELECT user_id, delivered_seq, read_seq FROM receipts WHERE chat_id = ?", (chat_id,))
        marks = {
            user_id: chat_pb2.Receipt(chat_id=chat_id, user_id=user_id, delivered_seq=delivered_seq, read_seq=read_seq)
            for user_id, delivered_seq, read_seq in receipts
        }
        return ChatState(chat_pb2.Chat.FromString(row[0]), row[1], row[2], marks)

    def chat_ids(self) -> list[str]:
        """The chats that the device holds."""
        return [row[0] for row in self._db.execute("SELECT chat_id FROM chats ORDER BY chat_id")]

    def page_before(self, chat_id: str, before_seq: int, limit: int, *, partial: bool = False) -> HistoryPage | None:
        """The events just below `before_seq` (0 = the newest); None if some are not held, unless `partial` will do."""
        row = self._db.execute("SELECT seq, low_seq, first_visible_seq FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
        if row is None:
            return None
        seq, low_seq, first_visible_seq = row
        below = min(before_seq, seq + 1) if before_seq else seq + 1
        rows = self._db.execute(
            "SELECT event FROM events WHERE chat_id = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?",
            (chat_id, low_seq, below, limit),
        ).fetchall()
        complete = low_seq <= max(first_visible_seq, 1)
        if len(rows) < limit and not complete and not partial:
            return None
        events = [chat_pb2.ChatEvent.FromString(row[0]) for row in reversed(rows)]
        oldest = events[0].seq if events else below
        return self._visible(chat_id, events, oldest > max(first_visible_seq, 1), bool(below <= seq))

    def save_page(self, page: session_pb2.HistoryPage, below_seq: int) -> HistoryPage:
        """Keeps a page that the server sent, and returns it as this device shows it.

        `below_seq`: it holds all that is visible from its first event up to here; 0 = unknown.
        """
        with self._transaction():
            for event in page.events:
                known = self._db.execute("SELECT 1 FROM events WHERE chat_id = ? AND seq = ?", (event.chat_id, event.seq))
                if known.fetchone() is None:
                    self._insert_event(event, None)
            self._extend_down(page, below_seq)
        events = [self._event(page.chat_id, event.seq) or event for event in page.events]
        return self._visible(page.chat_id, events, page.more_before, page.more_after)

    def _extend_down(self, page: session_pb2.HistoryPage, below_seq: int) -> None:
        row = self._db.execute("SELECT low_seq FROM chats WHERE chat_id = ?", (page.chat_id,)).fetchone()
        if row is None or below_seq < row[0]:
            return
        low_seq = page.events[0].seq if page.events else below_seq
        if not page.more_before:
            low_seq = 1
        if low_seq < row[0]:
            self._db.execute("UPDATE chats SET low_seq = ? WHERE chat_id = ?", (low_seq, page.chat_id))

    def _event(self, chat_id: str, seq: int) -> chat_pb2.ChatEvent | None:
        row = self._db.execute("SELECT event FROM events WHERE chat_id = ? AND seq = ?", (chat_id, seq)).fetchone()
        return None if row is None else chat_pb2.ChatEvent.FromString(row[0])

    def event(self, chat_id: str, seq: int) -> chat_pb2.ChatEvent | None:
        """One event, if it is held."""
        return self._event(chat_id, seq)

    def _visible(self, chat_id: str, events: Sequence[chat_pb2.ChatEvent], more_before: bool, more_after: bool) -> HistoryPage:
        hidden = self.hidden(chat_id)
        visible = tuple(event for event in events if event.seq not in hidden)
        first_seq, last_seq = (events[0].seq, events[-1].seq) if events else (0, 0)
        return HistoryPage(chat_id, visible, more_before, more_after, first_seq, last_seq)

    def hidden(self, chat_id: str) -> set[int]:
        """Seqs of the messages that the user hid."""
        return {row[0] for row in self._db.execute("SELECT seq FROM hidden WHERE chat_id = ?", (chat_id,))}

    def unread(self, chat_id: str) -> int:
        """How many messages of others that are held the user has not read, on whichever device; at most `UNREAD_MAX`.

        Own messages, changes, reactions, and messages that were deleted or hidden do not count.
        """
        rows = self._db.execute(
            "SELECT e.event FROM events e LEFT JOIN receipts r ON r.chat_id = e.chat_id AND r.user_id = ?"
            " WHERE e.chat_id = ? AND e.seq > coalesce(r.read_seq, 0)"
            " AND e.seq NOT IN (SELECT seq FROM hidden WHERE chat_id = e.chat_id) ORDER BY e.seq",
            (self.user_id, chat_id),
        )
        count = 0
        for (serialized,) in rows:
            event = chat_pb2.ChatEvent.FromString(serialized)
            count += event.sender_user_id != self.user_id and event.content.WhichOneof("body") in {"text", "encrypted"}
            if count == UNREAD_MAX:
                break
        return count

    # --- the outbox

    def queue(self, message: QueuedMessage) -> OutboxEntry:
        """Keeps a message for sending, in order. Its `seen_seq` is what is held of the chat at this moment."""
        content = message.content.SerializeToString()
        with self._transaction():
            row = self._db.execute("SELECT seq FROM chats WHERE chat_id = ?", (message.chat_id,)).fetchone()
            seen_seq: int | None = None if row is None else row[0]
            position = self._db.execute(
                "INSERT INTO outbox (client_message_id, chat_id, to_user_id, seen_seq, content, composed_at_ms)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (message.client_message_id, message.chat_id, message.to_user_id, seen_seq, content, message.composed_at_ms),
            ).lastrowid
        assert position is not None
        return OutboxEntry(position, message.chat_id, message.client_message_id, seen_seq, len(content))

    def outbox_entries(self) -> list[OutboxEntry]:
        """The messages that wait, in order."""
        rows = self._db.execute(
            "SELECT position, chat_id, client_message_id, seen_seq, length(content) FROM outbox WHERE error_code IS NULL"
            " ORDER BY position"
        )
        return [OutboxEntry(*row) for row in rows]

    def queued(self, client_message_ids: Iterable[bytes]) -> dict[bytes, QueuedMessage]:
        """The contents of waiting messages, by id; those that are not in the outbox are left out."""
        found: dict[bytes, QueuedMessage] = {}
        for client_message_id in client_message_ids:
            row = self._db.execute(
                "SELECT client_message_id, chat_id, to_user_id, content, composed_at_ms, error_code, error_message"
                " FROM outbox WHERE client_message_id = ?",
                (client_message_id,),
            ).fetchone()
            if row is not None:
                found[client_message_id] = _queued_message(row)
        return found

    def outbox_messages(self, *, failed: bool) -> list[QueuedMessage]:
        """The messages that wait, or those that were refused, in order."""
        rows = self._db.execute(
            "SELECT client_message_id, chat_id, to_user_id, content, composed_at_ms, error_code, error_message"
            " FROM outbox WHERE (error_code IS NOT NULL) = ? ORDER BY position",
            (failed,),
        )
        return [_queued_message(row) for row in rows]

    def set_seen_seq(self, keys: Iterable[tuple[bytes, int]]) -> None:
        """Gives messages, by id, their `seen_seq`."""
        with self._transaction():
            self._db.executemany("UPDATE outbox SET seen_seq = ? WHERE client_message_id = ?", [(s, i) for i, s in keys])

    def settle(self, committed: Iterable[bytes], refused: Iterable[tuple[bytes, chat_pb2.Error]]) -> None:
        """Takes committed messages out of the outbox and marks those that the server will never take."""
        with self._transaction():
            self._db.executemany("DELETE FROM outbox WHERE client_message_id = ?", [(i,) for i in committed])
            self._db.executemany(
                "UPDATE outbox SET error_code = ?, error_message = ? WHERE client_message_id = ?",
                [(error.code, error.message, client_message_id) for client_message_id, error in refused],
            )
            self._db.execute(
                "DELETE FROM outbox WHERE position IN (SELECT position FROM outbox WHERE error_code IS NOT NULL"
                " ORDER BY position DESC LIMIT -1 OFFSET ?)",
                (FAILED_MESSAGES_MAX,),
            )

    def drop(self, client_message_id: bytes) -> None:
        """Drops a message, whether it waits or was refused. For when no session sends it."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE client_message_id = ?", (client_message_id,))

    def discard(self, client_message_id: bytes) -> None:
        """Drops a refused message."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE client_message_id = ? AND error_code IS NOT NULL", (client_message_id,))


@contextmanager
def disk_errors() -> Iterator[None]:
    """Tells what SQLite says of the disk in this library's words.

    Raises:
        DiskError: it is full, failing or busy; nothing was stored.
        DataDirError: the file is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskError(f"the disk did not take it, and it is not kept: {error}") from error
    except sqlite3.Error as error:
        raise DataDirError(f"the device's store failed: {error}") from error


def _make_private(path: Path) -> None:
    """Makes the file, or the one that is there, for its owner alone; SQLite gives those beside it the same rights."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    for beside in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if beside.exists():
            beside.chmod(0o600)


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def _is_ended(chat: chat_pb2.Chat, user_id: str) -> bool:
    """Whether it is a group that the user is not in any more. Nobody leaves another kind of chat."""
    return chat.kind == content_pb2.CHAT_KIND_GROUP and all(member.user_id != user_id for member in chat.members)


def _queued_message(row: tuple[bytes, str, str, bytes, int, int | None, str | None]) -> QueuedMessage:
    client_message_id, chat_id, to_user_id, content, composed_at_ms, code, message = row
    error = None if code is None else chat_pb2.Error(code=code, message=message or "")  # type: ignore[arg-type]
    return QueuedMessage(client_message_id, chat_id, to_user_id, content_pb2.Content.FromString(content), composed_at_ms, error)
