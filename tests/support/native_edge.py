"""The native edge in tests: whether there is one, and how its transport is served by itself."""

import socket

import pytest

from chatgrpc.edge import native_transport
from chatgrpc.edge.native_transport import NativeTransport

needs_native_edge = pytest.mark.skipif(
    not native_transport.is_installed(), reason="NOT TESTED: there was no Rust to build the native edge with"
)


def serve(transport: NativeTransport) -> int:
    """Serves on a port of the loopback address, with no server behind; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    transport.serve(listener)
    return port
