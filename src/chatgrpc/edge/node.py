"""One process as its streams and its unary services see it, whoever orders its chats."""

import asyncio
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from chatgrpc import background
from chatgrpc.config import Settings
from chatgrpc.core.backoff import Backoff
from chatgrpc.core.disconnect import Ended
from chatgrpc.core.door import says_who_may
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.core.refusal import outcome_unknown
from chatgrpc.core.rules import not_a_member
from chatgrpc.core.session import Timings
from chatgrpc.core.visibility import is_member
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.admission import Admissions
from chatgrpc.edge.audience import Audience
from chatgrpc.edge.call_cutter import CallCutter
from chatgrpc.edge.checked_log import CheckedLog
from chatgrpc.edge.connection import Connections
from chatgrpc.edge.flood_watch import Delivered, FloodLimits, FloodWatch
from chatgrpc.edge.grpc_transport import GrpcTransport
from chatgrpc.edge.interceptors import UnaryInterceptor, UnaryLimits
from chatgrpc.edge.loop import Edge
from chatgrpc.edge.native_transport import NativeTransport, is_installed
from chatgrpc.edge.ordering import Ordering
from chatgrpc.edge.revocations import Revocations, UnrevokedTokens
from chatgrpc.edge.server import GrpcServer, ServerOptions
from chatgrpc.edge.services.chats import ChatService
from chatgrpc.edge.services.devices import DeviceService
from chatgrpc.edge.services.messages import MessageService
from chatgrpc.edge.services.nodes import NodeService
from chatgrpc.edge.services.users import UserService
from chatgrpc.edge.sizes import Sizes
from chatgrpc.edge.watermarks import Watermarks
from chatgrpc.metrics import Metrics
from chatgrpc.ports.accounts import DeviceStore, ProfileStore
from chatgrpc.ports.chat_log import ChatReader
from chatgrpc.ports.cursors import CursorStore
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.lease_clock import now, wall_clock_ms
from chatgrpc.ports.node_directory import NodeDirectory
from chatgrpc.ports.receipts import ReceiptStore
from chatgrpc.ports.tokens import Claims, TokenVerifier
from chatgrpc.start_error import StartError
from chatgrpc.trouble import Trouble
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

_OUTCOME_UNKNOWN = frozenset(
    {chat_pb2.ERROR_CODE_UNAVAILABLE, chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD, chat_pb2.ERROR_CODE_CHAT_DAMAGED}
)
"""After these nobody knows what became of a write without a key: an earlier try of it may stand too far below the head, and it
may have been under way when its chat was found damaged."""
_HEED_AGAIN_FIRST_S = 0.1
_HEED_AGAIN_MAX_S = 2.0
CLOSE_TIMEOUT_S = 5.0
"""How long a device may take to read the last frames of its stream."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What a node reads and writes besides what the ordering does."""

    log: ChatReader
    receipts: ReceiptStore
    cursors: CursorStore
    profiles: ProfileStore
    devices: DeviceStore


class Node:
    """One process: an edge and what stands behind it. Also what the unary services see of it (`edge.backend.Backend`)."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        ordering: Ordering,
        connections: Connections,
        audience: Audience,
        verifier: TokenVerifier,
        book: DamageBook,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._settings = settings
        self._stores = stores = replace(stores, log=CheckedLog(stores.log, book))
        self._ordering = ordering
        self._verifier = verifier
        self._metrics = metrics
        self._limits = limits
        self._revocations = Revocations(stores.devices)
        self._revocation_unread = Trouble("revocation_unread")
        self._unheeded: set[str] = set()
        """Users whose streams here may have come with what was taken away since."""
        self._heeding: asyncio.Task[None] | None = None
        self._watermarks = Watermarks(stores.receipts, stores.cursors, limits, self._marks_saved, self._mark_raised, now)
        self._delivered = Delivered()
        self._cutter = CallCutter()
        self._native, self._grpc = self._transports()
        transport = self._native or self._grpc
        admissions = Admissions(
            verifier, stores.devices, self._revocations, stores.log, stores.cursors, self._watermarks, limits
        )
        self.edge = Edge(
            transport,
            ordering,
            connections,
            audience,
            admissions,
            self._watermarks,
            stores.log,
            limits,
            _timings(settings),
            metrics,
            book,
            now,
            crash,
            streams_max=settings.limits.streams_max,
            slow_reader_timeout_ms=int(settings.session.slow_reader_timeout_s * 1000),
        )

    @property
    def edge_in_use(self) -> Literal["grpcio", "native"]:
        """What serves the devices' streams, where `server.edge` leaves the choice."""
        return "grpcio" if self._native is None else "native"

    def _transports(self) -> tuple[NativeTransport | None, GrpcTransport]:
        limits, shares = self._limits, self._settings.limits
        over_grpcio = GrpcTransport(
            inbox_bytes_max=limits.backlog_bytes_max,
            close_timeout_s=CLOSE_TIMEOUT_S,
            delivered=self._delivered,
            silent_per_address_max=shares.silent_streams_per_address,
            cutter=self._cutter,
        )
        wanted = self._settings.server.edge
        if wanted == "grpcio" or (wanted == "auto" and not is_installed()):
            return None, over_grpcio
        if not is_installed():
            raise StartError('The native edge is not installed. Install chatgrpc-edge, or set server.edge = "grpcio".')
        native = NativeTransport(
            inbox_bytes_max=limits.backlog_bytes_max,
            message_bytes_max=limits.batch_bytes_max,
            close_timeout_s=CLOSE_TIMEOUT_S,
            silent_per_address_max=shares.silent_streams_per_address,
            idle_max_s=shares.connection_idle_s,
            idle_per_address_max=shares.idle_connections_per_address,
        )
        return native, over_grpcio

    def server(self, directory: NodeDirectory, *, reuse_port: bool = False) -> GrpcServer:
        """Makes the server of the public port, with all services."""

        def observe(method: str, code: str, seconds: float) -> None:
            self._metrics.unary_seconds[method, code].observe(seconds)

        server_settings, shares = self._settings.server, self._settings.limits
        options = ServerOptions(
            host=server_settings.host,
            port=server_settings.port,
            tls_cert_file=server_settings.tls_cert_file,
            tls_key_file=server_settings.tls_key_file,
            reuse_port=reuse_port,
            message_bytes_max=self._limits.batch_bytes_max,
            connection_idle_max_s=shares.connection_idle_s,
        )
        flood_limits = FloodLimits(idle_per_address_max=shares.idle_connections_per_address)
        watch = FloodWatch(self._delivered, flood_limits, self._metrics.connections_cut.inc)
        tokens = UnrevokedTokens(self._verifier, self._revocations)
        calls = UnaryInterceptor(
            tokens,
            observe,
            UnaryLimits(
                calls_per_user_max=shares.calls_per_user,
                calls_unchecked_per_address_max=shares.unchecked_calls_per_address,
                calls_public_per_address_max=shares.health_calls_per_address,
            ),
            delivered=self._delivered,
            cut=watch.cut,
            sizes=Sizes(self._limits),
            cutter=self._cutter,
        )
        server = GrpcServer(options, [calls], watch, self._native)
        # With the native edge no stream gets there; reflection and health know the service all the same.
        server.register("chatgrpc.v1.SessionService", self._grpc.register)
        server.register(
            "chatgrpc.v1.UserService", lambda on: user_service_pb2_grpc.add_UserServiceServicer_to_server(UserService(self), on)
        )
        server.register(
            "chatgrpc.v1.DeviceService",
            lambda on: device_service_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceService(self), on),
        )
        server.register(
            "chatgrpc.v1.ChatService", lambda on: chat_service_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(self), on)
        )
        server.register(
            "chatgrpc.v1.MessageService",
            lambda on: message_service_pb2_grpc.add_MessageServiceServicer_to_server(MessageService(self), on),
        )
        nodes = NodeService(directory, self._limits.nodes_listed_max)
        server.register(
            "chatgrpc.v1.NodeService", lambda on: node_service_pb2_grpc.add_NodeServiceServicer_to_server(nodes, on)
        )
        return server

    def _mark_raised(self, raised: Raised) -> None:
        self.edge.raised.add(raised)

    def _marks_saved(self, marks: Sequence[Mark]) -> None:
        self.edge.raised.tell_of(marks)
        self.edge.audience.marks_saved(marks)

    # Backend.

    @property
    def limits(self) -> Limits:
        """See `Backend.limits`."""
        return self._limits

    @property
    def log(self) -> ChatReader:
        """See `Backend.log`."""
        return self._stores.log

    @property
    def profiles(self) -> ProfileStore:
        """See `Backend.profiles`."""
        return self._stores.profiles

    @property
    def devices(self) -> DeviceStore:
        """See `Backend.devices`."""
        return self._stores.devices

    def now_ms(self) -> int:
        """See `Backend.now_ms`."""
        return wall_clock_ms()

    async def submit(self, write: Write) -> chat_pb2.SendResult | chat_pb2.Error:
        """See `Backend.submit`."""
        if write.seen_seq is None and not await self._may_ask_for_head(write):
            return not_a_member().error
        outcome: asyncio.Future[chat_pb2.SendResult | chat_pb2.Error] = asyncio.get_running_loop().create_future()
        session_id = f"call-{secrets.token_hex(8)}"
        self._ordering.submit(outcome, session_id, write, now())
        self.edge.wake_up()
        try:
            answer = await outcome
        finally:
            self._ordering.session_closed(session_id)
        if write.seen_seq is None and isinstance(answer, chat_pb2.Error) and answer.code in _OUTCOME_UNKNOWN:
            return outcome_unknown(answer)
        if write.seen_seq is None and isinstance(answer, chat_pb2.SendResult):
            answer.duplicate = False  # what was tried twice we tried, not the caller
        return answer

    async def _may_ask_for_head(self, write: Write) -> bool:
        return says_who_may(write) or await self._stores.log.has_been_member(write.sender_user_id, write.chat_id)

    async def receipts(self, chat_id: str, user_ids: list[str]) -> list[chat_pb2.Receipt]:
        """See `Backend.receipts`."""
        return [mark.receipt() for mark in await self._watermarks.of_chat(chat_id, user_ids)]

    async def mark_read(self, user_id: str, chat_id: str, seq: int) -> chat_pb2.Receipt | chat_pb2.Error:
        """See `Backend.mark_read`."""
        membership = await self._stores.log.membership(user_id, chat_id)
        if membership is None or not is_member(membership.intervals):
            return not_a_member().error
        read_seq = min(seq, membership.head_seq)
        raised = self._watermarks.raise_mark(chat_id, user_id, read_seq, read_seq, now())
        if raised is not None:
            self._mark_raised(raised)
        (mark,) = await self._watermarks.of_chat(chat_id, [user_id])
        return mark.receipt()

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """See `Backend.online_devices`."""
        return await self.edge.audience.online_devices(user_id)

    def claims_of(self, user_id: str) -> list[Claims]:
        """See `Backend.claims_of`."""
        connections = self.edge.connections.of_user(user_id)
        return [connection.claims for connection in connections if connection.claims is not None]

    async def disconnect_revoked(self, user_id: str, device_id: str) -> None:
        """See `Backend.disconnect_revoked`."""
        code = session_pb2.DISCONNECT_CODE_DEVICE_REVOKED
        self.edge.end_device(user_id, device_id, Ended(code))
        await self.edge.audience.end_elsewhere(user_id, device_id, code)
        await self.heed_revocation(user_id)
        await self._watermarks.forget_device(user_id, device_id)

    async def end_revoked(self, user_id: str) -> None:
        """Reads what was taken away from the user, if anything, and ends the streams here that it concerns.

        Raises:
            StoreError: it cannot be read.
        """
        self.edge.end_revoked(user_id, await self._revocations.now(user_id))

    async def heed_revocation(self, user_id: str) -> bool:
        """Something was taken away from the user: ends the streams here that it concerns.

        False if what that is cannot be read just now. Then it is tried again for as long as the user has streams here.
        """
        if await self._try_to_heed(user_id):
            return True
        self._unheeded.add(user_id)
        if self._heeding is None or self._heeding.done():
            self._heeding = background.start(self._heed_later(), crash)
        return False

    async def _try_to_heed(self, user_id: str) -> bool:
        try:
            await self.end_revoked(user_id)
        except StoreError as error:
            self._revocation_unread.failed(error)
            return False
        self._revocation_unread.worked()
        return True

    async def _heed_later(self) -> None:
        backoff = Backoff(_HEED_AGAIN_FIRST_S, _HEED_AGAIN_MAX_S)
        while self._unheeded:
            await asyncio.sleep(backoff.next_s())
            for user_id in list(self._unheeded):
                self._unheeded.discard(user_id)  # first: more may be taken away while it is read
                has_streams = any(self.edge.connections.of_user(user_id))
                if has_streams and not await self._try_to_heed(user_id):
                    self._unheeded.add(user_id)


def crash(defect: BaseException) -> None:
    """Ends the process as a crash does: what is in memory may be half changed, the log in the store is right, and whoever
    orders next begins from it."""
    _log.critical("node_defect", exc_info=defect)
    os._exit(os.EX_SOFTWARE)


def limits_of(settings: Settings) -> Limits:
    """The limits of a node: those that an operator chooses, and all others as they are."""
    rates = settings.rates
    return Limits(
        additions_rate=_rate(rates.additions_burst, rates.additions_interval_s),
        groups_rate=_rate(rates.groups_burst, rates.groups_interval_s),
        joins_rate=_rate(rates.joins_burst, rates.joins_interval_s),
        direct_chats_rate=_rate(rates.first_messages_burst, rates.first_messages_interval_s),
        bots=rates.bot_user_ids,
        bots_factor=rates.bots_factor,
    )


def _rate(burst: int, interval_s: float) -> Rate:
    return Rate(burst, max(1, round(interval_s * 1000)))


def _timings(settings: Settings) -> Timings:
    return Timings(
        hello_timeout_ms=int(settings.session.hello_timeout_s * 1000),
        heartbeat_interval_ms=int(settings.session.heartbeat_interval_s * 1000),
        ack_delay_ms=settings.session.ack_delay_ms,
        max_age_ms=int(settings.session.max_connection_age_s * 1000),
        token_leeway_ms=int(settings.auth.token_leeway_s * 1000),
    )
