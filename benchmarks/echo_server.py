"""Raw bidirectional echo on either edge: the yardstick beside which every figure stands.

One read and one write a message, no parsing, nothing else. What a Python server pays for a message cannot be less, so it has
whatever makes it fast. On grpc.aio: uvloop, identity serializers, `read` and `write` instead of iterators, no interceptor; it
listens as a node does, on the same I/O engine, class and options, so that no option stands between the two. On the native edge:
its transport, and the smallest edge there can be behind it.

    python -m benchmarks.echo_server --port PORT [--edge native]
"""

import argparse
import asyncio
import gc
import socket

from chatgrpc.edge.engine import serve_by_polling

serve_by_polling()  # chosen when grpc is imported

import grpc  # noqa: E402
import uvloop  # noqa: E402

from benchmarks.transport_echo import echo_on  # noqa: E402
from chatgrpc.edge.native_transport import NativeTransport  # noqa: E402
from chatgrpc.edge.server import GrpcServer, ServerOptions  # noqa: E402

SERVICE, METHOD = "chatgrpc.v1.SessionService", "Connect"
"""Where the streams of devices go: the native edge serves no other."""


async def _echo(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    read, write = context.read, context.write
    end: object = grpc.aio.EOF
    while (message := await read()) is not end:
        await write(message)


def _add_echo(server: grpc.aio.Server) -> None:
    """Without serializers the messages are bytes."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))


async def serve_grpcio(port: int) -> None:
    """Echoes on the loopback address until the process ends."""
    server = GrpcServer(ServerOptions(port=port))
    server.register(SERVICE, _add_echo)
    await server.start()
    gc.freeze()
    await server.wait()


async def serve_native(port: int) -> None:
    """Echoes on the loopback address until the process ends."""
    transport = NativeTransport(inbox_bytes_max=256 * 1024, message_bytes_max=1024 * 1024, close_timeout_s=5.0)
    echo_on(transport)
    transport.serve(socket.create_server(("127.0.0.1", port)))
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    edges = {"grpcio": serve_grpcio, "native": serve_native}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--edge", choices=edges, default="grpcio")
    arguments = parser.parse_args()
    uvloop.run(edges[arguments.edge](arguments.port))
