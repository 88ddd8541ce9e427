"""Frames and events, briefly written."""

from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

CHAT = "d.aaaaaaaaaaaaaaaaaaaaaa"
OTHER_CHAT = "d.bbbbbbbbbbbbbbbbbbbbbb"


def text(value: str) -> content_pb2.Content:
    return content_pb2.Content(text=content_pb2.TextContent(text=value))


def event(
    seq: int,
    content: content_pb2.Content | None = None,
    *,
    chat_id: str = CHAT,
    sender: str = "bob",
    client_message_id: bytes = b"",
) -> chat_pb2.ChatEvent:
    return chat_pb2.ChatEvent(
        chat_id=chat_id,
        seq=seq,
        message_id=seq.to_bytes(16),
        client_message_id=client_message_id or seq.to_bytes(16),
        sender_user_id=sender,
        sent_at_ms=1_700_000_000_000 + seq,
        content=content or text(f"text {seq}"),
    )


def created(*user_ids: str, chat_id: str = CHAT, title: str = "") -> chat_pb2.ChatEvent:
    kind = content_pb2.CHAT_KIND_GROUP if title else content_pb2.CHAT_KIND_DIRECT
    members = [content_pb2.Member(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER, joined_seq=1) for user_id in user_ids]
    content = content_pb2.ChatCreatedContent(kind=kind, title=title, members=members)
    return event(1, content_pb2.Content(chat_created=content), chat_id=chat_id)


def opened(
    next_seq: int, *, head_seq: int | None = None, chat_id: str = CHAT, first_visible_seq: int = 1
) -> session_pb2.ChatOpened:
    return session_pb2.ChatOpened(
        chat=chat_pb2.Chat(chat_id=chat_id),
        next_seq=next_seq,
        head_seq=next_seq - 1 if head_seq is None else head_seq,
        first_visible_seq=first_visible_seq,
    )


def frame(
    body: chat_pb2.ChatEvent | session_pb2.ChatOpened | session_pb2.SyncComplete | session_pb2.Heartbeat | session_pb2.Drain,
) -> session_pb2.ServerFrame:
    match body:
        case chat_pb2.ChatEvent():
            return session_pb2.ServerFrame(event=body)
        case session_pb2.ChatOpened():
            return session_pb2.ServerFrame(chat_opened=body)
        case session_pb2.SyncComplete():
            return session_pb2.ServerFrame(sync_complete=body)
        case session_pb2.Heartbeat():
            return session_pb2.ServerFrame(heartbeat=body)
        case _:
            return session_pb2.ServerFrame(drain=body)


def welcome(*, user_id: str = "alice", token_lifetime_ms: int = 3_600_000) -> session_pb2.ServerFrame:
    server_time_ms = 1_700_000_000_000
    return session_pb2.ServerFrame(
        request_id=1,
        welcome=session_pb2.Welcome(
            session_id="s",
            user_id=user_id,
            heartbeat_interval_ms=30_000,
            limits=session_pb2.Limits(requests_in_flight_max=256, frames_per_batch_max=512, batch_bytes_max=1 << 20),
            token_expires_at_ms=server_time_ms + token_lifetime_ms,
            server_time_ms=server_time_ms,
        ),
    )
