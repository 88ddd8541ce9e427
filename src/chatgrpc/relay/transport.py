"""gRPC as links use it: the node's own port, and channels to the ports of others, with mutual TLS if there are certificates."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from chatgrpc.addresses import join_address
from chatgrpc.grpc_ports import check_address, is_worth_a_line, stop_server
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.proof import describe_proof
from chatgrpc.start_error import StartError

SERVICE: Final = relay_pb2.DESCRIPTOR.services_by_name["RelayService"].full_name
MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Longest batch that is received. One message may make it longer than `outbox.BATCH_BYTES`: a very large group's audience."""
_WINDOW: Final = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024 * 1024))
"""What a sender may have under way that was not read yet: fixed, where gRPC would measure and let it grow."""

LinkServed = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[None]]
DescribeServed = Callable[[relay_pb2.DescribeRequest, Any], Awaitable[relay_pb2.DescribeResponse]]


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS: each side shows a certificate that the cluster's authority signed; the one dialled must name the address."""

    ca_pem: bytes
    """Whom to trust."""
    cert_pem: bytes
    """What to show."""
    key_pem: bytes

    def __repr__(self) -> str:
        """Without what is secret."""
        return "Tls()"


class Port:
    """The server of a node's links; it belongs to the event loop that is running."""

    def __init__(self, link: LinkServed, describe: DescribeServed) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(is_worth_a_line)
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_concurrent_streams", 16),
                ("grpc.server_handshake_timeout_ms", 5_000),
                # Finds connections that nobody ends: a node whose machine is gone, while no link is up.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                *_WINDOW,
            ]
        )
        handlers = {
            "Link": grpc.stream_stream_rpc_method_handler(link),
            "Describe": grpc.unary_unary_rpc_method_handler(
                describe, relay_pb2.DescribeRequest.FromString, relay_pb2.DescribeResponse.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def listen(self, host: str, port: int, tls: Tls | None) -> int:
        """Begins to serve; returns the port, which was chosen if `port` is 0.

        Raises:
            StartError: the port cannot be had, or the certificate and its key cannot be used.
        """
        check_address(host, port)
        address = join_address(host, port)
        try:
            if tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.key_pem, tls.cert_pem)], root_certificates=tls.ca_pem, require_client_auth=True
                )
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            hint = (
                "choose another port" if tls is None else "are the files between nodes a TLS certificate and its key, as PEM?"
            )
            raise StartError(f"Cannot listen on {address} for other nodes: {hint}") from error
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Ends the calls that are left, and frees the port."""
        await stop_server(self._server, None)


def connect(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """A channel with a connection of its own, made when it is first used."""
    options = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        *_WINDOW,
    )
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.cert_pem), options)


def open_link(channel: grpc.aio.Channel) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    """Opens a link's stream."""
    return channel.stream_stream(f"/{SERVICE}/Link")()


class NodeUnreachableError(Exception):
    """A node did not answer; says why."""


async def describe_node(
    address: str, tls: Tls | None, timeout_s: float, secret: bytes | None = None
) -> relay_pb2.DescribeResponse:
    """Asks a node how it is.

    Args:
        address: its relay address, `host:port`.
        tls: what to show, if nodes have TLS.
        timeout_s: how long to wait.
        secret: the cluster's, if nodes have no TLS; without it the node names no chats.

    Raises:
        NodeUnreachableError: it did not answer.
    """
    async with connect(address, tls) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/Describe", relay_pb2.DescribeRequest.SerializeToString, relay_pb2.DescribeResponse.FromString
        )
        try:
            return await ask(relay_pb2.DescribeRequest(proof=describe_proof(secret) if secret else b""), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise NodeUnreachableError(f"{error.details()} ({error.code().name})") from error
