"""A copy of the server whose rules are compiled, where one was made (`make compiled`) of the very sources that would run."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

import chatgrpc
from chatgrpc.start_error import StartError

PACKAGE: Final = Path(__file__).resolve().parent
FOLDER: Final = PACKAGE.parents[1] / ".compiled"
STAMP: Final = "made-of"
"""File in the folder that says what the copy was made of."""
SWITCH: Final = "COMPILED_CHATGRPC"
"""Environment variable, and no setting: it counts before there are any. With `0` the sources run, with `1` they never serve;
otherwise the copy runs where there is one of these sources."""


def prefer() -> None:
    """From now on modules of the server are imported from the copy, if there is one and it is of these sources.

    Not once others of them are imported: what is compiled must not meet what is not.
    """
    begun = any(name.startswith(("chatgrpc.core", "chatgrpc.edge", "chatgrpc.embedded")) for name in sys.modules)
    if begun or not is_to_run():
        return
    chatgrpc.__path__.insert(0, str(FOLDER / "chatgrpc"))
    sys.path.append(str(FOLDER))  # mypyc's own module, which all that it compiled share


def is_to_run() -> bool:
    """Whether a process that starts now runs the copy: there is one, it was made of these sources, and nobody wants it off."""
    return os.environ.get(SWITCH) != "0" and _is_current()


def runs() -> bool:
    """Whether this process does."""
    return str(FOLDER / "chatgrpc") in chatgrpc.__path__


def check() -> None:
    """Raises:
    StartError: nothing but the copy may serve, and there is none, or one of other sources.
    """
    if os.environ.get(SWITCH) == "1" and not runs():
        raise StartError(f"{SWITCH}=1, and there is no compiled copy of the sources as they are; `make compiled` makes it")


def _is_current() -> bool:
    try:
        return (FOLDER / STAMP).read_text() == fingerprint()
    except OSError:
        return False


def fingerprint() -> str:
    """Of the interpreter and all sources of the server."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
