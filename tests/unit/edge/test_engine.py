"""The choice of gRPC's I/O engine, in processes of their own: it falls once, at the import."""

import os
import subprocess
import sys

PROGRAM = """
import asyncio, os
from chatgrpc.edge.engine import serve_by_polling
serve_by_polling()
import grpc

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readexactly(9)  # the server's settings: it is at work
    print(os.environ["GRPC_EXPERIMENTS"])
    writer.transport.abort()
    await server.stop(None)

asyncio.run(main())
"""


def serve(**environment: str) -> tuple[str, str]:
    """Serves for a moment; gives what was chosen and what gRPC said to it."""
    inherited = {key: value for key, value in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, check=True, capture_output=True, text=True, timeout=60
    )
    return run.stdout.strip(), run.stderr


def test_this_grpcio_knows_the_polling_engine() -> None:
    chosen, said = serve()
    assert chosen == "-event_engine_listener"
    assert "Unknown experiment" not in said


def test_a_choice_in_the_environment_stays() -> None:
    chosen, said = serve(GRPC_EXPERIMENTS="-an_engine_of_the_future")
    assert chosen == "-an_engine_of_the_future"
    assert "Unknown experiment" in said  # so the other test could fail


def test_the_command_chooses_before_anything_imports_grpc() -> None:
    program = """
import os, sys
from chatgrpc.cli import main
main.build_app = lambda: lambda: print("grpc" in sys.modules, os.environ["GRPC_EXPERIMENTS"])
main.main()
"""
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.split() == ["False", "-event_engine_listener"]
