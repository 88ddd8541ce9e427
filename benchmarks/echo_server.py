"""Raw grpc.aio bidirectional echo: the yardstick beside which every figure stands.

One read and one write a message, no parsing, nothing else. What a Python server pays for a message cannot be less, so it has
whatever makes grpc.aio fast: uvloop, identity serializers, `read` and `write` instead of iterators, no interceptor. It listens
as a node does, on the same I/O engine, class and options, so that no option stands between the two.
"""

import argparse
import gc

from chatgrpc.edge.engine import serve_by_polling

serve_by_polling()  # chosen when grpc is imported

import grpc  # noqa: E402
import uvloop  # noqa: E402

from chatgrpc.edge.server import GrpcServer, ServerOptions  # noqa: E402

SERVICE = "chatgrpc.bench.Echo"


async def _echo(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    read, write = context.read, context.write
    end: object = grpc.aio.EOF
    while (message := await read()) is not end:
        await write(message)


def _add_echo(server: grpc.aio.Server) -> None:
    """Without serializers the messages are bytes."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler}),))


async def serve(port: int) -> None:
    """Echoes on the loopback address until the process ends."""
    server = GrpcServer(ServerOptions(port=port))
    server.register(SERVICE, _add_echo)
    await server.start()
    gc.freeze()
    await server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
