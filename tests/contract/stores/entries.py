"""Entries for tests of the log."""

from collections.abc import Iterable

from chatgrpc.ports.chat_log import ChatView, Entry, Interval, MemberView
from chatgrpc.v1 import chat_pb2, content_pb2

BYTES_MAX = 1 << 20


def event(chat_id: str, seq: int, text: str) -> bytes:
    """A serialized text message."""
    content = content_pb2.Content(text=content_pb2.TextContent(text=text), reply_to_seq=1, forward_count=2)
    return chat_pb2.ChatEvent(
        chat_id=chat_id,
        seq=seq,
        message_id=seq.to_bytes(16),
        client_message_id=(1 << 64 | seq).to_bytes(16),
        sender_user_id="alice",
        sender_device_id="phone",
        sent_at_ms=1_700_000_000_000 + seq,
        content=content,
    ).SerializeToString()


def entry(
    chat_id: str,
    seq: int,
    text: str = "hello",
    *,
    amends_seq: int = 0,
    erases_seq: int = 0,
    view: ChatView | None = None,
) -> Entry:
    """A text message to append under epoch 1."""
    return Entry(chat_id, seq, 1, event(chat_id, seq, text), amends_seq, erases_seq, view)


def run(chat_id: str, seqs: Iterable[int]) -> list[Entry]:
    """Text messages at these seqs."""
    return [entry(chat_id, seq, f"message {seq}") for seq in seqs]


def view(state: bytes, **intervals: tuple[int, int]) -> ChatView:
    """A view by user id: `view(b"…", alice=(1, 0))`."""
    members = tuple(MemberView(user_id, Interval(*interval)) for user_id, interval in intervals.items())
    return ChatView(state, members)


def is_erased(stored: bytes) -> bool:
    """Whether the event's content is erased."""
    return chat_pb2.ChatEvent.FromString(stored).content.WhichOneof("body") == "erased"
