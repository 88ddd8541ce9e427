"""A client of etcd's v3 API: several endpoints, TLS, a password, and calls that end in bounded time.

A call goes to the endpoint that answered last, and on to the next one when it fails, until it is answered or its time is over.
So a call may be done more than once, and a try that was given up may be done later: whoever calls must ask for things that this
does not harm, which is what conditions on revisions are for.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from chatgrpc.adapters.etcd.wire_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
    WatchRequest,
    WatchResponse,
)
from chatgrpc.grpc_calls import end_call

CALL_TIMEOUT_S: Final = 6.0
"""Outlasts the election of a new leader."""
TRY_TIMEOUT_S: Final = 1.5
CHANNEL_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    # A member that comes back is found within a second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)
_PAUSE_S: Final = 0.1
"""Between one round of the endpoints and the next."""

_Request = TypeVar("_Request", bound=Message)
_Answer = TypeVar("_Answer", bound=Message)
_Stream = grpc.aio.StreamStreamCall[Any, Any]

_FINAL_CODES = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}
    | {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNIMPLEMENTED}
    | {grpc.StatusCode.UNAUTHENTICATED}
)
"""Asked again, or of another member, the answer would be the same. All else is worth a try."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """How to reach etcd."""

    endpoints: Sequence[str]
    """`host:port` of its members, or of some of them."""
    prefix: str = "chatgrpc/"
    """What the keys of one cluster of nodes begin with."""
    lease_ttl_s: int = 5
    """How long a node that crashed keeps its shards."""
    username: str = ""
    """Empty = no password is asked for."""
    password: str = ""
    ca_pem: bytes | None = None
    """Certificates to trust; given = TLS."""
    cert_pem: bytes | None = None
    """Certificate to show, with `key_pem`, if etcd wants one (mutual TLS)."""
    key_pem: bytes | None = None

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"EtcdSettings(endpoints={list(self.endpoints)}, prefix={self.prefix!r})"


class EtcdError(Exception):
    """etcd did not do what it was asked, or nobody knows whether it did."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class EtcdClient:
    """The connections of one node to etcd; each endpoint is connected when it is first needed."""

    def __init__(self, settings: EtcdSettings) -> None:
        assert settings.endpoints, "etcd has at least one endpoint"
        self.settings = settings
        self._endpoints = [_Endpoint(address, settings) for address in settings.endpoints]
        self._current = 0

    async def range(self, key: bytes, range_end: bytes = b"") -> RangeResponse:
        """Reads keys as they stand now (linearizable)."""
        return await self._call("KV/Range", RangeRequest(key=key, range_end=range_end), RangeResponse)

    async def transact(self, request: TxnRequest) -> TxnResponse:
        """Runs a transaction, perhaps more than once."""
        return await self._call("KV/Txn", request, TxnResponse)

    async def grant(self, ttl_s: int) -> LeaseGrantResponse:
        """Makes a lease; one that nobody heard of ends by itself."""
        return await self._call("Lease/LeaseGrant", LeaseGrantRequest(ttl_s=ttl_s), LeaseGrantResponse)

    async def revoke(self, lease_id: int) -> None:
        """Ends a lease and its keys; it may have ended already."""
        try:
            await self._call("Lease/LeaseRevoke", LeaseRevokeRequest(lease_id=lease_id), LeaseRevokeResponse)
        except EtcdError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    def watch(self) -> "EtcdStream[WatchRequest, WatchResponse]":
        """A stream of changes."""
        return EtcdStream(self, "Watch/Watch", WatchResponse.FromString)

    async def close(self) -> None:
        """Closes the connections."""
        for endpoint in self._endpoints:
            await endpoint.close()

    @property
    def endpoint(self) -> "_Endpoint":
        """The one that is asked next."""
        return self._endpoints[self._current]

    def move_on(self, failed: "_Endpoint") -> None:
        """Asks the next endpoint from now on, if nobody else moved on meanwhile."""
        if self.endpoint is failed:
            self._current = (self._current + 1) % len(self._endpoints)

    async def _call(self, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        """Asks until there is an answer.

        Raises:
            EtcdError: there was none, or it was an error that asking again does not mend.
        """
        give_up_at_s = time.monotonic() + CALL_TIMEOUT_S
        for attempt in itertools.count(1):
            endpoint = self.endpoint
            try:
                return await endpoint.call(method, request, answer, min(TRY_TIMEOUT_S, give_up_at_s - time.monotonic()))
            except EtcdError as error:
                if error.code in _FINAL_CODES:
                    raise
                self.move_on(endpoint)
                if attempt % len(self._endpoints) == 0:
                    await asyncio.sleep(_PAUSE_S)
                if time.monotonic() >= give_up_at_s:
                    raise
        raise AssertionError  # the count has no end


class EtcdStream(Generic[_Request, _Answer]):
    """A stream to one endpoint; after an error it is of no more use."""

    def __init__(self, client: EtcdClient, method: str, deserializer: Callable[[bytes], _Answer]) -> None:
        self._client = client
        self._method = method
        self._deserializer = deserializer
        self._endpoint: _Endpoint | None = None
        self._stream: _Stream | None = None

    async def send(self, request: _Request) -> None:
        """Sends; connects first if it is the first one.

        Raises:
            EtcdError: the stream is broken.
        """
        async with self._mapped_errors():
            if self._stream is None:
                self._endpoint = self._client.endpoint
                self._stream = await self._endpoint.open(self._method, self._deserializer)
            await self._stream.write(request)

    async def receive(self) -> _Answer:
        """The next answer.

        Raises:
            EtcdError: the stream is broken.
        """
        assert self._stream is not None, "nothing was sent yet"
        async with self._mapped_errors():
            answer: Any = await self._stream.read()
            if answer is grpc.aio.EOF:
                raise EtcdError(f"etcd ended the stream: {await self._stream.details()}", await self._stream.code())
            received: _Answer = answer
            return received

    def drop(self, failed: bool) -> None:
        """Ends the stream; if it failed, the next one goes to another endpoint."""
        if self._stream is not None:
            end_call(self._stream)
        if failed and self._endpoint is not None:
            self._client.move_on(self._endpoint)

    @asynccontextmanager
    async def _mapped_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _described(error) from error
        except asyncio.InvalidStateError as error:
            raise EtcdError("the stream to etcd is closed") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EtcdError("the stream to etcd was closed") from None


class _Endpoint:
    """One member, as far as this node is concerned."""

    def __init__(self, address: str, settings: EtcdSettings) -> None:
        self.address = address
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None
        self._token = ""

    async def call(self, method: str, request: Message, answer: type[_Answer], timeout_s: float) -> _Answer:
        """One try; a token that has become invalid is renewed first.

        Raises:
            EtcdError: any failure.
        """
        try:
            return await self._once(method, request, answer, timeout_s)
        except EtcdError as error:
            if not self._token_refused(error):
                raise
        return await self._once(method, request, answer, timeout_s)

    async def open(self, method: str, deserializer: Callable[[bytes], Message]) -> _Stream:
        """Opens a stream; it ends if the member loses sight of a leader."""
        # A range of one key: a stream does not say that its token has become invalid, a call does.
        if self._settings.username:
            await self.call("KV/Range", RangeRequest(key=self._settings.prefix.encode()), RangeResponse, TRY_TIMEOUT_S)
        stream = self._connected().stream_stream(
            f"/etcdserverpb.{method}",
            request_serializer=_serialized,
            response_deserializer=deserializer,
        )
        return stream(metadata=(*self._credentials(), ("hasleader", "true")))

    async def close(self) -> None:
        """Closes the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def _once(self, method: str, request: Message, answer: type[_Answer], timeout_s: float) -> _Answer:
        if self._settings.username and not self._token:
            credentials = AuthenticateRequest(name=self._settings.username, password=self._settings.password)
            granted = await self._ask("Auth/Authenticate", credentials, AuthenticateResponse, timeout_s)
            self._token = granted.token
        return await self._ask(method, request, answer, timeout_s)

    async def _ask(self, method: str, request: Message, answer: type[_Answer], timeout_s: float) -> _Answer:
        ask = self._connected().unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=_serialized,
            response_deserializer=answer.FromString,
        )
        try:
            return await ask(request, timeout=max(timeout_s, 0.001), metadata=self._credentials())
        except grpc.aio.AioRpcError as error:
            raise _described(error) from error

    def _token_refused(self, error: EtcdError) -> bool:
        """Forgets a token that a member no longer knows: after its restart, or since it was idle for minutes."""
        if not self._token or error.code is not grpc.StatusCode.UNAUTHENTICATED:
            return False
        self._token = ""
        return True

    def _credentials(self) -> tuple[tuple[str, str], ...]:
        return (("token", self._token),) if self._token else ()

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            credentials = channel_credentials(self._settings)
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(self.address, credentials, CHANNEL_OPTIONS)
        return self._channel


def channel_credentials(settings: EtcdSettings) -> grpc.ChannelCredentials | None:
    """TLS with a member; None = without."""
    if settings.ca_pem is None:
        return None
    return grpc.ssl_channel_credentials(settings.ca_pem, settings.key_pem, settings.cert_pem)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _described(error: grpc.aio.AioRpcError) -> EtcdError:
    return EtcdError(f"etcd: {error.details()} ({error.code().name})", error.code())
