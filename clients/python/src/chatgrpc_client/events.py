"""What `Client.events()` yields: the events of the chats' logs, and news of the moment.

Log events are never lost: they are on disk before they are yielded, and the iterator reads them from there. News of the
moment (marks, presence, typing, connection) are kept as latest values: a consumer that is slow sees the last of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chatgrpc.v1 import chat_pb2, session_pb2

from .exceptions import ChatError, RequestError, TemporaryError


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An event of a chat's log; `event` is what the server sent."""

    event: chat_pb2.ChatEvent

    @property
    def chat_id(self) -> str:
        """The chat."""
        return self.event.chat_id

    @property
    def seq(self) -> int:
        """Its place in the chat's log."""
        return self.event.seq

    @property
    def sender_user_id(self) -> str:
        """Who caused it."""
        return self.event.sender_user_id


class Message(LogEvent):
    """A text message."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The text."""
        return self.event.content.text.text


class EncryptedMessage(LogEvent):
    """A message that only its receivers can read."""

    __slots__ = ()


class Edit(LogEvent):
    """A new text for an earlier message."""

    __slots__ = ()

    @property
    def target_seq(self) -> int:
        """The message that is edited."""
        return self.event.content.edit.target_seq

    @property
    def text(self) -> str:
        """The whole new text."""
        return self.event.content.edit.text


class Reaction(LogEvent):
    """A reaction to a message, or the taking back of one (`emoji` is empty)."""

    __slots__ = ()

    @property
    def target_seq(self) -> int:
        """The message reacted to."""
        return self.event.content.reaction.target_seq

    @property
    def emoji(self) -> str:
        """The emoji."""
        return self.event.content.reaction.emoji


class Deletion(LogEvent):
    """A message was deleted for everyone."""

    __slots__ = ()

    @property
    def target_seq(self) -> int:
        """The message that is gone."""
        return self.event.content.delete.target_seq


class Erased(LogEvent):
    """There was content here; it was deleted for everyone before this device saw it."""

    __slots__ = ()


class Hide(LogEvent):
    """The user hid messages from themself, on any of their devices."""

    __slots__ = ()

    @property
    def hidden_chat_id(self) -> str:
        """The chat whose messages are hidden."""
        return self.event.content.hide.chat_id

    @property
    def hidden_seqs(self) -> Sequence[int]:
        """The messages."""
        return self.event.content.hide.seqs


class SettingsChange(LogEvent):
    """The user changed their own settings of a chat, on any of their devices."""

    __slots__ = ()


class ChatChange(LogEvent):
    """The chat came to be, or its members, title, picture or link changed. `event.content` says what."""

    __slots__ = ()


class Unsupported(LogEvent):
    """Content of a later version."""

    __slots__ = ()


_TYPES: dict[str | None, type[LogEvent]] = {
    "text": Message,
    "encrypted": EncryptedMessage,
    "edit": Edit,
    "reaction": Reaction,
    "delete": Deletion,
    "erased": Erased,
    "hide": Hide,
    "chat_settings": SettingsChange,
}


def log_event(event: chat_pb2.ChatEvent) -> LogEvent:
    """The typed form of an event."""
    arm = event.content.WhichOneof("body")
    if arm is None:
        return Unsupported(event)
    return _TYPES.get(arm, ChatChange)(event)


class ConnectionState(Enum):
    """Where the client is with the server."""

    CONNECTING = "connecting"
    """A stream is being opened."""
    SYNCING = "syncing"
    """The server sends what the device missed."""
    LIVE = "live"
    """The device is up to date."""
    WAITING = "waiting"
    """The next try comes later."""
    STOPPED = "stopped"
    """There will be no further try; `ConnectionChanged.error` says why."""


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """The connection is in another state."""

    state: ConnectionState
    message: str = ""
    """Why, for people; empty when all is well."""
    retry_in_s: float = 0.0
    error: ChatError | None = None


@dataclass(frozen=True, slots=True)
class SyncComplete:
    """The device has everything up to the moment at which it connected."""


@dataclass(frozen=True, slots=True)
class ChatOpened:
    """The device holds a chat that it did not hold before (or holds it from another place on)."""

    chat: chat_pb2.Chat


@dataclass(frozen=True, slots=True)
class ReceiptChanged:
    """Someone's marks rose."""

    receipt: chat_pb2.Receipt


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Someone came or went."""

    presence: session_pb2.Presence


@dataclass(frozen=True, slots=True)
class TypingChanged:
    """Someone is typing, or stopped; forget it after 6 seconds."""

    typing: session_pb2.Typing


@dataclass(frozen=True, slots=True)
class MessageCommitted:
    """A message of this device is in the log."""

    client_message_id: bytes
    result: chat_pb2.SendResult


@dataclass(frozen=True, slots=True)
class MessageDelayed:
    """The server does not take a message of this device yet; it waits, and is sent again by itself."""

    client_message_id: bytes
    chat_id: str
    error: TemporaryError
    """`RateLimitedError` or `ChatDamagedError`."""


@dataclass(frozen=True, slots=True)
class MessageFailed:
    """A message of this device was refused for ever."""

    client_message_id: bytes
    chat_id: str
    error: RequestError


Signal = (
    ConnectionChanged
    | SyncComplete
    | ChatOpened
    | ReceiptChanged
    | PresenceChanged
    | TypingChanged
    | MessageCommitted
    | MessageDelayed
    | MessageFailed
)
ClientEvent = LogEvent | Signal
