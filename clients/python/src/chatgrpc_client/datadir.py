"""The folder of a device's state: made on first use, and used by one process at a time."""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from .exceptions import DataDirError, DataDirLockedError


class DataDir:
    """Holds the lock of a folder from its making to `close`."""

    def __init__(self, path: Path) -> None:
        """Makes the folder if need be, and locks it.

        Raises:
            DataDirLockedError: another process uses it.
            DataDirError: it cannot be made or written, or others of the machine may read it and it is not ours to close.
        """
        self.path = path
        self.store_path = path / "store.sqlite3"
        try:
            _make_private(path)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(f"cannot use {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 32).decode(errors="replace").strip()
            os.close(self._lock)
            raise DataDirLockedError(
                f"{path} is in use by process {holder or '?'}; stop that one, or use another device"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk; the lock holds without a name
            os.truncate(self._lock, 0)
            os.write(self._lock, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Lets others use the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _make_private(path: Path) -> None:
    """Makes the folder, and those above it that are missing, for their owner alone; closes one that is open to others."""
    for folder in reversed([folder for folder in path.parents if not folder.exists()]):
        folder.mkdir(exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True, mode=0o700)
    mode = path.stat().st_mode
    if mode & 0o077:
        path.chmod(mode & 0o700)


def new_device_id() -> str:
    """A device id that nobody else chose: 64 random bits.

    It says nothing of the device, since all members of a chat see it with each message (`sender_device_id`).
    """
    return secrets.token_hex(8)
