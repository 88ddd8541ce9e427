"""The gRPC server of a node: its port, TLS, limits, health and reflection. What it serves is registered by the caller."""

import logging
import socket
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chatgrpc.edge.certificate_files import CertificateFiles
from chatgrpc.edge.flood_watch import FloodWatch
from chatgrpc.edge.services.health import SERVICE as HEALTH
from chatgrpc.edge.services.health import HealthService
from chatgrpc.grpc_ports import check_address, is_worth_a_line, listen, stop_server
from chatgrpc.start_error import StartError

_MS = 1000
_NEVER_S = 20 * 86_400.0
"""In milliseconds no longer than gRPC can count."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a node listens, and what its peers may take. The defaults suit the public port."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes any free port."""
    tls_cert_file: Path | None = None
    """PEM, with the chain; both files or none. They are read again when they change."""
    tls_key_file: Path | None = None
    reuse_port: bool = False
    """Several processes may listen on the port (SO_REUSEPORT), and the kernel spreads connections over them."""

    message_bytes_max: int = 1024 * 1024
    """Longest message that is received."""
    streams_per_connection_max: int = 100
    """Calls at the same time on one connection; a client waits with more. Proxies carry many devices on one connection."""
    calls_pending_max: int = 100_000
    """Calls that are opened and not yet accepted. gRPC's own 1,000 cancels some when a few thousand devices come at once."""
    handshake_timeout_s: float = 10.0
    """A connection that has not become HTTP/2 by then is closed."""
    keepalive_interval_s: float = 60.0
    """A quiet connection is pinged this often."""
    keepalive_timeout_s: float = 20.0
    """A connection whose ping is not answered by then is closed."""
    read_bytes_max: int = 16 * 1024
    """Read from a connection at once."""
    connection_idle_max_s: float = 120.0
    """A connection without a call is closed after this time; clients connect again when they call."""
    connection_age_max_s: float = 25 * 3600.0
    """An older connection takes no new calls, so that load spreads over new nodes. gRPC varies it by a tenth."""
    connection_age_grace_s: float = 600.0
    """How long the calls of an old connection may go on."""


class Front(Protocol):
    """Has the public port in place of grpc.aio, answers some calls itself, and passes all others on."""

    def show(self, certificate: CertificateFiles) -> None:
        """Speaks TLS, with this certificate. Without it, the front serves in clear.

        Raises:
            StartError: it cannot be used.
        """

    def serve(self, listener: socket.socket, passage: Path) -> None:
        """Begins to serve a listening TCP socket, which is the front's from now on.

        Args:
            listener: of the public port.
            passage: the Unix socket on which other calls are answered.
        """

    async def stop(self) -> None:
        """Frees the port, gives peers a moment to take what was written to them, and cuts what it still serves."""


class GrpcServer:
    """A grpc.aio server with health and reflection. Register services, then `start()`, then `stop()`."""

    def __init__(
        self,
        options: ServerOptions,
        interceptors: Iterable[grpc.aio.ServerInterceptor] = (),
        flood_watch: FloodWatch | None = None,
        front: Front | None = None,
    ) -> None:
        """Belongs to the event loop that is running.

        Args:
            options: where and how to listen.
            interceptors: stand around every call, the first one outermost.
            flood_watch: watches the connections from the start to the stop; not with a front, whose connections are its own.
            front: takes the port.
        """
        if front is not None:
            options = _behind(options)
        self._front = front
        self._passage: tempfile.TemporaryDirectory[str] | None = None
        logging.getLogger("grpc._cython.cygrpc").addFilter(is_worth_a_line)
        self._options = options
        self._flood_watch = flood_watch
        self._server = grpc.aio.server(interceptors=tuple(interceptors), options=_channel_arguments(options))
        self._health = HealthService()
        self._services = [HEALTH, reflection.SERVICE_NAME]

    def register(self, service: str, add_to: Callable[[grpc.aio.Server], None]) -> None:
        """Adds a service before the start.

        Args:
            service: full name (`chatgrpc.v1.ChatService`), under which reflection and health know it.
            add_to: adds its handlers: `lambda server: add_ChatServiceServicer_to_server(servicer, server)`.
        """
        add_to(self._server)
        self._services.append(service)

    async def start(self) -> int:
        """Listens, NOT_SERVING until `set_serving(True)`; returns the port.

        Raises:
            StartError: the port cannot be had, or a TLS file cannot be used.
        """
        self.set_serving(False)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(self._services, self._server)
        if self._front is not None:
            return await self._start_behind(self._front)
        port = self._listen()
        await self._server.start()
        if self._flood_watch is not None:
            self._flood_watch.start(port)
        return port

    async def _start_behind(self, front: Front) -> int:
        options = self._options
        if certificate := _certificate(options):
            front.show(certificate)
        listener = listen(options.host, options.port, reuse_port=options.reuse_port)
        port: int = listener.getsockname()[1]
        # Only we may enter the folder, and so dial the socket in it.
        self._passage = tempfile.TemporaryDirectory(prefix="chatgrpc-")
        passage = Path(self._passage.name, "calls")
        self._server.add_insecure_port(f"unix:{passage}")
        await self._server.start()
        front.serve(listener, passage)
        return port

    def set_serving(self, serving: bool) -> None:
        """Tells load balancers whether to send devices here, for the server as a whole (`""`) and for each service."""
        self._health.set(("", *self._services), serving=serving)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets those under way end, cancels what is left after `grace_s` seconds, and frees the port."""
        self.set_serving(False)
        await stop_server(self._server, grace_s)
        try:
            if self._front is not None:
                await self._front.stop()
            elif self._flood_watch is not None:
                self._flood_watch.stop()
        finally:
            if self._passage is not None:
                self._passage.cleanup()

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()

    def _listen(self) -> int:
        options = self._options
        certificate = _certificate(options)
        credentials = None if certificate is None else certificate.credentials()
        check_address(options.host, options.port, reuse_port=options.reuse_port)
        address = f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}"
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartError(f"Cannot listen on {address}. Choose another address or port.") from error


def _channel_arguments(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(options.reuse_port)),
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.max_concurrent_streams", options.streams_per_connection_max),
        ("grpc.server.max_pending_requests", options.calls_pending_max),
        ("grpc.server.max_pending_requests_hard_limit", options.calls_pending_max),
        ("grpc.server_handshake_timeout_ms", int(options.handshake_timeout_s * _MS)),
        ("grpc.keepalive_time_ms", int(options.keepalive_interval_s * _MS)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_s * _MS)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Counting pings is what makes them dear: past the last strike each one costs 70 µs, an answer to it less than one.
        ("grpc.http2.max_ping_strikes", 0),
        # What one read takes is worked through before the watch on floods can do anything.
        ("grpc.experimental.tcp_max_read_chunk_size", options.read_bytes_max),
        ("grpc.experimental.tcp_read_chunk_size", options.read_bytes_max),
        ("grpc.max_connection_idle_ms", int(options.connection_idle_max_s * _MS)),
        ("grpc.max_connection_age_ms", int(options.connection_age_max_s * _MS)),
        ("grpc.max_connection_age_grace_ms", int(options.connection_age_grace_s * _MS)),
        # Without probing, a stream's flow-control window stays at 64 KiB: what a fast sender can put into our memory unread.
        ("grpc.http2.bdp_probe", 0),
    ]


def _behind(options: ServerOptions) -> ServerOptions:
    """Behind a front a connection is as old and as idle as the client's that it belongs to, whose calls the front limits.

    One that has ended there may not have ended here yet.
    """
    return replace(
        options,
        streams_per_connection_max=100 * options.streams_per_connection_max,
        connection_idle_max_s=_NEVER_S,
        connection_age_max_s=_NEVER_S,
    )


def _certificate(options: ServerOptions) -> CertificateFiles | None:
    if options.tls_cert_file is None or options.tls_key_file is None:
        return None
    return CertificateFiles(options.tls_cert_file, options.tls_key_file)
