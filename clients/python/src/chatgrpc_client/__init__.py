"""Python client library of chatgrpc: a device that keeps its messages, its place and its history on disk."""

from .client import Client, Outgoing
from .config import ClientConfig, TokenProvider
from .events import (
    ChatChange,
    ChatOpened,
    ClientEvent,
    ConnectionChanged,
    ConnectionState,
    Deletion,
    Edit,
    EncryptedMessage,
    Erased,
    Hide,
    LogEvent,
    Message,
    MessageCommitted,
    MessageFailed,
    PresenceChanged,
    Reaction,
    ReceiptChanged,
    SettingsChange,
    SyncComplete,
    TypingChanged,
    Unsupported,
)
from .exceptions import ChatError
from .feed import EventStream
from .store import ChatState, HistoryPage, QueuedMessage

__all__ = [
    "ChatChange",
    "ChatError",
    "ChatOpened",
    "ChatState",
    "Client",
    "ClientConfig",
    "ClientEvent",
    "ConnectionChanged",
    "ConnectionState",
    "Deletion",
    "Edit",
    "EncryptedMessage",
    "Erased",
    "EventStream",
    "Hide",
    "HistoryPage",
    "LogEvent",
    "Message",
    "MessageCommitted",
    "MessageFailed",
    "Outgoing",
    "PresenceChanged",
    "QueuedMessage",
    "Reaction",
    "ReceiptChanged",
    "SettingsChange",
    "SyncComplete",
    "TokenProvider",
    "TypingChanged",
    "Unsupported",
]
