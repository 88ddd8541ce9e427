"""How refusals and failures of the store are answered."""

import grpc
import pytest

from chatgrpc.core.refusal import RefusedError
from chatgrpc.edge.errors import StatusError
from chatgrpc.edge.services.refusals import refused_by, refused_by_status
from chatgrpc.ports.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from chatgrpc.v1 import chat_pb2
from chatgrpc.v1.chat_service_pb2 import GetChatRequest, GetChatResponse, ListChatsRequest, ListChatsResponse


class _Service:
    def __init__(self, fails: Exception) -> None:
        self._fails = fails

    @refused_by(GetChatResponse)
    async def get(self, request: GetChatRequest, context: object) -> GetChatResponse:
        raise self._fails

    @refused_by_status
    async def list(self, request: ListChatsRequest, context: object) -> ListChatsResponse:
        raise self._fails


STORE_ERRORS = [StoreError("disk"), StoreUnavailableError("disk"), OutcomeUnknownError("disk")]


async def test_a_refusal_is_the_replys_error() -> None:
    service = _Service(RefusedError(chat_pb2.ERROR_CODE_MUTED, "Wait.", retry_after_ms=7))
    reply = await service.get(GetChatRequest(), None)
    assert reply.error == chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED, message="Wait.", retry_after_ms=7)


@pytest.mark.parametrize("fails", STORE_ERRORS)
async def test_a_failing_store_is_a_retryable_error_without_the_engines_words(fails: StoreError) -> None:
    error = (await _Service(fails).get(GetChatRequest(), None)).error
    assert error.code == chat_pb2.ERROR_CODE_UNAVAILABLE
    assert error.retry_after_ms > 0
    assert "disk" not in error.message


async def test_a_refusal_is_a_status_where_the_reply_has_no_error() -> None:
    with pytest.raises(StatusError) as raised:
        await _Service(RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "Wrong.")).list(ListChatsRequest(), None)
    status = raised.value
    assert (status.code, status.reason, status.message) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "Wrong.")


@pytest.mark.parametrize("fails", STORE_ERRORS)
async def test_a_failing_store_is_a_status_where_the_reply_has_no_error(fails: StoreError) -> None:
    with pytest.raises(StatusError) as raised:
        await _Service(fails).list(ListChatsRequest(), None)
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


@pytest.mark.parametrize("method", ["get", "list"])
async def test_other_exceptions_pass(method: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await getattr(_Service(ZeroDivisionError()), method)(None, None)
