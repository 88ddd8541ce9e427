"""Events as bytes: building them, wrapping them for the wire, erasing their content.

An event is serialized once in its life. What the log stores is what every device receives: the stored bytes are spliced into
frames and pages without being parsed, since on the wire a repeated field is a concatenation (protobuf encoding guide, "Last
One Wins" and "Packed repeated fields" do not apply to embedded messages: each element carries its own tag and length).
"""

from google.protobuf.message import DecodeError

from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

_FRAMES = session_pb2.ConnectResponse.FRAMES_FIELD_NUMBER
_EVENT = session_pb2.ServerFrame.EVENT_FIELD_NUMBER
_REQUEST_ID = session_pb2.ServerFrame.REQUEST_ID_FIELD_NUMBER
_SENT = session_pb2.ServerFrame.SENT_FIELD_NUMBER
_HISTORY_PAGE = session_pb2.ServerFrame.HISTORY_PAGE_FIELD_NUMBER
_PAGE_EVENTS = session_pb2.HistoryPage.EVENTS_FIELD_NUMBER

_LENGTH_DELIMITED = 2
_VARINT = 0


_SINGLE_BYTES = tuple(bytes((value,)) for value in range(0x80))


def varint(value: int) -> bytes:
    """Encodes a non-negative integer as a protobuf varint."""
    if value < 0x80:
        return _SINGLE_BYTES[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


_FRAMES_TAG = _tag(_FRAMES, _LENGTH_DELIMITED)
_EVENT_TAG = _tag(_EVENT, _LENGTH_DELIMITED)
_REQUEST_ID_TAG = _tag(_REQUEST_ID, _VARINT)
_SENT_TAG = _tag(_SENT, _LENGTH_DELIMITED)
_HISTORY_PAGE_TAG = _tag(_HISTORY_PAGE, _LENGTH_DELIMITED)
_PAGE_EVENTS_TAG = _tag(_PAGE_EVENTS, _LENGTH_DELIMITED)


def batch_chunk(frame: bytes) -> bytes:
    """A serialized ServerFrame as an element of `ConnectResponse.frames`; chunks joined are a ConnectResponse."""
    return _FRAMES_TAG + varint(len(frame)) + frame


def frame_chunk(frame: session_pb2.ServerFrame) -> bytes:
    """Serializes a frame into a chunk."""
    return batch_chunk(frame.SerializeToString())


def event_chunk(event: bytes) -> bytes:
    """A serialized ChatEvent as a pushed frame, ready to be spliced into any number of streams."""
    return batch_chunk(_EVENT_TAG + varint(len(event)) + event)


def typing_chunk(typing: session_pb2.Typing) -> bytes:
    """Who is typing as a pushed frame, ready to be spliced into any number of streams."""
    return frame_chunk(session_pb2.ServerFrame(typing=typing))


def sent_chunk(request_id: int, result: chat_pb2.SendResult) -> bytes:
    """A SendResult frame, the answer to `request_id`."""
    return _answer_chunk(request_id, _SENT_TAG, result.SerializeToString())


def history_chunk(request_id: int, page: session_pb2.HistoryPage, events: list[bytes]) -> bytes:
    """A HistoryPage frame of serialized events; `page` carries all but the events."""
    parts = [page.SerializeToString()]
    for event in events:
        parts += (_PAGE_EVENTS_TAG, varint(len(event)), event)
    return _answer_chunk(request_id, _HISTORY_PAGE_TAG, b"".join(parts))


def _answer_chunk(request_id: int, tag: bytes, body: bytes) -> bytes:
    return batch_chunk(_REQUEST_ID_TAG + varint(request_id) + tag + varint(len(body)) + body)


def erased(event: bytes) -> bytes:
    """The same event with its content erased: who, when and where stay, what was said goes.

    Of bytes that are no event nothing stays.
    """
    try:
        parsed = chat_pb2.ChatEvent.FromString(event)
    except DecodeError:
        parsed = chat_pb2.ChatEvent()
    parsed.content.CopyFrom(content_pb2.Content(erased=content_pb2.ErasedContent()))
    return parsed.SerializeToString()
