"""The transport on a thread of its own, in Rust (`native/`): HTTP/2 never holds the interpreter's lock, and comes in batches.

The extension `chatgrpc_edge` is a package of its own, and may not be installed; `is_installed()` says so.
"""

import asyncio
import importlib
import importlib.util
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import structlog

from chatgrpc.edge.certificate_files import CertificateFiles
from chatgrpc.edge.errors import TOO_MANY_STRANGERS, trailers_of
from chatgrpc.edge.transport import Inbound, StreamId, StreamOpened, StreamStatus
from chatgrpc.start_error import StartError

_log = structlog.get_logger(__name__)

_RENEWAL_INTERVAL_S = 1.0
"""How often the certificate's files are looked at."""
PATH = "/chatgrpc.v1.SessionService/Connect"


def is_installed() -> bool:
    """Whether the native edge can be had in this environment."""
    return importlib.util.find_spec("chatgrpc_edge") is not None


class NativeTransport:
    """Implements `edge.transport.Transport` for `chatgrpc.v1.SessionService/Connect`."""

    def __init__(
        self,
        *,
        inbox_bytes_max: int,
        message_bytes_max: int,
        close_timeout_s: float,
        streams_per_connection_max: int = 100,
        silent_per_address_max: int = 2_000,
        handshake_timeout_s: float = 10.0,
        keepalive_interval_s: float = 60.0,
        keepalive_timeout_s: float = 20.0,
        idle_max_s: float = 120.0,
        idle_per_address_max: int = 1_000,
        idle_grace_s: float = 5.0,
        connection_age_max_s: float = 25 * 3600.0,
        connection_age_grace_s: float = 600.0,
        stop_grace_s: float = 1.0,
    ) -> None:
        """Belongs to the event loop that is running.

        Args:
            inbox_bytes_max: a stream with this many bytes unread is not read on.
            message_bytes_max: longest message that is received.
            close_timeout_s: how long a peer may take to read what `close()` leaves for it.
            streams_per_connection_max: calls at the same time on one connection.
            silent_per_address_max: streams of one address whose devices are not let in yet, whatever they have said; more are
                refused.
            handshake_timeout_s: a connection that has not become HTTP/2 by then is closed.
            keepalive_interval_s: a connection is pinged this often.
            keepalive_timeout_s: a connection whose ping is not answered by then is closed.
            idle_max_s: a connection without a call is closed after this time.
            idle_per_address_max: such connections of one address; of more, those are closed that have been idle the longest.
            idle_grace_s: but none that has been idle for less.
            connection_age_max_s: an older connection takes no new calls; it varies by a tenth.
            connection_age_grace_s: how long the calls of an old connection may go on.
            stop_grace_s: how long peers may take, once it stops, to take what was written to them.
        """
        edge: Any = importlib.import_module("chatgrpc_edge")
        self._streams = edge.Streams(
            path=PATH,
            inbox_bytes_max=inbox_bytes_max,
            message_bytes_max=message_bytes_max,
            close_timeout_s=close_timeout_s,
            streams_per_connection_max=streams_per_connection_max,
            strangers_per_address_max=silent_per_address_max,
            strangers_refusal=_on_the_wire(TOO_MANY_STRANGERS.code, TOO_MANY_STRANGERS.reason, TOO_MANY_STRANGERS.message),
            handshake_timeout_s=handshake_timeout_s,
            keepalive_interval_s=keepalive_interval_s,
            keepalive_timeout_s=keepalive_timeout_s,
            idle_max_s=idle_max_s,
            idle_per_address_max=idle_per_address_max,
            idle_grace_s=idle_grace_s,
            connection_age_max_s=connection_age_max_s,
            connection_age_grace_s=connection_age_grace_s,
            stop_grace_s=stop_grace_s,
        )
        self._loop = asyncio.get_running_loop()
        self._wake_up: Callable[[], None] = _nobody
        self._woken = False
        self._renewal: asyncio.TimerHandle | None = None

    def register(self, server: object) -> None:
        """Has nothing to add to the server behind: the streams never get there."""

    def show(self, certificate: CertificateFiles) -> None:
        """See `edge.server.Front.show`."""
        self._show(*certificate.first())
        self._look_for_renewal(certificate)

    def serve(self, listener: socket.socket, passage: Path | None = None) -> None:
        """See `edge.server.Front.serve`. Without a passage other calls are UNIMPLEMENTED."""
        self._loop.add_reader(self._streams.wake_fd(), self._has_input)
        self._streams.serve(listener.detach(), None if passage is None else str(passage))

    async def stop(self) -> None:
        """See `edge.server.Front.stop`."""
        if self._renewal is not None:
            self._renewal.cancel()
        self._loop.remove_reader(self._streams.wake_fd())
        await asyncio.to_thread(self._streams.stop)

    def _show(self, key: bytes, certificate: bytes) -> None:
        try:
            self._streams.use_certificate(certificate, key)
        except ValueError as error:
            raise StartError(f"The TLS certificate cannot be used: {error}") from error

    def _look_for_renewal(self, certificate: CertificateFiles) -> None:
        if renewed := certificate.renewed():
            try:
                self._show(*renewed)
            except StartError as error:
                _log.warning("certificate_not_renewed", error=str(error))
        self._renewal = self._loop.call_later(_RENEWAL_INTERVAL_S, self._look_for_renewal, certificate)

    def on_input(self, wake_up: Callable[[], None]) -> None:
        """See `Transport.on_input`."""
        self._wake_up = wake_up
        if self._woken:
            wake_up()

    def wake_when_writable(self) -> None:
        """See `Transport.wake_when_writable`."""
        self._streams.wake_when_writable()

    def drain(self) -> Inbound:
        """See `Transport.drain`."""
        self._woken = False
        opened, received, writable, finished, closed = self._streams.drain()
        return Inbound([StreamOpened(*one) for one in opened], received, writable, finished, closed)

    def write(self, messages: Iterable[tuple[StreamId, bytes]]) -> None:
        """See `Transport.write`."""
        self._streams.write(messages)

    def let_in(self, stream: StreamId) -> None:
        """See `Transport.let_in`."""
        self._streams.let_in(stream)

    def hold(self, stream: StreamId) -> None:
        """See `Transport.hold`."""
        self._streams.hold(stream)

    def release(self, stream: StreamId) -> None:
        """See `Transport.release`."""
        self._streams.release(stream)

    def close(self, stream: StreamId, status: StreamStatus, last: bytes = b"") -> None:
        """See `Transport.close`."""
        self._streams.close(stream, _on_the_wire(grpc.StatusCode[status.code], status.reason, status.message), last)

    def _has_input(self) -> None:
        self._streams.quiet()
        if not self._woken:
            self._woken = True
            self._wake_up()


def _on_the_wire(code: grpc.StatusCode, reason: str, message: str) -> tuple[int, str, bytes]:
    """Number, message and details of a status."""
    details = b""
    if code is not grpc.StatusCode.OK:
        ((_, details),) = trailers_of(code, reason, message)
    return code.value[0], message, details


def _nobody() -> None:
    """Stands in until somebody wants to be woken."""
