"""Refusals: the number of an error's code says whether to try again."""

from chatgrpc.core.refusal import RefusedError, is_retryable, unavailable
from chatgrpc.v1 import chat_pb2


def test_codes_from_100_may_succeed_later() -> None:
    for code in chat_pb2.ErrorCode.values():
        assert is_retryable(chat_pb2.Error(code=code)) == (code >= 100)


def test_unavailable_asks_for_the_same_again() -> None:
    error = unavailable(retry_after_ms=700)
    assert is_retryable(error)
    assert error.retry_after_ms == 700


def test_a_refusal_carries_its_error() -> None:
    refused = RefusedError(chat_pb2.ERROR_CODE_MUTED, "You are muted.", 5)
    assert refused.error == chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED, message="You are muted.", retry_after_ms=5)
