"""A copy of the server whose rules are compiled, where one was made (`make compiled`) of the very sources that would run."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

import chatgrpc
from chatgrpc.start_error import StartError

PACKAGE: Final = Path(__file__).resolve().parent
FOLDER: Final = PACKAGE.parent.parent / ".compiled"
STAMP: Final = "made-of"
"""File in the folder that says what the copy was made of."""
SWITCH: Final = "COMPILED_CHATGRPC"
"""Environment variable, and no setting: it counts before there are any. With `0` the sources run, with `1` `chatgrpc serve`
does not run them; otherwise the copy runs where there is one of these sources."""
_BEFORE: Final = frozenset(f"chatgrpc.{name}" for name in ("cli", "compiled", "entry", "exits", "start_error"))
"""What is loaded before it is known which of the two runs, and is not compiled."""


def prefer() -> None:
    """From now on modules of the server are imported from the copy, if there is one and it is of these sources.

    Not once others of them are imported: what is compiled must not meet what is not. For the same reason what is missing in the
    copy is missing, and not taken from the sources.
    """
    begun = {name for name in sys.modules if name.startswith("chatgrpc.")} - _BEFORE
    if begun or not is_to_run():
        return
    chatgrpc.__path__[:] = [str(FOLDER / "chatgrpc")]
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
    if PACKAGE.parent.name != "src":
        return False  # it is installed, and what lies two folders up is not ours
    try:
        return (FOLDER / STAMP).read_text() == fingerprint(PACKAGE)
    except OSError:
        return False


def fingerprint(*folders: Path) -> str:
    """Of the interpreter and all files in the folders, but what is made of these, and tests."""
    found = hashlib.sha256(f"{sys.version} {sysconfig.get_config_var('EXT_SUFFIX')}".encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("test_"):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found.update(f"{path.relative_to(folder)} {digest}\n".encode())
    return found.hexdigest()
