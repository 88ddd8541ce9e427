"""The node: wires store, owner, edge and services together, serves until told to stop, and loses nothing when it stops."""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from chatgrpc.adapters.jwt import JwtVerifier, open_verifier
from chatgrpc.adapters.memory import SoleNode
from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.config import Settings, StartError
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.limits import Limits
from chatgrpc.core.rules import not_a_member
from chatgrpc.core.sequencer import Sequencer
from chatgrpc.core.session import Timings
from chatgrpc.core.visibility import is_member
from chatgrpc.core.write import Write
from chatgrpc.edge.admission import Admissions
from chatgrpc.edge.audience import Touched
from chatgrpc.edge.connection import Connections
from chatgrpc.edge.grpc_transport import GrpcTransport
from chatgrpc.edge.interceptors import UnaryInterceptor
from chatgrpc.edge.loop import Edge, Pace
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.edge.services.chats import ChatService
from chatgrpc.edge.services.devices import DeviceService
from chatgrpc.edge.services.messages import MessageService
from chatgrpc.edge.services.nodes import NodeService
from chatgrpc.edge.services.users import UserService
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.embedded.audience import LocalAudience
from chatgrpc.embedded.owner import Owner
from chatgrpc.metrics import Metrics, MetricsServer
from chatgrpc.ports.accounts import DeviceStore, ProfileStore
from chatgrpc.ports.chat_log import ChatLog
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.node_directory import NodeDirectory
from chatgrpc.ports.store import Store
from chatgrpc.ports.tokens import TokenVerifier
from chatgrpc.v1 import (
    chat_pb2,
    chat_service_pb2_grpc,
    device_service_pb2_grpc,
    message_service_pb2_grpc,
    node_service_pb2_grpc,
    session_pb2,
    user_service_pb2_grpc,
)

_log = structlog.get_logger()

DATABASE_NAME = "chatgrpc.db"

_DRAIN_WINDOW_S = 1.0
"""Over this time devices are sent away. An embedded node has no other to send them to, so it does not make them wait."""
_CLOSE_TIMEOUT_S = 5.0
"""How long a device may take to read the last frames of its stream."""


class Node:
    """One process: an edge, and the owner of all chats. Also what the unary services see of it (`edge.backend.Backend`)."""

    def __init__(
        self,
        store: Store,
        epoch: int,
        verifier: TokenVerifier,
        transport: GrpcTransport,
        metrics: Metrics,
        limits: Limits,
        timings: Timings,
        pace: Pace,
    ) -> None:
        self._store = store
        self._limits = limits
        self._watermarks = Watermarks(store.receipts, store.cursors, limits)
        # Message ids must be unique, not secret: seeded once from the system, a generator costs a tenth of asking it each time.
        sequencer = Sequencer(epoch, limits, random.Random(secrets.randbits(256)))  # noqa: S311  see above
        self._owner = owner = Owner(sequencer, store.log, metrics, self._wake_up)

        def audience(connections: Connections, touched: Touched) -> LocalAudience:
            return LocalAudience(connections, owner, limits, touched)

        admissions = Admissions(verifier, store.devices, store.log, store.cursors, self._watermarks, limits)
        self.edge = Edge(
            transport,
            owner,
            audience,
            admissions,
            self._watermarks,
            store.log,
            limits,
            timings,
            pace,
            metrics,
            self.now_ms,
            _crash,
        )

    def _wake_up(self) -> None:
        self.edge.wake_up()

    # Backend.

    @property
    def limits(self) -> Limits:
        """See `Backend.limits`."""
        return self._limits

    @property
    def log(self) -> ChatLog:
        """See `Backend.log`."""
        return self._store.log

    @property
    def profiles(self) -> ProfileStore:
        """See `Backend.profiles`."""
        return self._store.profiles

    @property
    def devices(self) -> DeviceStore:
        """See `Backend.devices`."""
        return self._store.devices

    def now_ms(self) -> int:
        """See `Backend.now_ms`."""
        return time.time_ns() // 1_000_000

    async def submit(self, write: Write) -> chat_pb2.SendResult | chat_pb2.Error:
        """See `Backend.submit`."""
        outcome: asyncio.Future[chat_pb2.SendResult | chat_pb2.Error] = asyncio.get_running_loop().create_future()
        self._owner.submit(outcome, "", write, self.now_ms())
        self._wake_up()
        return await outcome

    async def receipts(self, chat_id: str, user_ids: list[str]) -> list[chat_pb2.Receipt]:
        """See `Backend.receipts`."""
        return [mark.receipt() for mark in await self._watermarks.of_chat(chat_id, user_ids)]

    async def mark_read(self, user_id: str, chat_id: str, seq: int) -> chat_pb2.Receipt | chat_pb2.Error:
        """See `Backend.mark_read`."""
        membership = await self._store.log.membership(user_id, chat_id)
        if membership is None or not is_member(membership.intervals):
            return not_a_member().error
        read_seq = min(seq, membership.head_seq)
        raised = self._watermarks.raise_mark(chat_id, user_id, read_seq, read_seq, self.now_ms())
        if raised is not None:
            self.edge.audience.mark_raised(raised)
        (mark,) = await self._watermarks.of_chat(chat_id, [user_id])
        return mark.receipt()

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """See `Backend.online_devices`."""
        return await self.edge.audience.online_devices(user_id)

    async def disconnect_revoked(self, user_id: str, device_id: str) -> None:
        """See `Backend.disconnect_revoked`."""
        connection = self.edge.connections.of_device(user_id, device_id)
        if connection is not None:
            self.edge.end(connection, Ended(session_pb2.DISCONNECT_CODE_DEVICE_REVOKED))


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
        _greet(settings, port)
        await stop.wait()
        print(
            "chatgrpc stops: devices are sent away and what is under way is finished. Ctrl-C again ends it at once.", flush=True
        )


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[int]:
    """A node that serves for the length of the block; gives the port. Leaving the block drains it.

    Raises:
        StartError: it cannot start, and the message says what to do.
    """
    async with contextlib.AsyncExitStack() as stack:
        verifier = open_verifier(settings)
        stack.push_async_callback(verifier.aclose)
        try:
            store = await SqliteStore.open(settings.data_dir / DATABASE_NAME)
            stack.push_async_callback(store.close)
            epoch = await store.epochs.next_epoch()
        except StoreError as error:
            raise StartError(f"The data folder {settings.data_dir} cannot be used: {error}") from error
        metrics = Metrics()
        if settings.server.metrics_port:
            metrics_server = MetricsServer(metrics, settings.server.metrics_host, settings.server.metrics_port)
            stack.callback(metrics_server.stop)
        limits = Limits()
        transport = GrpcTransport(inbox_bytes_max=limits.backlog_bytes_max, close_timeout_s=_CLOSE_TIMEOUT_S)
        node = Node(store, epoch, verifier, transport, metrics, limits, _timings(settings), _pace(settings))
        directory = SoleNode(settings.server.host, lambda: len(node.edge.connections))
        server = _server(settings, node, directory, verifier, metrics, transport)
        port = directory.port = await server.start()
        metrics.count_tasks(asyncio.get_running_loop())
        node.edge.start()
        await server.set_serving(True)
        _log.info("serving", port=port, epoch=epoch, data_dir=str(settings.data_dir))
        try:
            yield port
        finally:
            directory.draining = True
            await _drain(server, node, settings.server.drain_timeout_s)


async def _drain(server: GrpcServer, node: Node, timeout_s: float) -> None:
    """Sends devices away, finishes what is under way, ends the streams, frees the port (design §5)."""
    await server.set_serving(False)
    await node.edge.drain(int(min(_DRAIN_WINDOW_S, timeout_s) * 1000))
    await node.edge.stop(timeout_s)
    await server.stop(min(_CLOSE_TIMEOUT_S, timeout_s))
    _log.info("stopped")


def _server(
    settings: Settings,
    node: Node,
    directory: NodeDirectory,
    verifier: JwtVerifier,
    metrics: Metrics,
    transport: GrpcTransport,
) -> GrpcServer:
    def observe(method: str, code: str, seconds: float) -> None:
        metrics.unary_seconds[method, code].observe(seconds)

    options = ServerOptions(
        host=settings.server.host,
        port=settings.server.port,
        tls_cert_file=settings.server.tls_cert_file,
        tls_key_file=settings.server.tls_key_file,
        message_bytes_max=node.limits.batch_bytes_max,
    )
    server = GrpcServer(options, [UnaryInterceptor(verifier, observe)])
    server.register("chatgrpc.v1.SessionService", transport.register)
    server.register(
        "chatgrpc.v1.UserService", lambda on: user_service_pb2_grpc.add_UserServiceServicer_to_server(UserService(node), on)
    )
    server.register(
        "chatgrpc.v1.DeviceService",
        lambda on: device_service_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceService(node), on),
    )
    server.register(
        "chatgrpc.v1.ChatService", lambda on: chat_service_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(node), on)
    )
    server.register(
        "chatgrpc.v1.MessageService",
        lambda on: message_service_pb2_grpc.add_MessageServiceServicer_to_server(MessageService(node), on),
    )
    nodes = NodeService(directory, node.limits.nodes_listed_max)
    server.register("chatgrpc.v1.NodeService", lambda on: node_service_pb2_grpc.add_NodeServiceServicer_to_server(nodes, on))
    return server


def _timings(settings: Settings) -> Timings:
    return Timings(
        hello_timeout_ms=int(settings.session.hello_timeout_s * 1000),
        heartbeat_interval_ms=int(settings.session.heartbeat_interval_s * 1000),
        max_age_ms=int(settings.session.max_connection_age_s * 1000),
    )


def _pace(settings: Settings) -> Pace:
    return Pace(
        flush_interval_ms=settings.session.flush_interval_ms,
        slow_reader_timeout_ms=int(settings.session.slow_reader_timeout_s * 1000),
    )


def _tune_interpreter() -> None:
    """Fits the interpreter to a process that is one busy loop and a thread that commits; `make bench` shows what it brings."""
    # The writer thread needs the lock for microseconds between two calls of SQLite, and would wait 5 ms for it each time.
    sys.setswitchinterval(0.0005)
    # A message makes some twenty objects that die young, and the streams are many that stay: collect seldom, and not those.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _crash(defect: Exception) -> None:
    """Ends the process as a crash does: what is in memory may be half changed, the log on disk is right, and the next start
    begins from it."""
    _log.critical("node_defect", exc_info=defect)
    os._exit(os.EX_SOFTWARE)


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        sys.exit(130)
    stop.set()


def _greet(settings: Settings, port: int) -> None:
    """Says where the node is, and what to type next."""
    secured = "TLS" if settings.server.tls_cert_file else "no TLS"
    tokens = "development tokens" if settings.auth.mode == "dev" else f"tokens of {settings.token_issuer}"
    print(f"chatgrpc listens on {settings.server.host}:{port} ({secured}, {tokens}). Ctrl-C stops it.")
    if settings.auth.mode == "dev":
        command = _command()
        if settings.data_dir != Settings().data_dir:
            command = f"CHATGRPC_DATA_DIR={shlex.quote(str(settings.data_dir))} {command}"
        options = "" if port == 50_551 else f" --server {settings.server.host}:{port}"
        if settings.server.tls_cert_file:
            options += f" --tls-ca {shlex.quote(str(settings.server.tls_cert_file))}"
        print("Next, each in a terminal of its own:")
        print(f"  {command} chat --as alice --with bob{options}")
        print(f"  {command} chat --as bob --with alice{options}")
    sys.stdout.flush()


def _command() -> str:
    """How this program is called from where the person stands."""
    called = Path(sys.argv[0]).absolute()
    on_path = shutil.which("chatgrpc")
    if on_path is not None and Path(on_path).absolute() == called:
        return "chatgrpc"
    with contextlib.suppress(ValueError):
        return str(called.relative_to(Path.cwd()))
    return str(called)
