"""The store in one SQLite file: opening, closing, and the ports it serves."""

import asyncio
import fcntl
import os
import sqlite3
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from chatgrpc.adapters.sqlite.accounts import SqliteDeviceStore, SqliteProfileStore
from chatgrpc.adapters.sqlite.chat_log import SqliteChatLog
from chatgrpc.adapters.sqlite.connections import open_reader, open_writer
from chatgrpc.adapters.sqlite.cursors import SqliteCursorStore
from chatgrpc.adapters.sqlite.epochs import SqliteEpochCounter
from chatgrpc.adapters.sqlite.errors import StoreInUseError, unavailable
from chatgrpc.adapters.sqlite.readers import Readers
from chatgrpc.adapters.sqlite.receipts import SqliteReceiptStore
from chatgrpc.adapters.sqlite.schema import migrate, packaged_migrations
from chatgrpc.adapters.sqlite.scrubber import Scrubber
from chatgrpc.adapters.sqlite.writer import Writer
from chatgrpc.ports.errors import StoreUnavailableError

_READER_THREADS = 4
_SQLITE_MIN = (3, 38, 0)
"""STRICT tables, RETURNING, JSON functions built in."""


class SqliteStore:
    """`ports.store.Store` and the embedded owner's `epochs`, for one process and the event loop that opened it."""

    def __init__(self, files: "_Files", loop: asyncio.AbstractEventLoop) -> None:
        """Use `open`."""
        self._files = files
        self._writer = Writer(files.writer, loop)
        self._readers = Readers(files.readers, loop)
        self._scrubber = Scrubber(self._writer, loop)
        self.log = SqliteChatLog(self._writer, self._readers, self._scrubber.note_erasure)
        self.receipts = SqliteReceiptStore(self._writer, self._readers)
        self.cursors = SqliteCursorStore(self._writer, self._readers)
        self.profiles = SqliteProfileStore(self._writer, self._readers)
        self.devices = SqliteDeviceStore(self._writer, self._readers)
        self.epochs = SqliteEpochCounter(self._writer)
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Opens the database file, creates it and its folder if there is none, and brings it to the current schema.

        The file and its companions (`-wal`, `-shm`, `.lock`) are for their owner only. A process that dies leaves nothing
        behind that stands in the way of the next one.

        Raises:
            StoreInUseError: another process, or this one, has it open.
            SchemaError: it is another program's, or written by a newer chatgrpc.
            StoreUnavailableError: it cannot be opened.
        """
        files = await asyncio.to_thread(_Files, path)
        store = cls(files, asyncio.get_running_loop())
        store._writer.start()
        store._readers.start()
        return store

    async def close(self) -> None:
        """See `ports.store.Store`."""
        if self._closing is None:
            self._scrubber.close()
            self._readers.refuse()
            self._writer.refuse()
            self._closing = asyncio.ensure_future(asyncio.to_thread(self._close))
        # Shielded: a caller that is cancelled must not leave it half closed.
        await asyncio.shield(self._closing)

    def _close(self) -> None:
        self._readers.close()
        self._writer.close()
        self._files.unlock()


class _Files:
    """The open files of a store."""

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < _SQLITE_MIN:
            needed = ".".join(map(str, _SQLITE_MIN))
            raise StoreUnavailableError(f"Python's SQLite is version {sqlite3.sqlite_version}; at least {needed} is needed")
        with ExitStack() as undo:
            try:
                self._lock = _lock(path)
                undo.callback(self.unlock)
                # Companions get the mode of the file.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, mode=0o600))
                _close_to_others(path)
                self.writer = open_writer(path)
                undo.callback(self.writer.close)
                migrate(self.writer, packaged_migrations())
                # The last process may have died before it cut away the log that holds erased content.
                self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self.readers = []
                for _ in range(_READER_THREADS):
                    self.readers.append(open_reader(path))
                    undo.callback(self.readers[-1].close)
                _flush_folder(path.parent)
            except sqlite3.Error as error:
                raise unavailable(error) from error
            except OSError as error:
                raise StoreUnavailableError(f"{error.filename or path}: {error.strerror}") from error
            undo.pop_all()

    def unlock(self) -> None:
        """Lets another process open the store."""
        os.close(self._lock)


def _close_to_others(path: Path) -> None:
    """A backup that was restored, or what stood beside it, may have come with any mode. Another user's file keeps its own."""
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with suppress(FileNotFoundError, PermissionError):
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & 0o077:
                file.chmod(mode & 0o700)


def _lock(path: Path) -> int:
    """Takes the lock that says whose store it is, until the descriptor is closed; the process's death closes it too."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_path = path.with_name(path.name + ".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, mode=0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        in_use = f"{path} is in use by process {holder}: one server at a time has a data folder"
        raise StoreInUseError(f"{in_use}; stop that one, or choose another folder with --data-dir") from None
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _flush_folder(folder: Path) -> None:
    """Makes the new files' names durable: a file that is flushed may yet be lost with its entry in the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
