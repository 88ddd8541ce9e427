"""The HTTP server behind the metrics endpoint: whoever connects and says little takes nothing from others."""

import contextlib
import socket
import sys
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

CONNECTIONS_MAX = 16
"""Open at the same time, each with a thread. One more takes the place of the oldest: Prometheus's own last milliseconds."""


class MetricsEndpoint(ThreadingMixIn, WSGIServer):
    """Answers one request on each connection, several connections at a time."""

    daemon_threads = True
    request_queue_size = 128
    """The standard library's 5 makes a scrape wait for seconds when a few others connect at once."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, seconds_max: float) -> None:
        """Listens; `serve_forever` answers.

        Args:
            host: address to listen on.
            port: 0 takes any free one.
            registry: what is shown.
            seconds_max: how long a connection may last, whatever its peer does.

        Raises:
            OSError: the address cannot be listened on.
        """
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        super().__init__((host, port), _Handler)
        self._seconds_max = seconds_max
        self._lock = threading.Lock()
        self._opened_s: dict[socket.socket, float] = {}
        self._rendering = threading.Lock()
        self._render = make_wsgi_app(registry)
        self.set_app(self._answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A connection was made."""
        with self._lock:
            if len(self._opened_s) >= CONNECTIONS_MAX:
                self._end(next(iter(self._opened_s)))
            self._opened_s[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection is done with."""
        with self._lock:
            self._opened_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Is called twice a second, and after each connection."""
        over_s = time.monotonic() - self._seconds_max
        with self._lock:
            for request in [request for request, opened_s in self._opened_s.items() if opened_s <= over_s]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke, or was ended, is daily life."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Wakes the connection's thread, whatever it waits for."""
        del self._opened_s[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def _answer(self, environ: Any, start_response: Any) -> Any:
        with self._rendering:  # it is Python, and each thread that renders would take as much from the event loop
            return self._render(environ, start_response)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the standard library)
        """Nothing: requests are no news."""
