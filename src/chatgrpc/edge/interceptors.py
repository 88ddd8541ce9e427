"""Around every unary call: it is counted, admitted, authenticated, parsed, and answered with a status that explains itself.

One interceptor, because the order is the point: whatever goes wrong further in is turned into a status and counted further out.
A service sees only parsed requests of bearable size, of known users, raises what it likes, and never touches a status itself.
"""

import asyncio
import secrets
import time
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
import structlog

from chatgrpc.core.limits import Limits
from chatgrpc.edge.call_cutter import CallCutter
from chatgrpc.edge.errors import StatusError, trailers_of
from chatgrpc.edge.flood_watch import Delivered
from chatgrpc.edge.shares import Shares, address_of
from chatgrpc.edge.sizes import Sizes
from chatgrpc.edge.untaken import UntakenReplies
from chatgrpc.ports.lease_clock import wall_clock_ms
from chatgrpc.ports.tokens import Claims, TokenRejectedError, TokenUncheckedError, TokenVerifier

Observer = Callable[[str, str, float], None]
"""Takes the full method name, the name of the status code and the seconds of one finished call."""

PUBLIC_METHODS = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1alpha.ServerReflection/",
    "/chatgrpc.v1.SessionService/Connect",
)
"""Beginnings of the methods that stand apart: health and reflection are for everyone, a session has its own Hello. Those that
give one reply are treated as `TOKENLESS_METHODS`; the others may stay open."""

TOKENLESS_METHODS = frozenset({"/chatgrpc.v1.NodeService/ListNodes"})
"""Unary calls of ours that are for everyone; but for the token they are treated as all others."""

_NODE = "all"
_SESSION = "/chatgrpc.v1.SessionService/"
PASSED_ON_FOR = "x-chatgrpc-peer"
"""Metadata of calls that the native edge has passed on: whose they are."""
_REFLECTION = "/grpc.reflection."

_TOO_LONG = StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW", "The call was open for too long. Call again.")

_log = structlog.get_logger(__name__)

_claims: ContextVar[Claims] = ContextVar("claims")

_Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a string: it is generic for type checkers only

_Reply = TypeVar("_Reply")


def current_claims() -> Claims:
    """What the token of the call that is being answered says of its bearer.

    Raises:
        LookupError: outside of a call that was authenticated.
    """
    return _claims.get()


@dataclass(frozen=True, slots=True)
class UnaryLimits:
    """What unary calls may use of the node."""

    calls_max: int = 1_000
    """Calls, whose token was checked and whose request is there, that may run at the same time; one more is refused with
    RESOURCE_EXHAUSTED."""
    calls_per_user_max: int = 100
    """The same of one user, from the check of the token on, until the reply was taken."""
    calls_unchecked_per_address_max: int = 1_000
    """Calls of one address whose token is being checked or which need none (`Health.Check`). They hold nothing that others wait
    for."""
    calls_public_per_address_max: int = 100
    """Calls of `Health.Watch` and of reflection of one address, which may stay open."""
    calls_public_max: int = 1_000
    """The same of all addresses."""
    reflection_s_max: float = 30.0
    """Longest time for one call of reflection."""
    reflection_requests_max: int = 256
    """Requests of one call of reflection; a tool that asks for everything there is needs less than half of them."""
    reflection_interval_s: float = 0.002
    """Of reflection the node answers one request after the other, and none sooner than so long after the one before, however
    many calls ask: it needs no token, and a request costs far more than it costs to ask."""
    tokenless_deadline_s: float = 1.0
    """Longest time for a call without a token; it waits for nothing but its request."""
    fields_max: int = 128
    """Header fields of a call, also of a stream or an unknown one; with more the connection is cut."""
    replies_bytes_max: int = 128 * 1024 * 1024
    """Of replies that wait to be taken; past it those are cut of the user, or address, for whom the most wait."""
    reply_s_max: float = 300.0
    """Longest time that a reply waits to be taken; then its call is cut. The largest one takes as long at 2 KB/s."""
    deadline_s: float = 30.0
    """Longest time for one call, even if its client would wait longer; then it ends with DEADLINE_EXCEEDED."""


class UnaryInterceptor(grpc.aio.ServerInterceptor):
    """Stands around every unary call, and around those calls of `PUBLIC_METHODS` that stay open, but for sessions.

    - Without a valid `authorization: Bearer …` the call ends with UNAUTHENTICATED; with one, `current_claims()` says whose
      it is. A method of `TOKENLESS_METHODS` is called without looking for a token.
    - A `StatusError` becomes its status. Any other exception becomes INTERNAL with an id under which it stands in our log; its
      text never leaves the node, nor does it enter the log, since it may quote a message.
    - Every status but OK carries `google.rpc.ErrorInfo`, that of an unknown method too.
    """

    def __init__(
        self,
        tokens: TokenVerifier,
        observe: Observer,
        limits: UnaryLimits = UnaryLimits(),
        now_ms: Callable[[], int] = wall_clock_ms,
        delivered: Delivered | None = None,
        cut: Callable[[str], None] = lambda _: None,
        sizes: Sizes | None = None,
        cutter: CallCutter | None = None,
    ) -> None:
        """Is handed to one server.

        Args:
            tokens: verifies the callers' tokens.
            observe: called once for each finished call; must not raise.
            limits: what calls may use.
            now_ms: milliseconds since the Unix epoch.
            delivered: is told of each call and request.
            cut: ends the connection of a peer that abuses it.
            sizes: how long a request's fields may be; as the default limits say if it is left out.
            cutter: ends calls whose replies are not taken.
        """
        self._tokens = tokens
        self._observe = observe
        self._limits = limits
        self._now_ms = now_ms
        self._delivered = delivered or Delivered()
        self._cut = cut
        self._sizes = sizes or Sizes(Limits())
        self._running = Shares(limits.calls_max)
        self._of_user = Shares(limits.calls_per_user_max)
        self._unchecked = Shares(limits.calls_unchecked_per_address_max)
        self._tokenless = Shares(limits.calls_unchecked_per_address_max)
        self._public = Shares(limits.calls_public_per_address_max, limits.calls_public_max)
        self._reflecting = asyncio.Lock()
        self._cutter = cutter or CallCutter()
        self._untaken = UntakenReplies(
            limits.replies_bytes_max, limits.reply_s_max, lambda call: self._cutter.cut(call, call.cancel)
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[_Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wraps the handler of the called method."""
        if len(handler_call_details.invocation_metadata or ()) > self._limits.fields_max:
            return grpc.stream_stream_rpc_method_handler(_let_go(self._refuse_fields))
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is not None and handler.unary_unary is None and method.startswith(PUBLIC_METHODS):
            return handler if method.startswith(_SESSION) else self._public_call(method, handler)
        if handler is None or handler.unary_unary is None:
            return grpc.stream_stream_rpc_method_handler(_let_go(self._refuse_unknown_method))

        async def call(_: object, context: _Context) -> bytes:
            return await self._call(method, handler, context)

        # On the wire it makes no difference, and the wait for the one request is ours: grpc.aio's own has no deadline, and
        # leaves a call whose request is cut short without a status.
        return grpc.stream_unary_rpc_method_handler(_let_go(call))

    async def _call(self, method: str, handler: _Handler, context: _Context) -> bytes:
        started = time.perf_counter()
        call = self._open(context)
        error, code = None, grpc.StatusCode.CANCELLED
        try:
            reply = await self._answer(method, handler, context, call)
            code = context.code() or grpc.StatusCode.OK
            self._untaken.add(self._holder(context), len(reply), call)
            return reply
        except StatusError as known:
            error, code = known, known.code
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except Exception as unknown:
            error, code = _unexpected(method, unknown), grpc.StatusCode.INTERNAL
        finally:
            self._observe(method, code.name, time.perf_counter() - started)
        try:
            return await _abort(context, error)
        finally:
            del error  # it refers to this frame

    def _open(self, context: _Context) -> asyncio.Task[Any]:
        """Notes that a call is open; gives the task of grpc.aio that is done once the call is over."""
        peer, call = peer_of(context), asyncio.current_task()
        assert call is not None
        self._delivered.opened(peer)
        call.add_done_callback(lambda _: self._delivered.closed(peer))
        return call

    @staticmethod
    def _holder(context: _Context) -> str:
        """Whose a reply is: the user's, or, of a call without a token, the address's that it came from."""
        claims = _claims.get(None)
        return f"user {claims.user_id}" if claims is not None else address_of(peer_of(context))

    async def _answer(self, method: str, handler: _Handler, context: _Context, call: asyncio.Task[Any]) -> bytes:
        # A place that others may want is taken only once the caller is known, and what it takes from all once its request is
        # there: whoever opens calls and sends nothing takes from nobody but themself.
        is_tokenless = method in TOKENLESS_METHODS or method.startswith(PUBLIC_METHODS)
        limit_s = self._limits.tokenless_deadline_s if is_tokenless else self._limits.deadline_s
        address = address_of(peer_of(context))
        try:
            async with asyncio.timeout(limit_s) as deadline:
                if is_tokenless:
                    self._tokenless.hold(address, call)
                    return await self._run(handler, await self._request(context), context)
                with self._unchecked.place(address):
                    claims = await self._authenticate(context)
                _claims.set(claims)
                self._of_user.hold(claims.user_id, call)
                message = await self._request(context)
                with self._running.place(_NODE):
                    return await self._run(handler, message, context)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise StatusError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "TOO_SLOW",
                f"The call took more than {limit_s:g} seconds. Whether it had an effect is not known.",
            ) from None

    async def _request(self, context: _Context) -> bytes:
        # Not from the iterator of requests, which refers to itself until the garbage collector comes, and so to the call: one
        # whose reply is not taken could not be let go of.
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            code, reason = grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISSING"
            raise StatusError(code, reason, "The call ended before there was a whole request.")
        request: bytes = message
        self._delivered.message(peer_of(context), len(request))
        return request

    async def _run(self, handler: _Handler, message: bytes, context: _Context) -> bytes:
        reply = await handler.unary_unary(_parse(handler, message, self._sizes), context)  # type: ignore[misc,arg-type]
        return reply if handler.response_serializer is None else handler.response_serializer(reply)

    def _public_call(self, method: str, handler: _Handler) -> _Handler:
        """The same handler of replies that go on, in a place of the address that calls.

        It parses for itself: grpc.aio would answer UNKNOWN, and log a traceback, for what is no request. It waits for its
        request by itself too, since grpc.aio does so for ever.
        """
        seconds_max = self._limits.reflection_s_max if method.startswith(_REFLECTION) else None
        to_one: Any = handler.unary_stream
        to_many: Any = handler.stream_stream

        async def one_to_many(_: object, context: _Context) -> None:
            async with asyncio.timeout(self._limits.tokenless_deadline_s):
                request = await self._request(context)
            await to_one(_parse(handler, request, self._sizes), context)

        async def each_parsed(requests: AsyncIterable[bytes], context: _Context) -> AsyncIterator[Any]:
            count = 0
            async for request in requests:
                self._delivered.message(peer_of(context), len(request))
                count += 1
                if count > self._limits.reflection_requests_max:
                    raise StatusError(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        "TOO_MANY_REQUESTS",
                        "This call has asked enough. Call again for more.",
                    )
                async with self._reflecting:
                    await asyncio.sleep(self._limits.reflection_interval_s)
                yield _parse(handler, request, self._sizes)

        async def many_to_many(requests: AsyncIterable[bytes], context: _Context) -> None:
            async for reply in to_many(each_parsed(requests, context), context):
                await context.write(reply)

        answer: Any = many_to_many if to_one is None else one_to_many

        async def in_place(requests: AsyncIterable[bytes], context: _Context) -> None:
            call, address = self._open(context), address_of(peer_of(context))
            try:
                self._public.hold(address, call)
                async with asyncio.timeout(seconds_max):
                    await answer(requests, context)
            except TimeoutError:
                self._untaken.add(address, 0, call)  # the status waits behind what was not taken
                await _abort(context, _TOO_LONG)
            except StatusError as known:
                await _abort(context, known)

        return grpc.stream_stream_rpc_method_handler(_let_go(in_place), response_serializer=handler.response_serializer)

    async def _authenticate(self, context: _Context) -> Claims:
        token = bearer_token(context.invocation_metadata())
        try:
            if token is None:
                raise TokenRejectedError("TOKEN_MISSING", "Send `authorization: Bearer TOKEN` as metadata.")
            return await self._tokens.verify(token, self._now_ms())
        except TokenRejectedError as rejected:
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, rejected.reason, str(rejected)) from None
        except TokenUncheckedError as unchecked:
            message = f"{unchecked.explanation} Try again in a few seconds."
            raise StatusError(grpc.StatusCode.UNAVAILABLE, unchecked.reason, message) from None

    async def _refuse_fields(self, _: object, context: _Context) -> None:
        # gRPC's limit of 16 KiB does not count fields that a byte repeats (RFC 7541 §6.1): 4 KB make 16 MB of objects here,
        # 10 ms a call. No client does that, and more of the same is on its way.
        code, message = grpc.StatusCode.RESOURCE_EXHAUSTED, "The call has too many header fields."
        self._observe("unknown", code.name, 0.0)
        self._cut(peer_of(context))
        await _abort(context, StatusError(code, "TOO_MANY_FIELDS", message, {"max": str(self._limits.fields_max)}))

    async def _refuse_unknown_method(self, _: object, context: _Context) -> None:
        # A stream-stream handler, since it does not wait for a request that a peer may never send.
        code, message = grpc.StatusCode.UNIMPLEMENTED, "There is no such method. Reflection lists those there are."
        self._observe("unknown", code.name, 0.0)
        await _abort(context, StatusError(code, "METHOD_UNKNOWN", message))


def _let_go(behavior: Callable[[Any, _Context], Coroutine[Any, Any, _Reply]]) -> Callable[[Any, _Context], Awaitable[_Reply]]:
    """Has nothing of a call refer to how it was aborted.

    grpc.aio keeps the exception with the call. What that came through refers to the call: a circle, which would be left until
    all garbage is collected.
    """

    async def behave(requests: Any, context: _Context) -> _Reply:
        behaving = behavior(requests, context)
        del requests, context
        try:
            return await behaving
        except grpc.aio.AbortError as aborted:
            aborted.__traceback__ = aborted.__context__ = None
            raise

    return behave


def peer_of(context: _Context) -> str:
    """Network address of a call's peer, as gRPC writes it (`ipv4:127.0.0.1:50000`).

    Calls that the native edge has passed on come over a Unix socket, and say for whom; what a peer says of itself under that
    name the edge drops.
    """
    peer: str = context.peer()
    if peer.startswith("unix:"):
        return next((str(value) for key, value in context.invocation_metadata() or () if key == PASSED_ON_FOR), peer)
    return peer


def bearer_token(metadata: Any) -> str | None:
    """The token of the `authorization` metadata (RFC 6750 §2.1), if there is one.

    Values of several such keys are one with commas between (RFC 9110 §5.3), and so no token: of two, nobody could say whose
    the call is.

    Args:
        metadata: pairs of key and value, as `ServicerContext.invocation_metadata()` gives them.
    """
    value = ", ".join(value for key, value in metadata or () if key == "authorization" and isinstance(value, str))
    if value[:7].lower() == "bearer ":
        return value[7:].strip() or None
    return None


def _parse(handler: _Handler, request: bytes, sizes: Sizes) -> Any:
    if handler.request_deserializer is None:
        return request
    try:
        message = handler.request_deserializer(request)
    except Exception:
        raise StatusError(
            grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED", "The request is not the message that the method takes."
        ) from None
    sizes.check_request(message)
    return message


def _unexpected(method: str, error: Exception) -> StatusError:
    error_id = secrets.token_hex(8)
    _log.error(
        "call_failed",
        method=method,
        error_id=error_id,
        error_type=type(error).__qualname__,
        frames=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)],
    )
    return StatusError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"Something went wrong in the server. Its log tells more under {error_id}.",
        {"errorId": error_id},
    )


async def _abort(context: _Context, error: StatusError) -> bytes:
    """Ends the call with the error's status; raises what grpc.aio wants to see raised then."""
    await context.abort(error.code, error.message, trailers_of(error.code, error.reason, error.message, error.metadata))
