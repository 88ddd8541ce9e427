"""A wall clock that is stepped under a running process, as one is that was set by hand or by NTP; no other clock is.

The library is preloaded (`stepped_clock.c`), so that nothing in the process knows of it, and all that asks libc for the time is
told the same: the interpreter, the event loop and gRPC.
"""

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_OFFSET = struct.Struct("=q")


class NoCompilerError(Exception):
    """There is no C compiler on this machine."""


def build(folder: Path) -> Path:
    """Compiles the library into the folder.

    Raises:
        NoCompilerError: there is none.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("there is no C compiler here: neither `cc` nor `gcc` is found")
    library = folder / "stepped_clock.so"
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def preloaded(library: Path, offset_file: Path) -> Mapping[str, str]:
    """The environment of a process whose clock `SteppedClock(offset_file)` steps; the process makes the file."""
    return {"LD_PRELOAD": str(library), "STEPPED_CLOCK_OFFSET": str(offset_file)}


class SteppedClock:
    """The wall clock of every process that has mapped the file."""

    def __init__(self, offset_file: Path) -> None:
        """One of the processes runs already."""
        with offset_file.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), _OFFSET.size)
        self.ahead_s = 0.0
        """Of the right time."""

    def step(self, ahead_s: float) -> None:
        """From now on the clock is ahead of the right time by this, or behind it if it is negative."""
        _OFFSET.pack_into(self._mapped, 0, round(ahead_s * 1e9))
        self.ahead_s = ahead_s
