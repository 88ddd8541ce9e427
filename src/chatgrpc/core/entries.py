"""What goes into a chat's log and what comes back from it."""

from dataclasses import dataclass

from chatgrpc.core.visibility import Interval


@dataclass(frozen=True, slots=True)
class MemberView:
    """One interval of one user in a chat, as the log says after the event it is stored with."""

    user_id: str
    interval: Interval


@dataclass(frozen=True, slots=True)
class ChatView:
    """A chat's state after an event that changed it, and the intervals that the event opened or closed."""

    chat: bytes
    """Serialized `chatgrpc.v1.Chat`; its `as_of_seq` is the event's seq."""
    members: tuple[MemberView, ...] = ()


@dataclass(slots=True)
class Entry:
    """One event to append. Not to be changed; see `Write`."""

    chat_id: str
    seq: int
    epoch: int
    event: bytes
    """Serialized `chatgrpc.v1.ChatEvent`."""
    amends_seq: int = 0
    """Seq of the message whose content this event's content replaces (an edit); erased together with it. 0 = none."""
    erases_seq: int = 0
    """Seq of the message whose stored content, and that of all that amend it, this event erases; 0 = none."""
    view: ChatView | None = None

    @property
    def has_views(self) -> bool:
        """Something besides the event itself is to be stored for it."""
        return self.view is not None or bool(self.erases_seq or self.amends_seq)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event read back."""

    seq: int
    event: bytes
    """Serialized `chatgrpc.v1.ChatEvent`; with `ErasedContent` if it was erased."""


@dataclass(frozen=True, slots=True)
class StoredChat:
    """What an owner needs to go on with a chat."""

    chat: bytes
    """Serialized `chatgrpc.v1.Chat` after the last event that changed it."""
    head_seq: int
    """Seq of the last committed event."""
    head_event: bytes
    """Serialized `chatgrpc.v1.ChatEvent` at `head_seq`."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One chat of one user, present or past."""

    chat_id: str
    intervals: tuple[Interval, ...]
    """By rising seq; at least one. A user who left and came back has several."""
    head_seq: int
    """Seq of the chat's last committed event."""
