"""The folder of the checkout that holds fetched programs, and the data and logs of running services."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".services"


class ServiceError(Exception):
    """A service cannot be had. The message says what to do about it."""


def say(line: str) -> None:
    """Tells the person who waits what is going on; on the real standard error, since pytest keeps the other for itself."""
    print(f"services: {line}", file=sys.__stderr__, flush=True)


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """A folder that `fetch` fills once; a fetch that fails or is cut leaves nothing behind that looks whole.

    Args:
        name: what is fetched, with its version.
        fetch: fills the new, empty folder that it is given.
    """
    folder = FOLDER / name
    with _locked(FOLDER / "fetch.lock"):
        if not folder.exists():
            half = FOLDER / f"{name}.half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            fetch(half)
            half.rename(folder)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process of the checkout fetch at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, mode=0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
