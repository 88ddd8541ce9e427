"""Keepalives of a lease, sent from a thread: calls that block, over channels of their own.

A client of its own, since that of `client` lives on the event loop, which may be busy just when a lease must be renewed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from chatgrpc.adapters.etcd.client import CHANNEL_OPTIONS, EtcdError, EtcdSettings, channel_credentials
from chatgrpc.adapters.etcd.wire_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
)


class EtcdRenewals:
    """One thread's way to etcd. Only `stop` may be called by another."""

    def __init__(self, settings: EtcdSettings) -> None:
        """Connects nothing yet."""
        self._settings = settings
        self._current = 0
        self._token = ""
        self._channel: grpc.Channel | None = None
        self._under_way: Any = None
        self._stopped = False

    def renew(self, lease_id: int, timeout_s: float) -> int:
        """Asks once; returns for how many seconds the lease lives from then, 0 if it is over.

        If this member does not answer, the next try asks another one.

        Each keepalive is a call of its own, so that no answer is taken for that to an earlier one.

        Raises:
            EtcdError: nobody knows.
        """
        try:
            with _mapped_errors():
                if self._settings.username and not self._token:
                    self._token = self._authenticate(timeout_s)
                return self._ask(lease_id, timeout_s)
        except EtcdError:
            self._token = ""  # a stream does not say that this is why
            self.close()
            self._current = (self._current + 1) % len(self._settings.endpoints)
            raise

    def stop(self) -> None:
        """Ends the call that is under way, and lets none begin."""
        self._stopped = True
        under_way = self._under_way  # read once: the thread may forget it meanwhile
        if under_way is not None:
            under_way.cancel()

    def close(self) -> None:
        """Closes the connection; the next renewal makes another one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _ask(self, lease_id: int, timeout_s: float) -> int:
        ask = self._connected().stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=LeaseKeepAliveResponse.FromString,
        )
        metadata = (("hasleader", "true"), *((("token", self._token),) if self._token else ()))
        answers = ask(iter([LeaseKeepAliveRequest(lease_id=lease_id)]), timeout=timeout_s, metadata=metadata)
        self._under_way = answers
        try:
            if self._stopped:
                raise EtcdError("the lease is given up")
            answer = next(answers, None)
        finally:
            self._under_way = None
            answers.cancel()
        if answer is None:
            raise EtcdError("etcd ended the stream without an answer")
        ttl_s: int = answer.ttl_s
        return ttl_s

    def _authenticate(self, timeout_s: float) -> str:
        ask: Callable[..., AuthenticateResponse] = self._connected().unary_unary(
            "/etcdserverpb.Auth/Authenticate",
            request_serializer=AuthenticateRequest.SerializeToString,
            response_deserializer=AuthenticateResponse.FromString,
        )
        request = AuthenticateRequest(name=self._settings.username, password=self._settings.password)
        return ask(request, timeout=timeout_s).token

    def _connected(self) -> grpc.Channel:
        if self._channel is None:
            address = self._settings.endpoints[self._current]
            credentials = channel_credentials(self._settings)
            if credentials is None:
                self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
            else:
                self._channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        return self._channel


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise EtcdError(f"etcd: {error}") from error
    except ValueError as error:
        raise EtcdError(f"the connection to etcd was closed: {error}") from error
