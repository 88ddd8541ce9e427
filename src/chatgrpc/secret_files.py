"""Secrets that processes on one machine share by a file that its owner alone may read."""

import os
import secrets
from pathlib import Path

import structlog

_log = structlog.get_logger()


def create_secret_file(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and links it there: whoever links first wins, and no one sees half a file.

    The folder is made, for its owner alone, if there is none.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def read_secret_file(path: Path) -> bytes:
    """Reads a secret.

    Raises:
        PermissionError: others may read or change it; the message says what to do.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(0, f"others may read it: `chmod 600 {path}`, or remove it, and a new one is made")
        return file.read()


def warn_of_open_folder(folder: Path) -> None:
    """Says so in the log if others may write into a folder, and so put files of theirs in the place of ours."""
    try:
        is_open = folder.is_dir() and folder.stat().st_mode & 0o022
    except OSError:  # whoever opens what is in it says so
        return
    if is_open:
        _log.warning("data_folder_open_to_others", path=folder, advice="others may replace what is in it: chmod go-w")
