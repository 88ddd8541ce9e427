"""The process: serves alone or as a node of a cluster until it is told to stop."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator

from chatgrpc.adapters.jwt import open_verifier
from chatgrpc.config import Settings
from chatgrpc.embedded.node import serving_alone
from chatgrpc.greeting import announce, farewell
from chatgrpc.metrics import Metrics, MetricsServer


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends it at once.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop)
    async with serving(settings) as port:
        _tune_interpreter()
        announce(settings, port)
        await stop.wait()
        farewell()


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[int]:
    """A node that serves for the length of the block; gives the port. Leaving the block drains it.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    async with contextlib.AsyncExitStack() as stack:
        verifier = open_verifier(settings)
        stack.push_async_callback(verifier.aclose)
        metrics = Metrics()
        if settings.server.metrics_port:
            metrics_server = MetricsServer(metrics, settings.server.metrics_host, settings.server.metrics_port)
            stack.callback(metrics_server.stop)
        metrics.count_tasks(asyncio.get_running_loop())
        if settings.cluster.enabled:
            # The drivers of its services take time to load, and a node that is alone needs none of them.
            from chatgrpc.cluster.node import serving_clustered  # noqa: PLC0415

            yield await stack.enter_async_context(serving_clustered(settings, verifier, metrics))
        else:
            yield await stack.enter_async_context(serving_alone(settings, verifier, metrics))


def _tune_interpreter() -> None:
    """Fits the interpreter to a process that is one busy loop and a thread that commits; `make bench` shows what it brings."""
    # The writer thread needs the lock for microseconds between two calls of SQLite, and would wait 5 ms for it each time.
    sys.setswitchinterval(0.0005)
    # A message makes some twenty objects that die young, and the streams are many that stay: collect seldom, and not those.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        sys.exit(130)
    stop.set()
