"""The gRPC channel to the node that a client uses: one at a time, and another when the client moves."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio

from chatgrpc.v1 import node_service_pb2, node_service_pb2_grpc

from .config import ClientConfig
from .exceptions import CertificatesError
from .nodes import Nodes
from .reachability import explain, is_loopback

LIST_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_MS = 5_000
"""For TCP, TLS and HTTP/2 together: some ten round trips of a bad mobile link, yet the next node soon has its turn."""

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),  # in spite of its name, how long one try may take
    ("grpc.max_reconnect_backoff_ms", 500),  # the client's own backoff decides; gRPC's must not delay it further
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
)


class NodeChannel:
    """Holds the channel in use; it connects when it is first called on."""

    def __init__(self, config: ClientConfig) -> None:
        """Opens a channel to one of the configured addresses.

        Raises:
            CertificatesError: the file of certificates cannot be used.
        """
        self._credentials = _credentials(config)
        self._tls = config.uses_tls
        self._calls_end_within_s = config.request_timeout_s
        self._nodes = Nodes(config.addresses)
        self._address = self._nodes.address
        self._retired: set[asyncio.Task[None]] = set()
        self._found: str | None = None  # by `look_for`
        self.channel = self._open(self._address)
        """The channel to the node in use. Look it up for each call: another one stands here after `move`."""

    def move(self) -> None:
        """Leaves the node, which failed or asked for it, for another one if one is known."""
        if self._found is not None:
            self._nodes.go_to(self._found)
            self._found = None
        else:
            self._nodes.leave()
        if self._nodes.address == self._address:
            return
        task = asyncio.create_task(_close_later(self.channel, self._calls_end_within_s))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)
        self._address = self._nodes.address
        self.channel = self._open(self._address)

    async def look_for(self, serves: Callable[[grpc.aio.Channel], Awaitable[bool]]) -> bool:
        """Asks another node, if one is known, while this one stays in use; if it `serves`, `move` leads there."""
        asked, address = self._address, self._nodes.another()
        if address is None:
            return False
        channel = self._open(address)
        try:
            found = await serves(channel)
        finally:
            await channel.close()
        if asked != self._address:
            return False  # it was left meanwhile for another reason
        if found:
            self._found = address
        else:
            self._nodes.pass_over(address)
        return found

    def explain(self, error: grpc.aio.AioRpcError) -> str:
        """Why a call on the node in use failed, for people."""
        return explain(error.details() or error.code().name, self._address, tls=self._tls)

    def live(self) -> None:
        """A session on this channel became live."""
        self._nodes.live()

    async def learn(self) -> None:
        """Asks the node which nodes there are; no answer, no harm."""
        asked, stub = self._address, node_service_pb2_grpc.NodeServiceStub(self.channel)
        try:
            reply = await stub.ListNodes(node_service_pb2.ListNodesRequest(), timeout=LIST_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return  # an older server, or one that has no time now
        if asked == self._address:
            self._nodes.listed(reply.nodes)

    async def close(self) -> None:
        """Ends every call."""
        for task in self._retired:
            task.cancel()
        await asyncio.gather(self.channel.close(), *self._retired, return_exceptions=True)

    def _open(self, address: str) -> grpc.aio.Channel:
        # A proxy of the environment cannot lead to this machine itself.
        options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(address))))
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials, options=options)


async def _close_later(channel: grpc.aio.Channel, after_s: float) -> None:
    """Closes a channel when the unary calls that were made on it have ended; each has a deadline."""
    try:
        await asyncio.sleep(after_s)
    finally:
        await channel.close()


def _credentials(config: ClientConfig) -> grpc.ChannelCredentials | None:
    if not config.uses_tls:
        return None
    roots = _certificates(config.tls_ca_file) if config.tls_ca_file is not None else None
    return grpc.ssl_channel_credentials(roots)


def _certificates(path: Path) -> bytes:
    """Reads the certificates, and sees that they are some: gRPC would only fail to connect, again and again."""
    try:
        pem = path.read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", errors="ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise CertificatesError(f"{path} holds no certificates in PEM form (-----BEGIN CERTIFICATE-----)") from error
    except OSError as error:
        raise CertificatesError(f"cannot read the certificates in {path}: {error.strerror}") from error
    return pem
