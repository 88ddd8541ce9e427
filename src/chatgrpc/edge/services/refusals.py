"""How a refused call is answered: by the `error` of an OK reply, or, for replies that have none, by a status."""

import functools
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import grpc

from chatgrpc.core.refusal import RefusedError, chat_damaged, is_retryable
from chatgrpc.edge.errors import StatusError
from chatgrpc.ports.errors import ChatDamagedError, StoreError
from chatgrpc.v1 import chat_pb2

_STORE_RETRY_AFTER_MS = 500

Service = TypeVar("Service")
Request = TypeVar("Request")
Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)
Method = Callable[[Service, Request, object], Awaitable[Reply]]


class RefusableReply(Protocol[Reply_co]):
    """The class of a reply that can say what went wrong."""

    def __call__(self, *, error: chat_pb2.Error) -> Reply_co:
        """Makes the reply that says it."""
        ...


def refused_by(
    reply: RefusableReply[Reply],
) -> Callable[[Method[Service, Request, Reply]], Method[Service, Request, Reply]]:
    """Decorates a method whose reply has an `error`: refusals and failures of the store are answered in it."""

    def decorate(method: Method[Service, Request, Reply]) -> Method[Service, Request, Reply]:
        @functools.wraps(method)
        async def answer(service: Service, request: Request, context: object) -> Reply:
            try:
                return await method(service, request, context)
            except (RefusedError, StoreError) as failed:
                return reply(error=_error_of(failed))

        return answer

    return decorate


def refused_by_status(method: Method[Service, Request, Reply]) -> Method[Service, Request, Reply]:
    """Decorates a method whose reply has no `error`: what its twin would answer in it becomes a status.

    Raises:
        StatusError: INVALID_ARGUMENT or UNAVAILABLE, with the error code's name as the reason.
    """

    @functools.wraps(method)
    async def answer(service: Service, request: Request, context: object) -> Reply:
        try:
            return await method(service, request, context)
        except (RefusedError, StoreError) as failed:
            error = _error_of(failed)
            status = grpc.StatusCode.UNAVAILABLE if is_retryable(error) else grpc.StatusCode.INVALID_ARGUMENT
            reason = chat_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")
            raise StatusError(status, reason, error.message) from failed

    return answer


def _error_of(failed: RefusedError | StoreError) -> chat_pb2.Error:
    if isinstance(failed, RefusedError):
        return failed.error
    if isinstance(failed, ChatDamagedError):
        return chat_damaged()
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_UNAVAILABLE,
        message="The store did not answer. Send the request again, unchanged.",
        retry_after_ms=_STORE_RETRY_AFTER_MS,
    )
