"""The process: serves alone or as a node of a cluster until it is told to stop."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, NoReturn, TypeAlias

from chatgrpc.adapters.jwt import open_verifier
from chatgrpc.background import log_callbacks
from chatgrpc.closing import CLOSE_TIMEOUT_S, UNFINISHED_STATUS, Closing, end_within, leave
from chatgrpc.config import Settings
from chatgrpc.embedded.node import serving_alone
from chatgrpc.metrics import Metrics, MetricsServer
from chatgrpc.ports.tokens import TokenVerifier
from chatgrpc.process.greeting import announce, farewell
from chatgrpc.secret_files import warn_of_open_folder
from chatgrpc.start_error import StartError

_DRIVERS: Final = frozenset({"cassandra", "redis"})
"""Modules of the extra `cluster`."""
_Serving: TypeAlias = Callable[[Settings, TokenVerifier, Metrics, Closing], contextlib.AbstractAsyncContextManager[int]]
_SPARE_S: Final = 1.0
"""What is not over by itself so long after its time never will be."""


async def run(settings: Settings) -> NoReturn:
    """Serves until SIGTERM or SIGINT, then drains, and ends the process; a second signal ends it at once.

    The status is 0, or `UNFINISHED_STATUS` if something did not end in time; see `end_within` for when that cannot be said.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    stop = asyncio.Event()
    closing = Closing(partial(end_within, CLOSE_TIMEOUT_S + _SPARE_S))
    loop = asyncio.get_running_loop()
    log_callbacks(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop)
    async with serving(settings, closing) as port:
        tune_interpreter()
        announce(settings, port)
        await stop.wait()
        end_within(settings.server.drain_timeout_s + CLOSE_TIMEOUT_S + _SPARE_S)
        farewell()
    leave(UNFINISHED_STATUS if closing.unfinished else 0)


@contextlib.asynccontextmanager
async def serving(settings: Settings, closing: Closing | None = None) -> AsyncIterator[int]:
    """A node that serves for the length of the block; gives the port. Leaving the block drains it, and closes all.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    closing = closing or Closing()
    try:
        verifier = open_verifier(settings)
        closing.add("token keys", verifier.aclose)
        warn_of_open_folder(settings.data_dir)
        metrics = Metrics()
        if settings.server.metrics_port:
            metrics_server = MetricsServer(metrics, settings.server.metrics_host, settings.server.metrics_port)
            closing.add("metrics", partial(asyncio.to_thread, metrics_server.stop))
        metrics.count_tasks(asyncio.get_running_loop())
        if settings.cluster.enabled:
            node = _clustered()(settings, verifier, metrics, closing)
        else:
            node = serving_alone(settings, verifier, metrics)
        async with node as port:
            yield port
    finally:
        await closing.close()


def _clustered() -> _Serving:
    """The way to serve as one of many. The drivers of its services take time to load, and a node that is alone needs none.

    Raises:
        StartError: they are not installed.
    """
    try:
        from chatgrpc.cluster.node import serving_clustered  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _DRIVERS:
            raise
        raise StartError(
            f"A node of a cluster needs drivers that are not installed ({error.name}). Install the server with its extra"
            " `cluster`: docs/operations.md, Installing."
        ) from error
    return serving_clustered


def tune_interpreter() -> None:
    """Fits the interpreter to a process that is one busy loop and a thread that commits; `make bench` shows what it brings."""
    # The writer thread needs the lock for microseconds between two calls of SQLite, and would wait 5 ms for it each time.
    sys.setswitchinterval(0.0005)
    # A message makes some twenty objects that die young, and the streams are many that stay: collect a little at a time. To
    # collect all takes half a second where 20,000 sessions are open, in which nobody is served. What lived long does not refer
    # to itself in circles (tests/e2e/test_garbage.py holds that), so it is done once in 25 million new objects, in case.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 1_000)


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        leave(128 + signal.SIGINT)
    stop.set()
