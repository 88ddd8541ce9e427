"""The line between a worker and the supervisor that started it: a socket that the worker inherits.

On it the worker says that it serves, or why it cannot. Nothing comes the other way but its end, when the supervisor has gone,
however it went; then the worker leaves in order, as nobody else would end it.
"""

import functools
import json
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Final

FD_ENV: Final = "CHATGRPC_SUPERVISOR_FD"
"""Tells a worker the number of its end of the line."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker said."""

    serving: bool
    reason: str = ""
    """Why it cannot serve."""

    def to_line(self) -> bytes:
        """As it goes over the line."""
        return json.dumps({"serving": self.serving, "reason": self.reason}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Said":
        """As it came over the line."""
        return cls(**json.loads(line))


class SupervisorLine:
    """The worker's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)

    def tell_serving(self) -> None:
        """This worker serves."""
        self._tell(Said(serving=True))

    def tell_failed(self, reason: str) -> None:
        """This worker cannot serve."""
        self._tell(Said(serving=False, reason=reason))

    def leave_with_supervisor(self) -> None:
        """From now on the process gets SIGTERM when its supervisor has gone."""
        threading.Thread(target=self._wait_for_its_end, name="supervisor-line", daemon=True).start()

    def _wait_for_its_end(self) -> None:
        try:
            self._socket.recv(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self, said: Said) -> None:
        try:
            self._socket.sendall(said.to_line())
        except OSError:
            # The supervisor has gone, and the thread that waits for it says so.
            return


@functools.cache
def supervisor_line() -> SupervisorLine | None:
    """The line to the supervisor that started this process; None if a person or another program did."""
    fd = os.environ.pop(FD_ENV, None)
    return None if fd is None else SupervisorLine(int(fd))
