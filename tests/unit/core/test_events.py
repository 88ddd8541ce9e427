"""Spliced bytes parse to the same messages as if protobuf had built them."""

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.events import batch_chunk, erased, event_chunk, frame_chunk, history_chunk, sent_chunk, varint
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

seqs = st.integers(0, 2**64 - 1)
texts = st.text(max_size=300)


@st.composite
def chat_events(draw: st.DrawFn) -> chat_pb2.ChatEvent:
    return chat_pb2.ChatEvent(
        chat_id=draw(texts),
        seq=draw(seqs),
        message_id=draw(st.binary(max_size=16)),
        client_message_id=draw(st.binary(max_size=16)),
        sender_user_id=draw(texts),
        sender_device_id=draw(texts),
        sent_at_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        content=content_pb2.Content(
            text=content_pb2.TextContent(text=draw(texts)),
            reply_to_seq=draw(seqs),
            forward_count=draw(st.integers(0, 2**32 - 1)),
        ),
    )


@given(seqs)
def test_varint(value: int) -> None:
    tag = varint(session_pb2.ServerFrame.REQUEST_ID_FIELD_NUMBER << 3)
    assert session_pb2.ServerFrame.FromString(tag + varint(value)).request_id == value


@given(st.lists(st.tuples(chat_events(), st.booleans()), max_size=8))
def test_chunks_joined_are_one_response(items: list[tuple[chat_pb2.ChatEvent, bool]]) -> None:
    expected = session_pb2.ConnectResponse()
    chunks = []
    for event, spliced in items:
        expected.frames.add(event=event)
        frame = session_pb2.ServerFrame(event=event)
        chunks.append(event_chunk(event.SerializeToString()) if spliced else frame_chunk(frame))
    assert session_pb2.ConnectResponse.FromString(b"".join(chunks)) == expected


@given(st.integers(1, 2**64 - 1), texts, seqs, st.binary(max_size=16), st.booleans())
def test_a_result_is_spliced(request_id: int, chat_id: str, seq: int, message_id: bytes, duplicate: bool) -> None:
    result = chat_pb2.SendResult(chat_id=chat_id, seq=seq, message_id=message_id, sent_at_ms=7, duplicate=duplicate)
    frames = session_pb2.ConnectResponse.FromString(sent_chunk(request_id, result)).frames
    assert list(frames) == [session_pb2.ServerFrame(request_id=request_id, sent=result)]


@given(st.integers(1, 2**64 - 1), texts, st.booleans(), st.booleans(), st.lists(chat_events(), max_size=5))
def test_a_page_of_history_is_spliced(
    request_id: int, chat_id: str, more_before: bool, more_after: bool, events: list[chat_pb2.ChatEvent]
) -> None:
    head = session_pb2.HistoryPage(chat_id=chat_id, more_before=more_before, more_after=more_after)
    chunk = history_chunk(request_id, head, [event.SerializeToString() for event in events])
    expected = session_pb2.ServerFrame(request_id=request_id, history_page=head)
    expected.history_page.events.extend(events)
    assert list(session_pb2.ConnectResponse.FromString(chunk).frames) == [expected]


def test_an_empty_frame_is_a_frame() -> None:
    assert session_pb2.ConnectResponse.FromString(batch_chunk(b"") * 2).frames == [session_pb2.ServerFrame()] * 2


@given(chat_events())
def test_erasing_leaves_who_when_and_where(event: chat_pb2.ChatEvent) -> None:
    left = chat_pb2.ChatEvent.FromString(erased(event.SerializeToString()))
    assert left.content == content_pb2.Content(erased=content_pb2.ErasedContent())
    expected = chat_pb2.ChatEvent.FromString(event.SerializeToString())
    expected.ClearField("content")
    left.ClearField("content")
    assert left == expected


def test_erasing_leaves_nothing_of_what_this_version_does_not_know() -> None:
    secret = b"\xc2\x3e\x06secret"  # field 1000, length-delimited
    event = chat_pb2.ChatEvent(chat_id="c", content=content_pb2.Content.FromString(b"\x0a\x03\x0a\x01a" + secret))
    assert b"secret" in event.SerializeToString()
    assert b"secret" not in erased(event.SerializeToString())
