"""Refusals: the number of an error's code says whether to try again, and its message what is known."""

import pytest

from chatgrpc.core.refusal import (
    RefusedError,
    chat_damaged,
    is_retryable,
    outcome_unknown,
    overloaded,
    owner_silent,
    page_unavailable,
    store_silent,
)
from chatgrpc.v1 import chat_pb2


def test_codes_from_100_may_succeed_later() -> None:
    for code in chat_pb2.ErrorCode.values():
        assert is_retryable(chat_pb2.Error(code=code)) == (code >= 100)


@pytest.mark.parametrize(
    "error", [store_silent(), owner_silent(), page_unavailable(), overloaded()], ids=lambda error: error.message
)
def test_what_may_succeed_later_says_when(error: chat_pb2.Error) -> None:
    assert is_retryable(error)
    assert error.retry_after_ms > 0


def test_only_writes_speak_of_what_is_committed() -> None:
    for error in (store_silent(), owner_silent(), outcome_unknown(store_silent())):
        assert "committed" in error.message
    assert "committed" not in page_unavailable().message
    assert "store" not in owner_silent().message, "it is the node that did not answer; nobody knows of its store"


def test_what_has_no_key_is_not_to_be_sent_again() -> None:
    for failed in (store_silent(), owner_silent(), chat_damaged()):
        unknown = outcome_unknown(failed)
        assert unknown.code == failed.code, "the caller is told still what is the matter"
        assert "look at the chat first" in unknown.message
        assert "again, unchanged" not in unknown.message
    assert chat_damaged().message in outcome_unknown(chat_damaged()).message


def test_a_refusal_carries_its_error() -> None:
    refused = RefusedError(chat_pb2.ERROR_CODE_MUTED, "You are muted.", 5)
    assert refused.error == chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED, message="You are muted.", retry_after_ms=5)
