"""What of a content can be checked without knowing the chat: presence, form and size of its fields.

Whatever a peer sends is bounded here: sizes, counts, numbers and times, so that nobody who shows or stores it later meets what
cannot be shown or stored. Counts are looked at before what is counted.
"""

import re
from collections.abc import Iterable
from typing import Final

from chatgrpc.core.emoji import is_emoji
from chatgrpc.core.ids import is_chat_id, is_user_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.unknown_fields import flaw_of_content
from chatgrpc.v1 import chat_pb2, content_pb2

_HTTPS_URL = re.compile(r"https://[A-Za-z0-9\[][!#-;=?-\[\]_a-z~]*")  # no quotes, no angle brackets, no backslash

SEQ_MAX: Final = 2**53 - 1
"""The highest seq that the self chat may speak of, whose server does not look into the chat meant: what every language's
numbers, and every database's, can hold."""
TIME_MS_MAX: Final = 253_402_300_799_999
"""The end of the year 9999, the last that the date functions of most languages know."""


def check_unknown_fields(content: content_pb2.Content, limits: Limits) -> int:
    """Looks at the fields that this version does not know, before anything wraps the content; returns its size in bytes.

    Fields within those are not looked into by whoever does not know them. Sizes come first: each field that is looked at costs
    time.

    Raises:
        RefusedError: there is more of them than is handed on, or not every device could parse them.
    """
    size_bytes = content.ByteSize()
    _limit(size_bytes, limits.content_bytes_max, "the content")
    if size_bytes > limits.unknown_bytes_max:
        known = content_pb2.Content()
        known.CopyFrom(content)
        known.DiscardUnknownFields()
        _limit(size_bytes - known.ByteSize(), limits.unknown_bytes_max, "what the server does not know of the content")
    if flaw := flaw_of_content(content):
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, f"content holds {flaw}. Leave it out.")
    return size_bytes


def check_shape(content: content_pb2.Content, limits: Limits, *, unknown_checked: bool = False) -> int:
    """Checks what can be checked without knowing the chat: presence, kind and size of fields.

    Returns the content's size in bytes. `unknown_checked`: somebody has called `check_unknown_fields` already.

    Raises:
        RefusedError: the content can stand in no chat's log.
    """
    if unknown_checked:
        size_bytes = content.ByteSize()
        _limit(size_bytes, limits.content_bytes_max, "the content")
    else:
        size_bytes = check_unknown_fields(content, limits)
    if content.forward_count > limits.forward_count_max:
        raise RefusedError(
            chat_pb2.ERROR_CODE_INVALID_ARGUMENT,
            f"forward_count is too large: count no further than {limits.forward_count_max}.",
        )
    _check_arm(content, limits)
    return size_bytes


def _check_arm(content: content_pb2.Content, limits: Limits) -> None:
    match content.WhichOneof("body"):
        case "chat_created" | "members_added" | "chat_info_changed" | "member_muted":
            _check_change(content, limits)
        case "text":
            _require_text(content.text.text, limits)
        case "edit":
            _require_text(content.edit.text, limits)
            _require(content.edit.target_seq > 0, "edit.target_seq is missing: set it to the seq of the message to edit.")
        case "encrypted":
            _require(bool(content.encrypted.scheme), "encrypted.scheme is missing.")
            _limit(len(content.encrypted.scheme.encode()), limits.scheme_bytes_max, "encrypted.scheme")
            _limit(len(content.encrypted.scheme) + len(content.encrypted.ciphertext), limits.text_bytes_max, "the ciphertext")
        case "reaction":
            _require(content.reaction.target_seq > 0, "reaction.target_seq is missing: set it to a message's seq.")
            _check_emoji(content.reaction.emoji, limits)
        case "delete":
            _require(content.delete.target_seq > 0, "delete.target_seq is missing: set it to the message's seq.")
        case "hide":
            _check_hidden(content.hide, limits)
        case "chat_settings":
            _require(is_chat_id(content.chat_settings.chat_id), "chat_settings.chat_id is not a chat id.")
            _require_time(content.chat_settings.muted_until_ms, "chat_settings.muted_until_ms")
        case None:
            raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "content.body is missing: set one of its arms.")
        case "erased":
            raise RefusedError(chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, "Erased content cannot be sent; send a delete.")


def _check_change(content: content_pb2.Content, limits: Limits) -> None:
    """What ChatService asks for, as far as it brings more than ids that it has checked."""
    match content.WhichOneof("body"):
        case "chat_created":
            _check_group(content.chat_created, limits)
        case "members_added":
            _require(len(content.members_added.user_ids) > 0, "user_ids is empty: name the users to add.")
            _check_member_count(len(content.members_added.user_ids), limits)
            _check_user_ids(content.members_added.user_ids)
        case "chat_info_changed":
            changed = content.chat_info_changed
            changes = changed.HasField("title") or changed.HasField("picture_url")
            _require(changes, "Nothing to change: set title or picture_url.")
            if changed.HasField("title"):
                _check_title(changed.title, limits)
            check_picture_url(changed.picture_url, limits)
        case "member_muted":
            _require_time(content.member_muted.muted_until_ms, "muted_until_ms")


def _check_hidden(hidden: content_pb2.HideContent, limits: Limits) -> None:
    _require(is_chat_id(hidden.chat_id), "hide.chat_id is not a chat id.")
    _require(len(hidden.seqs) > 0, "hide.seqs is empty: name the messages to hide.")
    _limit(len(hidden.seqs), limits.hide_seqs_max, "hide.seqs", "entries")
    for seq in hidden.seqs:
        _require(0 < seq <= SEQ_MAX, "hide.seqs names what is no seq: they count from 1.")


def check_picture_url(url: str, limits: Limits) -> None:
    """Checks where clients are sent for a picture: nowhere (empty), or to an https URL as it stands on the wire.

    Raises:
        RefusedError: it is something else, or too long.
    """
    _limit(len(url.encode()), limits.picture_url_bytes_max, "picture_url")
    _require(
        not url or _HTTPS_URL.fullmatch(url) is not None,
        "picture_url is not an https URL. Write it like https://pictures.example/cat.png, with other characters than those of "
        "ASCII percent-encoded, or leave it empty.",
    )


def _check_emoji(emoji: str, limits: Limits) -> None:
    _limit(len(emoji.encode()), limits.reaction_bytes_max, "the reaction")
    _require(not emoji or is_emoji(emoji), "reaction.emoji is not one emoji. Send one, or nothing to take the reaction back.")


def _check_group(created: content_pb2.ChatCreatedContent, limits: Limits) -> None:
    if created.kind != content_pb2.CHAT_KIND_GROUP:
        raise RefusedError(chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, "Other chats come to be with their first message.")
    _check_title(created.title, limits)
    _check_member_count(len(created.members), limits)
    user_ids = [member.user_id for member in created.members]
    _check_user_ids(user_ids)
    _require(len(set(user_ids)) == len(user_ids), "A user is named twice among the members.")


def _check_member_count(count: int, limits: Limits) -> None:
    if count > limits.group_members_max:
        raise RefusedError(chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, f"A group has at most {limits.group_members_max} members.")


def _check_title(title: str, limits: Limits) -> None:
    _require(bool(title.strip()), "title is empty: give the group a name.")
    _limit(len(title), limits.title_chars_max, "title", "characters")


def _check_user_ids(user_ids: Iterable[str]) -> None:
    for user_id in user_ids:
        _require(is_user_id(user_id), "One of the user ids is none: 1 to 64 letters, digits and _ . @ + -")


def _require_time(time_ms: int, field: str) -> None:
    _require(
        0 <= time_ms <= TIME_MS_MAX,
        f"{field} is negative, or later than the year 9999: give milliseconds since the Unix epoch, or 0.",
    )


def _require_text(text: str, limits: Limits) -> None:
    _require(bool(text), "The text is empty.")
    if len(text) > limits.text_bytes_max // 4:  # else it is short enough in whatever characters
        _limit(len(text.encode()), limits.text_bytes_max, "the text")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, message)


def _limit(size: int, size_max: int, what: str, unit: str = "bytes") -> None:
    if size > size_max:
        raise RefusedError(chat_pb2.ERROR_CODE_TOO_LARGE, f"{what} has {size} {unit}; at most {size_max} are allowed.")
