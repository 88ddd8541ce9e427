"""Refusals: how the core says no to a request."""

from typing import TypeAlias

from chatgrpc.v1 import chat_pb2

RETRY_FROM = chat_pb2.ERROR_CODE_UNAVAILABLE
"""From this code on the same request may succeed later."""

_SILENT_RETRY_AFTER_MS = 500
_DAMAGED = "This chat cannot be used until the operator of the server has looked at it. Your other chats go on."
_DAMAGED_RETRY_AFTER_MS = 30_000
"""Owners look again about as often."""

Code: TypeAlias = chat_pb2.ErrorCode.ValueType


class RefusedError(Exception):
    """A request breaks a rule. Raised where the rule is known, and turned into its `Error` at the core's border."""

    def __init__(self, code: Code, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.error = chat_pb2.Error(code=code, message=message, retry_after_ms=retry_after_ms)


def is_retryable(error: chat_pb2.Error) -> bool:
    """Whether the same request, unchanged, may succeed later."""
    return error.code >= RETRY_FROM


def chat_damaged() -> chat_pb2.Error:
    """What the store holds of the chat cannot be right; until somebody mends it, nothing can be done with it."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_CHAT_DAMAGED,
        message=_DAMAGED,
        retry_after_ms=_DAMAGED_RETRY_AFTER_MS,
    )


def store_silent() -> chat_pb2.Error:
    """The answer to a write that needed the store, which did not answer; a repetition with the same key is safe."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_UNAVAILABLE,
        message="The store did not answer, and nobody knows whether this was committed. Send it again, unchanged.",
        retry_after_ms=_SILENT_RETRY_AFTER_MS,
    )


def owner_silent() -> chat_pb2.Error:
    """The answer to a write that no owner of its chat has answered; a repetition with the same key is safe."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_UNAVAILABLE,
        message="The node that orders this chat did not answer, and nobody knows whether this was committed. "
        "Send it again, unchanged.",
        retry_after_ms=_SILENT_RETRY_AFTER_MS,
    )


def after_failed_send() -> chat_pb2.Error:
    """The answer to a send that must not overtake an earlier one of its stream, which failed and is to come again."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_AFTER_FAILED_SEND,
        message="An earlier send to this chat failed; send that one again first.",
        retry_after_ms=100,
    )


def page_unavailable() -> chat_pb2.Error:
    """The answer to a request for history that could not be read; it changes nothing, so it may be asked for again."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_UNAVAILABLE,
        message="The history of this chat could not be read just now. Ask for it again.",
        retry_after_ms=_SILENT_RETRY_AFTER_MS,
    )


def overloaded() -> chat_pb2.Error:
    """Too much waits already: the write was not taken."""
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_UNAVAILABLE,
        message="Too much waits to be committed already. This was not taken; send it again, unchanged.",
        retry_after_ms=1_000,
    )


def outcome_unknown(failed: chat_pb2.Error) -> chat_pb2.Error:
    """The answer to a write without a key of which nobody knows whether it was committed: what `failed` says would have it sent
    again. That its chat is damaged is still said."""
    is_damaged = failed.code == chat_pb2.ERROR_CODE_CHAT_DAMAGED
    return chat_pb2.Error(
        code=chat_pb2.ERROR_CODE_CHAT_DAMAGED if is_damaged else chat_pb2.ERROR_CODE_UNAVAILABLE,
        message=(_DAMAGED + " " if is_damaged else "")
        + "Nobody knows whether this was committed. Without a key a repetition would be another one: look at the chat first. "
        "With a key a request can be repeated safely.",
        retry_after_ms=_DAMAGED_RETRY_AFTER_MS if is_damaged else 0,
    )
