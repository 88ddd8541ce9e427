"""What both gRPC servers of a node share, that of the public port and that for other nodes: how they begin and end."""

import asyncio
import errno
import logging
import socket

import grpc

from chatgrpc.start_error import StartError

_CANCEL_TIMEOUT_S = 1.0
"""How long calls that were cancelled may take to end."""

_BACKLOG = 4_096
"""Connections that the kernel keeps for us until we take them; it allows no more itself."""

_ROUTINE = (
    "ExecuteBatchError raised in core by servicer method",
    "Aborting method [%s] due to server stop.",
    "Invalid encoding on",
)
"""What grpc.aio logs when a peer goes away while its call is being answered, is cut off by our stop, or sends a header that is
not UTF-8, which it quotes, and which may be a token. All are daily life."""


def check_address(host: str, port: int, *, reuse_port: bool = False) -> None:
    """Tries the address, since gRPC says of any failure only that it failed, and that on standard error.

    Raises:
        StartError: it cannot be listened on.
    """
    _bound(host, port, reuse_port=reuse_port).close()  # and no more: who waits for the server would take a socket that listens


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A socket that listens on the address.

    Raises:
        StartError: it cannot be listened on.
    """
    listener = _bound(host, port, reuse_port=reuse_port)
    listener.listen(_BACKLOG)
    return listener


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        where = f"{host} port {port}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{where} is in use. Stop the program that listens there, or choose another port.") from error
        raise StartError(f"Cannot listen on {where}: {error.strerror}.") from error
    return bound


async def stop_server(server: grpc.aio.Server, grace_s: float | None) -> None:
    """Stops a server: calls that have not ended after `grace_s` seconds are cancelled, or at once if it is None.

    gRPC ends a connection once what it was writing is written. A peer that takes nothing, since it stands still, may hold that
    up for as long as its kernel answers for it; so it is not waited for any longer, and loses its connection with the process.
    """
    stopping = asyncio.ensure_future(server.stop(grace_s))
    await asyncio.wait({stopping}, timeout=(grace_s or 0.0) + _CANCEL_TIMEOUT_S)
    if stopping.done():
        stopping.result()


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Filters out what a gRPC server of this process logs every day."""
    return not str(record.msg).startswith(_ROUTINE)
