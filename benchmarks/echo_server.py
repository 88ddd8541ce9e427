"""Raw grpc.aio bidirectional echo: the yardstick beside which every figure stands.

One read and one write a message, no parsing, nothing else. What a Python server pays for a message cannot be less, so it has
whatever makes grpc.aio fast: uvloop, identity serializers, `read` and `write` instead of iterators.
"""

import argparse
import gc

import grpc
import uvloop

METHOD = "/chatgrpc.bench.Echo/Echo"

OPTIONS = (
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.so_reuseport", 0),
)


async def _echo(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    read, write = context.read, context.write
    end: object = grpc.aio.EOF
    while (message := await read()) is not end:
        await write(message)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the one method there is."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """The method's handler; without serializers the messages are bytes."""
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(_echo)


async def serve(port: int) -> None:
    """Echoes on the loopback address until the process ends."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Handlers(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gc.freeze()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
