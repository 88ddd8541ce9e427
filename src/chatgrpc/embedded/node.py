"""The node that is alone: wires SQLite, the owner of all chats and the edge together, and loses nothing when it stops."""

import contextlib
import random
import secrets
from collections.abc import AsyncIterator

import structlog

from chatgrpc import compiled
from chatgrpc.adapters.memory import SoleNode
from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.config import Settings
from chatgrpc.core.sequencer import Sequencer
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.connection import Connections
from chatgrpc.edge.look_up import LookUps
from chatgrpc.edge.node import CLOSE_TIMEOUT_S, Node, Stores, crash, limits_of
from chatgrpc.edge.server import GrpcServer
from chatgrpc.embedded.audience import LocalAudience
from chatgrpc.embedded.ordering import LocalOrdering
from chatgrpc.metrics import Metrics
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.tokens import TokenVerifier
from chatgrpc.start_error import StartError

_log = structlog.get_logger()

DATABASE_NAME = "chatgrpc.db"

_DRAIN_WINDOW_S = 1.0
"""Over this time devices are sent away. There is no other node to send them to, so they are not made to wait."""


@contextlib.asynccontextmanager
async def serving_alone(settings: Settings, verifier: TokenVerifier, metrics: Metrics) -> AsyncIterator[int]:
    """A node that serves for the length of the block; gives the port. Leaving the block drains it.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = await SqliteStore.open(settings.data_dir / DATABASE_NAME)
            stack.push_async_callback(store.close)
            epoch = await store.epochs.next_epoch()
        except StoreError as error:
            raise StartError(f"The data folder {settings.data_dir} cannot be used: {error}") from error
        limits = limits_of(settings)
        # Message ids must be unique, not secret: seeded once from the system, a generator costs a tenth of asking it each time.
        sequencer = Sequencer(epoch, limits, random.Random(secrets.randbits(256)))  # noqa: S311  see above

        def wake_up() -> None:
            node.edge.wake_up()

        book = DamageBook(metrics)
        look_ups = LookUps(store.log, store.receipts, limits.groups_by_others_max)
        ordering = LocalOrdering(sequencer, store.log, look_ups, book, metrics, wake_up, crash)
        connections = Connections()
        audience = LocalAudience(connections, ordering, limits)
        stores = Stores(store.log, store.receipts, store.cursors, store.profiles, store.devices)
        node = Node(settings, stores, ordering, connections, audience, verifier, book, metrics, limits)
        directory = SoleNode(settings.server.host, lambda: len(node.edge.connections))
        server = node.server(directory)
        port = directory.port = await server.start()
        node.edge.start()
        server.set_serving(True)
        data_dir = str(settings.data_dir)
        _log.info("serving", port=port, edge=node.edge_in_use, compiled=compiled.runs(), epoch=epoch, data_dir=data_dir)
        try:
            yield port
        finally:
            directory.draining = True
            await _drain(server, node, settings.server.drain_timeout_s)


async def _drain(server: GrpcServer, node: Node, timeout_s: float) -> None:
    """Sends devices away, finishes what is under way, ends the streams, frees the port (design §5)."""
    server.set_serving(False)
    await node.edge.drain(int(min(_DRAIN_WINDOW_S, timeout_s) * 1000))
    await node.edge.stop(timeout_s)
    await server.stop(min(CLOSE_TIMEOUT_S, timeout_s))
    _log.info("stopped")
