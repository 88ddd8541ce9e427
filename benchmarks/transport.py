"""What the transport costs beside a raw grpc.aio echo, with either I/O engine of gRPC: `python -m benchmarks.transport`.

Both servers do the same: each message comes back as a message of its own. The echo reads and writes within one coroutine a
stream, which is the least that grpc.aio can do. Behind the transport stands the smallest edge there can be
(`benchmarks/transport_echo.py`).
"""

import argparse
import gc
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT, Cpus, Loadgen, Server
from tests.support.ports import free_port

ENGINES = {"default": "", "polling": "-event_engine_listener"}
LOADS = {"echo window 1": ("50", "1"), "echo window 8": ("50", "8")}
IDLE_STREAMS = 2_000


async def serve(port: int) -> None:
    """Echoes through the transport on the loopback address until the process ends."""
    # Imported here, so that the other half of this file works without: the engine is chosen when grpc is imported.
    from benchmarks.echo_server import METHOD, SERVICE  # noqa: PLC0415
    from benchmarks.transport_echo import echo_on  # noqa: PLC0415
    from chatgrpc.edge.grpc_transport import GrpcTransport  # noqa: PLC0415
    from chatgrpc.edge.server import GrpcServer, ServerOptions  # noqa: PLC0415

    transport = GrpcTransport(inbox_bytes_max=256 * 1024, close_timeout_s=5.0)
    echo_on(transport)
    server = GrpcServer(ServerOptions(port=port))
    server.register(SERVICE, lambda added_to: transport.register(added_to, SERVICE, METHOD))
    await server.start()
    gc.freeze()
    await server.wait()


@contextmanager
def started(server: str, engine: str, cpus: Cpus) -> Iterator[Server]:
    """One of the two servers, new, with the engine."""
    port = free_port()
    command = {
        "echo": [sys.executable, "-m", "benchmarks.echo_server", "--port", str(port)],
        "transport": [sys.executable, "-m", "benchmarks.transport", "--serve", str(port)],
    }[server]
    environment = os.environ | {"GRPC_EXPERIMENTS": ENGINES[engine], "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory(prefix="chatgrpc-transport-") as folder,
        Server.start(f"{server} ({engine})", command, port, Path(folder, "log"), environment, cpus.server) as running,
    ):
        yield running


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each figure is measured, in turns")
    parser.add_argument("--serve", type=int, metavar="PORT", help="be the server")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        uvloop.run(serve(arguments.serve))
        return

    cpus = Cpus.choose()
    loadgen = Loadgen(cpus.loadgen)
    figures: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for engine in ENGINES:
            for server in ("echo", "transport"):
                for load, (streams, window) in LOADS.items():
                    shape = ("--streams", streams, "--window", window, "--warmup", "1s", "--duration", "3s")
                    with started(server, engine, cpus) as running:
                        seen = loadgen.run("echo", running, *shape)
                    figures[engine, load, server].append(seen["server_cpu_s"] / seen["count"] * 1e6)
                with started(server, engine, cpus) as running:
                    seen = loadgen.run("echo-idle", running, "--streams", str(IDLE_STREAMS))
                figures[engine, f"idle {IDLE_STREAMS}", server].append(seen["kb_per_stream"])

    table = Table("engine", "load", "unit", "raw echo", "transport", "ratio")
    for engine in ENGINES:
        for load in (*LOADS, f"idle {IDLE_STREAMS}"):
            echo, transport = (median(figures[engine, load, server]) for server in ("echo", "transport"))
            unit = "kB a stream" if load.startswith("idle") else "µs of CPU a message"
            table.add_row(engine, load, unit, f"{echo:.1f}", f"{transport:.1f}", f"{transport / echo:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
