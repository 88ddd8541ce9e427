"""Everything that this library raises.

```
ChatError
├── DataDirError                 the folder of the device's state cannot be used
│   ├── DataDirLockedError       another process uses it
│   ├── WrongUserError           it is another user's, or the token is
│   └── DiskError                the disk takes nothing now: full, or failing
├── CertificatesError            the file of trusted certificates cannot be used
├── TokenUnavailableError        no token could be had from whoever gives them out
├── SessionStoppedError          the server said: do not reconnect until something changes
│   ├── UnauthenticatedError     token missing, not valid or expired
│   ├── DeviceRevokedError       the user revoked this device
│   ├── ReplacedError            the same device connected from elsewhere
│   ├── TooManyDevicesError      the user has too many devices; revoke one
│   └── ProtocolError            the server could not make sense of this client, or this client of the server
├── RequestError                 the server refused a request; `code` says why
│   ├── InvalidArgumentError     ├── NotAMemberError      ├── ForbiddenError       ├── MutedError
│   ├── TooLargeError            ├── LimitExceededError   ├── TargetNotFoundError  ├── WindowPassedError
│   ├── UnsupportedContentError  ├── LinkInvalidError     ├── NotFoundError        ├── NothingToChangeError
│   └── TemporaryError           the same request may succeed later (`retry_after_s`)
│       ├── RateLimitedError     the user does this too often
│       └── ChatDamagedError     what the server holds of the chat must be mended first
├── RequestTimeoutError          no answer in time; nothing is known of the outcome
├── OutboxFullError              too many messages wait to be sent
└── ClientClosedError            the client was closed; a message that waited is still in the outbox
```
"""

from chatgrpc.v1 import chat_pb2, session_pb2

FIRST_RETRYABLE_CODE = 100


class ChatError(Exception):
    """Base of all errors of this library. The message says what happened and what to do next."""


class DataDirError(ChatError):
    """The folder of the device's state cannot be used."""


class DataDirLockedError(DataDirError):
    """Another process uses the folder: a device has one process at a time."""


class WrongUserError(DataDirError):
    """The folder holds another user's state, or the token is another user's."""


class DiskError(DataDirError):
    """The disk takes nothing now: it is full, or fails. What was to be stored is not; it may succeed later."""


class TokenUnavailableError(ChatError):
    """No token could be had from whoever gives them out; that may pass."""


class CertificatesError(ChatError):
    """The file of trusted certificates is missing, unreadable, or holds none."""


class SessionStoppedError(ChatError):
    """The session ended and must not be opened again until something changes."""

    def __init__(self, code: session_pb2.DisconnectCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnauthenticatedError(SessionStoppedError):
    """The token is missing, not valid, or has expired."""


class DeviceRevokedError(SessionStoppedError):
    """The user revoked this device."""


class ReplacedError(SessionStoppedError):
    """The same device opened another stream."""


class TooManyDevicesError(SessionStoppedError):
    """The user has as many devices as they may have."""


class ProtocolError(SessionStoppedError):
    """Server and client do not understand one another."""


class RequestError(ChatError):
    """The server refused a request.

    `code` is the server's reason; 0 = the call itself failed, and nothing is known of the outcome. `retry_after_s` is how long
    to wait, in seconds, 0 if the same request would fail again.
    """

    def __init__(self, code: chat_pb2.ErrorCode.ValueType, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidArgumentError(RequestError):
    """A field is missing, malformed or does not fit the others."""


class NotAMemberError(RequestError):
    """There is no such chat, or the user is not a member of it."""


class ForbiddenError(RequestError):
    """The member's role does not allow it."""


class MutedError(RequestError):
    """The member is muted."""


class TooLargeError(RequestError):
    """The content is larger than the limit."""


class LimitExceededError(RequestError):
    """It would pass a limit of members, chats or devices."""


class TargetNotFoundError(RequestError):
    """The message referred to does not exist, or cannot be referred to like this."""


class WindowPassedError(RequestError):
    """Too long ago to be edited or deleted."""


class UnsupportedContentError(RequestError):
    """This content cannot be sent, or not to this kind of chat."""


class LinkInvalidError(RequestError):
    """The join link is not valid, or not any more."""


class NotFoundError(RequestError):
    """There is no such user, device, message or request."""


class NothingToChangeError(RequestError):
    """It is so already; nothing came of the request."""


class TemporaryError(RequestError):
    """The same request may succeed after `retry_after_s` seconds."""


class RateLimitedError(TemporaryError):
    """The user does this too often, and nothing came of it. A message waits and goes out by itself; ask for all else later."""


class ChatDamagedError(TemporaryError):
    """What the server holds of this chat cannot be right, and an operator must mend it. Other chats go on."""


LASTING = (RateLimitedError, ChatDamagedError)
"""Refusals that may last longer than anybody waits for an answer: they are told, and not called a silence of the server."""


class RequestTimeoutError(ChatError):
    """No answer came in time; nothing is known of the outcome."""


class OutboxFullError(ChatError):
    """As many messages wait to be sent as may."""


class ClientClosedError(ChatError):
    """The client was closed. A message that waited is kept in the outbox and goes out when the device connects again."""


_REQUEST_ERRORS: dict[int, type[RequestError]] = {
    chat_pb2.ERROR_CODE_INVALID_ARGUMENT: InvalidArgumentError,
    chat_pb2.ERROR_CODE_NOT_A_MEMBER: NotAMemberError,
    chat_pb2.ERROR_CODE_FORBIDDEN: ForbiddenError,
    chat_pb2.ERROR_CODE_MUTED: MutedError,
    chat_pb2.ERROR_CODE_TOO_LARGE: TooLargeError,
    chat_pb2.ERROR_CODE_LIMIT_EXCEEDED: LimitExceededError,
    chat_pb2.ERROR_CODE_TARGET_NOT_FOUND: TargetNotFoundError,
    chat_pb2.ERROR_CODE_WINDOW_PASSED: WindowPassedError,
    chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT: UnsupportedContentError,
    chat_pb2.ERROR_CODE_LINK_INVALID: LinkInvalidError,
    chat_pb2.ERROR_CODE_NOT_FOUND: NotFoundError,
    chat_pb2.ERROR_CODE_NOTHING_TO_CHANGE: NothingToChangeError,
}

_TEMPORARY_ERRORS: dict[int, type[TemporaryError]] = {
    chat_pb2.ERROR_CODE_RATE_LIMITED: RateLimitedError,
    chat_pb2.ERROR_CODE_CHAT_DAMAGED: ChatDamagedError,
}

_STOPS: dict[int, type[SessionStoppedError]] = {
    session_pb2.DISCONNECT_CODE_UNAUTHENTICATED: UnauthenticatedError,
    session_pb2.DISCONNECT_CODE_DEVICE_REVOKED: DeviceRevokedError,
    session_pb2.DISCONNECT_CODE_REPLACED: ReplacedError,
    session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES: TooManyDevicesError,
}


def request_error(error: chat_pb2.Error) -> RequestError:
    """The exception that stands for the server's refusal."""
    if error.code >= FIRST_RETRYABLE_CODE:
        return _TEMPORARY_ERRORS.get(error.code, TemporaryError)(error.code, error.message, error.retry_after_ms / 1000)
    return _REQUEST_ERRORS.get(error.code, RequestError)(error.code, error.message)


def stop_error(code: session_pb2.DisconnectCode.ValueType, message: str) -> SessionStoppedError:
    """The exception that stands for a disconnect of the 300s."""
    return _STOPS.get(code, ProtocolError)(code, message)
