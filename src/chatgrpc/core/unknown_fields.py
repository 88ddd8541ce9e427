"""Fields that this version does not know: what a newer client says is handed on as it came, if everybody can parse it.

Parsers differ. Ours stops at a hundred levels of groups, in whatever the message is wrapped; it takes a number of more than 64
bits, where those of Go and Rust refuse the whole message; and it passes over a known field of another wire type, where some
do not. What one of them cannot parse is a frame that a member's device never gets past. No version of this API has groups.
"""

from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from chatgrpc.v1 import content_pb2

_VARINT: Final = 0
_GROUP: Final = 3
"""Two of the wire types of protobuf's encoding guide."""
_VARINT_BYTES_MAX: Final = 10


def flaw_of(message: Message) -> str:
    """What of the message's own unknown fields somebody could not parse, in a few words; empty if nothing."""
    unknown = UnknownFieldSet(message)
    count = len(unknown)
    if count == 0:
        return ""
    known = message.DESCRIPTOR.fields_by_number
    has_varint = False
    for index in range(count):
        field = unknown[index]
        if field.wire_type == _GROUP:
            return "a group, an old kind of field"
        if field.field_number in known:
            return f"field {field.field_number} as something that it is not"
        has_varint = has_varint or field.wire_type == _VARINT
    return "a number of more than 64 bits" if has_varint and _has_wide_varint(message.SerializeToString()) else ""


def flaw_of_content(content: content_pb2.Content) -> str:
    """The same of a content and its arm: of contents that users write only the arm has fields beside the content's own."""
    arm = content.WhichOneof("body")
    return flaw_of(content) or (flaw_of(getattr(content, arm)) if arm is not None else "")


def _has_wide_varint(message: bytes) -> bool:
    """Whether a field of a serialized message without groups is a number that no 64 bits hold."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:  # a varint
                start = at
                _, at = _varint(message, at)
                if at - start == _VARINT_BYTES_MAX and message[at - 1] > 1:
                    return True
            case 1:  # 64 bits
                at += 8
            case 2:  # bytes
                size, at = _varint(message, at)
                at += size
            case _:  # 32 bits
                at += 4
    return False


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Reads a varint; returns it and where the next byte stands."""
    value = shift = 0
    while message[at] > 0x7F:
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
    return value | message[at] << shift, at + 1
