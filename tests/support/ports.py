"""TCP ports of this machine for tests: free ones that stay so, and whether somebody listens on one."""

import contextlib
import fcntl
import os
import random
import socket
import struct
import tempfile
from pathlib import Path

_BELOW_DEFAULT = 32_768
_PORTS = 12_000
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: the connection leaves nothing behind that blocks its port for a minute."""
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on, for as long as this process lives.

    It is below those that the kernel gives to sockets which connect (a connect to a closed port there may get that very port as
    its own end, and meet itself), and no other process that asks here gets it meanwhile: locks end with their holder.
    """
    lowest = _first_ephemeral() - _PORTS
    ports = list(range(lowest, lowest + _PORTS))
    random.shuffle(ports)
    for port in ports:
        if port not in _given and _is_free(port) and _reserve(port):
            _given.add(port)
            return port
    raise OSError("no port is free")


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether anybody listens on a TCP port: somebody else than the socket that asks."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1) as connection:
        return not met_itself(connection)
    return False


def met_itself(connection: socket.socket) -> bool:
    """Whether a connection leads from a port to the same port: TCP's simultaneous open, where nobody listens."""
    itself: bool = connection.getsockname() == connection.getpeername()
    if itself:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return itself


def _first_ephemeral() -> int:
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > _PORTS + 1024:
            return min(first, _BELOW_DEFAULT)
    return _BELOW_DEFAULT


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _reserve(port: int) -> bool:
    """Takes the port among the processes of this machine's user: one byte of a file, locked until this process ends."""
    with contextlib.suppress(OSError):
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        return True
    return False


def _reservations() -> int:
    global _file  # noqa: PLW0603 (one for the process: closing any descriptor of the file would end all its locks)
    if _file is None:
        path = Path(tempfile.gettempdir()) / f"chatgrpc-test-ports-{os.getuid()}"
        _file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return _file


_file: int | None = None
