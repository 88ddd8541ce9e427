"""Sizes of what a peer asks, looked at before anything is done for it.

A megabyte of ids is parsed in no time; whatever looks at each of them, in Python, may take long. So each field that a peer can
make long has a line here, and what passes it reaches no service and no session. The lines are wide: what is merely too much for
a rule reaches that rule, which says it in its own words. Contents are not looked into: `core.shape` looks at counts first.
"""

import functools
from typing import Final

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from chatgrpc.core.limits import Limits
from chatgrpc.edge.errors import StatusError
from chatgrpc.v1 import content_pb2

CONTENT: Final = content_pb2.Content.DESCRIPTOR
"""The one kind of message that is not looked into."""

_NEAR = 16
"""Up to this multiple of a limit the rule itself refuses, in its own words; beyond it nothing is looked at."""
_ID_MAX = 1_024
_TOKEN_MAX = 16 * 1024
_OTHERS_MAX = 4_096
_OURS = "chatgrpc."
LONG: Final = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})
"""Types of fields that have a length."""


class Sizes:
    """How long the fields of requests may be: entries of a repeated field, bytes or characters of another."""

    def __init__(self, limits: Limits) -> None:
        """
        Args:
            limits: of the rules, of which these are multiples.
        """
        texts = {
            "title": limits.title_chars_max * _NEAR,
            "picture_url": limits.picture_url_bytes_max * _NEAR,
            "display_name": limits.display_name_chars_max * _NEAR,
            "about": limits.about_chars_max * _NEAR,
            "name": limits.device_name_bytes_max * _NEAR,
            **dict.fromkeys(("token", "page_token"), _TOKEN_MAX),
            **dict.fromkeys(("chat_id", "user_id", "user_ids", "member_user_ids", "device_id", "client_message_id"), _ID_MAX),
        }
        chats_max = limits.chats_per_user_max + limits.groups_by_others_max + limits.groups_by_contacts_max
        counts = {
            "CreateGroupRequest.member_user_ids": limits.group_members_max * _NEAR,
            "AddMembersRequest.user_ids": limits.group_members_max * _NEAR,
            "ConnectRequest.frames": limits.frames_per_batch_max,
            "Hello.positions": _NEAR * chats_max,
            "Hello.features": 10_000,
            "WatchChats.chat_ids": _NEAR * chats_max,
            "WatchChats.user_ids": _NEAR * chats_max,
            "Heartbeat.heads": limits.heartbeat_heads_max * _NEAR,
        }
        self._texts = texts
        self._counts = {f"chatgrpc.v1.{name}": count_max for name, count_max in counts.items()}

    def of_text(self, field: FieldDescriptor) -> int:
        """Bytes, or characters, of a field, or of each entry of one.

        Raises:
            KeyError: nobody has said yet how long it may be; say it above.
        """
        return self._texts[field.name] if field.full_name.startswith(_OURS) else _OTHERS_MAX

    def of_count(self, field: FieldDescriptor) -> int:
        """Entries of a repeated field.

        Raises:
            KeyError: as above.
        """
        return self._counts[field.full_name] if field.full_name.startswith(_OURS) else _OTHERS_MAX

    def check_request(self, request: Message) -> None:
        """Looks at each field of a call's request.

        Raises:
            StatusError: INVALID_ARGUMENT, FIELD_TOO_LONG; says which field, and its limit.
        """
        for field, value in request.ListFields():
            if field.is_repeated:
                self._check(field, len(value), self.of_count(field))
            if field.type in LONG:
                self._check(field, max(map(len, value)) if field.is_repeated else len(value), self.of_text(field))
            elif field.message_type is not None and field.message_type is not CONTENT:
                for within in value if field.is_repeated else (value,):
                    self.check_request(within)

    def too_many(self, message: Message) -> str | None:
        """Looks at the counts in what came on a stream, whose texts sessions look at; says what is wrong, if anything is."""
        for field, value in message.ListFields():
            if field.is_repeated and len(value) > self.of_count(field):
                return f"{field.full_name} holds at most {self.of_count(field)}, not {len(value)}."
            if field.message_type is not None and _has_counts(field.message_type):
                for within in value if field.is_repeated else (value,):
                    if said := self.too_many(within):
                        return said
        return None

    def _check(self, field: FieldDescriptor, length: int, length_max: int) -> None:
        if length <= length_max:
            return
        raise StatusError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_TOO_LONG",
            f"{field.name} is far too long: {length}, of at most {length_max}. Send less.",
            {"field": field.full_name, "max": str(length_max)},
        )


@functools.cache
def _has_counts(message: Descriptor) -> bool:
    """Whether a repeated field is in it; a thousand entries without one are not gone through."""
    if message is CONTENT:
        return False
    return any(field.is_repeated or (field.message_type and _has_counts(field.message_type)) for field in message.fields)
