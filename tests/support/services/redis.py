"""A real Redis."""

import contextlib
import socket

from tests.support.ports import free_port, met_itself
from tests.support.services.debian import find_program
from tests.support.services.process import ServiceProcess

_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
"""The server's program is another name of one of the tools."""
_START_TIMEOUT_S = 20.0


def fetch() -> None:
    """Has the program ready."""
    find_program("redis-server", _PACKAGES)


class RedisServer:
    """One Redis; its address stays the same across restarts. Unless it is durable a restart is a loss of data too."""

    def __init__(self, name: str = "redis", *, durable: bool = False) -> None:
        """`durable`: each write is on the disk before it is answered."""
        append_only = ("--appendonly", "yes", "--appendfsync", "always") if durable else ("--appendonly", "no")
        program = find_program("redis-server", _PACKAGES)
        self.port = free_port()
        self.process = ServiceProcess(
            name,
            lambda data: (
                *(program.path, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data)),
                *("--save", "", *append_only, "--daemonize", "no"),
            ),
            program.environment,
        )

    @property
    def url(self) -> str:
        """What clients are given."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it; returns when it answers."""
        self.process.launch()
        self.process.wait_until(self._answers, _START_TIMEOUT_S)

    def stop(self) -> None:
        """Ends it in order."""
        self.process.stop()

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()

    def close(self) -> None:
        """Ends it and removes its data."""
        self.process.close()

    def flush(self) -> None:
        """Empties it, while it runs."""
        assert self._ask(b"FLUSHALL") == b"+OK"

    def size(self) -> int:
        """How many keys it holds."""
        return int(self._ask(b"DBSIZE").removeprefix(b":"))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self._ask(b"PING") == b"+PONG"
        return False

    def _ask(self, command: bytes) -> bytes:
        """Its answer of one line."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            if met_itself(connection):
                raise ConnectionRefusedError("nobody listens")
            connection.sendall(command + b"\r\n")
            return connection.makefile("rb").readline().rstrip()
