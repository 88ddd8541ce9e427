"""How events look to people and to programs.

Received text is never printed as it is: what would steer the terminal is shown as an escape instead.
"""

import json
import re
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from chatgrpc.v1 import chat_pb2, content_pb2

from ..exceptions import NotAMemberError

_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"  # control, and text direction
)
_STEERING_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_API_HINT = re.compile(r"(?:^|(?<=[.:;]))[^.:;]*\b[A-Z]\w*Service\.\w+[^.]*\.?")
_TIME_MAX_MS = 253_370_764_800_000
"""The year 9999 less a day, which is a time in every zone."""
_FOR_GOOD_MS = 7_258_118_400_000
"""The year 2200."""
_ROLES = {
    content_pb2.MEMBER_ROLE_MEMBER: "member",
    content_pb2.MEMBER_ROLE_ADMIN: "admin",
    content_pb2.MEMBER_ROLE_OWNER: "owner",
}


def safe(text: str) -> str:
    """The text on one line, without anything that steers a terminal."""
    return _STEERING.sub(lambda found: _escape(found[0]), text)


def safe_lines(text: str, indent: str) -> str:
    """The text with its line breaks, further lines indented, without anything else that steers a terminal."""
    return f"\n{indent}".join(safe(line) for line in text.replace("\r\n", "\n").split("\n"))


def _escape(char: str) -> str:
    if char == "\t":
        return "    "
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


def clock(at_ms: int) -> str:
    """Local time: the hour today, else the day too, and the year if it is another. Whatever a peer says is a time."""
    at, now = _datetime(at_ms).astimezone(), datetime.now().astimezone()
    if at.date() == now.date():
        return at.strftime("%H:%M")
    return at.strftime("%d %b %H:%M" if at.year == now.year else "%d %b %Y %H:%M")


def _datetime(at_ms: int) -> datetime:
    """A time in UTC. Those that no calendar here can show are the nearest that it can."""
    return datetime.fromtimestamp(min(max(at_ms, 0), _TIME_MAX_MS) / 1000, UTC)


def until(at_ms: int) -> str:
    """`until` a time, or `for good` if nobody alive will see it."""
    return "for good" if at_ms >= _FOR_GOOD_MS else f"until {clock(at_ms)}"


def explained(error: Exception) -> str:
    """What an error says, in the words of the commands, without names of the API; safe to print."""
    if isinstance(error, NotAMemberError):
        return "there is no such chat, or you are not a member of it"
    return safe(_API_HINT.sub("", str(error)).strip().removesuffix(":"))


def role_name(role: int) -> str:
    """What people call a role."""
    return _ROLES.get(role, "member")  # type: ignore[call-overload,no-any-return]


def as_json(event: chat_pb2.ChatEvent) -> str:
    """An event as one line of JSON: who, where, when; `type` is the arm of `Content`, whose fields stand beside it."""
    arm = event.content.WhichOneof("body") or "unsupported"
    line: dict[str, Any] = {
        "chat_id": event.chat_id,
        "seq": event.seq,
        "type": arm,
        "sender": event.sender_user_id,
        "sent_at": _datetime(event.sent_at_ms).isoformat(timespec="milliseconds"),
        "sent_at_ms": event.sent_at_ms,
    }
    if event.content.reply_to_seq:
        line["reply_to_seq"] = event.content.reply_to_seq
    if event.content.forward_count:
        line["forward_count"] = event.content.forward_count
    if arm != "unsupported":
        body = _plain(getattr(event.content, arm))
        line |= {f"target_{name}" if name in line else name: value for name, value in body.items()}
    line |= {
        "message_id": _uuid(event.message_id),
        "client_message_id": event.client_message_id.hex(),
        "sender_device_id": event.sender_device_id,
    }
    return dump(line)


def dump(value: Any) -> str:
    """One line of JSON, safe to print, and whole also where the output is not UTF-8."""
    text = json.dumps(value, ensure_ascii=not _prints_all())
    return _STEERING_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _prints_all() -> bool:
    """Whether standard output takes every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()


def _plain(message: Message) -> dict[str, Any]:
    return {
        field.name: [_plain_value(field, item) for item in value] if field.is_repeated else _plain_value(field, value)
        for field in message.DESCRIPTOR.fields
        for value in (getattr(message, field.name),)
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", field.enum_type.name).upper() + "_"
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name.removeprefix(prefix).lower()
    return value.hex() if isinstance(value, bytes) else value


def sentence(event: chat_pb2.ChatEvent, me: str) -> str:
    """A change of a chat in words, for the reader `me`; safe to print."""
    content, who = event.content, _name(event.sender_user_id, me)
    match content.WhichOneof("body"):
        case "chat_created":
            if content.chat_created.kind != content_pb2.CHAT_KIND_GROUP:
                return f"{who} began the chat"
            others = [m.user_id for m in content.chat_created.members if m.user_id != event.sender_user_id]
            return f"{who} created the group “{safe(content.chat_created.title)}” with {_names(others, me)}"
        case "members_added":
            added = list(content.members_added.user_ids)
            return f"{who} joined" if added == [event.sender_user_id] else f"{who} added {_names(added, me)}"
        case "member_removed":
            return _removal(event, me)
        case "role_changed":
            change = content.role_changed
            article = "an" if change.role != content_pb2.MEMBER_ROLE_MEMBER else "a"
            return f"{who} made {_name(change.user_id, me)} {article} {role_name(change.role)}"
        case "chat_info_changed":
            if not content.chat_info_changed.HasField("title"):
                return f"{who} changed the group's picture"
            return f"{who} changed the group to “{safe(content.chat_info_changed.title)}”"
        case "member_muted":
            muted = content.member_muted
            said = f"muted {_name(muted.user_id, me)} {until(muted.muted_until_ms)}"
            is_over = not muted.muted_until_ms or muted.muted_until_ms < event.sent_at_ms
            return f"{who} {said}" if not is_over else f"{who} let {_name(muted.user_id, me)} write again"
        case "join_link_changed":
            return f"{who} {'made a join link' if content.join_link_changed.HasField('join_link') else 'revoked the join link'}"
        case "join_requested":
            return f"{who} asks to be let in"
        case "join_declined":
            return f"{who} declined {_name(content.join_declined.user_id, me)}"
    return f"{who} sent something that this version cannot show"


def _removal(event: chat_pb2.ChatEvent, me: str) -> str:
    removed = event.content.member_removed
    who = _name(event.sender_user_id, me)
    said = f"{who} left" if removed.user_id == event.sender_user_id else f"{who} removed {_name(removed.user_id, me)}"
    return f"{said}; {_name(removed.new_owner_user_id, me)} owns the group now" if removed.new_owner_user_id else said


def _name(user_id: str, me: str) -> str:
    return "you" if user_id == me else safe(user_id)


def _names(user_ids: list[str], me: str) -> str:
    return ", ".join(_name(user_id, me) for user_id in user_ids) or "nobody"
