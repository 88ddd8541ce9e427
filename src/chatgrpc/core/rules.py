"""Who may put what into a chat's log.

`check_shape` needs nothing but the content; `complete` needs the chat's state, and returns the content as it will stand in the
log. Both raise `RefusedError`, whose message says what to do next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from chatgrpc.core.fold import CHANGES_CHAT
from chatgrpc.core.ids import is_chat_id, is_user_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

MEMBER = content_pb2.MEMBER_ROLE_MEMBER
ADMIN = content_pb2.MEMBER_ROLE_ADMIN
OWNER = content_pb2.MEMBER_ROLE_OWNER

MESSAGES = frozenset({"text", "reaction", "edit", "delete", "encrypted", "hide", "chat_settings"})
"""Arms that a user sends as a message; all others are written on their behalf by ChatService."""

_GROUP = 3
"""The wire type that begins a group (protobuf's encoding guide)."""
_SELF_ONLY = frozenset({"hide", "chat_settings"})
_GROUP_ONLY = CHANGES_CHAT - {"chat_created"}
_ADMINS_ONLY = frozenset({"members_added", "chat_info_changed", "member_muted", "join_link_changed", "join_declined"})
_WHILE_MUTED = frozenset({"member_removed", "hide", "chat_settings", "delete"})


class EventHead(NamedTuple):
    """What the owner remembers of an event: all but what was said."""

    seq: int
    message_id: bytes
    sender_user_id: str
    client_message_id: bytes
    sent_at_ms: int
    arm: str


@dataclass(slots=True)
class Circumstances:
    """What `complete` judges by, besides the write. Not to be changed; see `Write`."""

    chat: chat_pb2.Chat
    sender: content_pb2.Member | None
    """The sender's place in the chat; None if they are not a member."""
    head_seq: int
    target: EventHead | None
    """The event that the content refers to, for an edit or a deletion, if there is one."""
    now_ms: int


def target_seq(content: content_pb2.Content, arm: str) -> int:
    """Seq of the event whose sender and time decide about this content; 0 = none."""
    match arm:
        case "edit":
            return content.edit.target_seq
        case "delete":
            return content.delete.target_seq
    return 0


def new_members(content: content_pb2.Content, arm: str) -> list[str]:
    """Users who would become members by this content."""
    match arm:
        case "chat_created":
            return [member.user_id for member in content.chat_created.members]
        case "members_added":
            return list(content.members_added.user_ids)
    return []


def check_depth(content: content_pb2.Content) -> None:
    """Refuses groups among the fields that this version does not know.

    They may be nested so deep that what is taken does not parse any more inside an answer, which wraps it once more than a send
    did: parsers stop at a hundred levels. Fields of other kinds are not looked into by whoever does not know them. No version
    of this API has groups, and of contents that users write only the arm has fields beside the content's own.

    Raises:
        RefusedError: there is one.
    """
    arm = content.WhichOneof("body")
    if _has_group(content) or (arm is not None and _has_group(getattr(content, arm))):
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "content holds a group, an old kind of field. Leave it out.")


def _has_group(message: Message) -> bool:
    unknown = UnknownFieldSet(message)
    return any(unknown[index].wire_type == _GROUP for index in range(len(unknown)))


def check_shape(content: content_pb2.Content, limits: Limits) -> None:
    """Checks what can be checked without knowing the chat: presence, kind and size of fields."""
    check_depth(content)
    _limit(content.ByteSize(), limits.content_bytes_max, "the content")  # with fields that this version does not know
    match content.WhichOneof("body"):
        case "text":
            _require_text(content.text.text, limits)
        case "edit":
            _require_text(content.edit.text, limits)
            _require(content.edit.target_seq > 0, "edit.target_seq is missing: set it to the seq of the message to edit.")
        case "encrypted":
            _require(bool(content.encrypted.scheme), "encrypted.scheme is missing.")
            _limit(len(content.encrypted.scheme) + len(content.encrypted.ciphertext), limits.text_bytes_max, "the ciphertext")
        case "reaction":
            _require(content.reaction.target_seq > 0, "reaction.target_seq is missing: set it to a message's seq.")
            _limit(len(content.reaction.emoji.encode()), limits.reaction_bytes_max, "the reaction")
        case "delete":
            _require(content.delete.target_seq > 0, "delete.target_seq is missing: set it to the message's seq.")
        case "hide":
            _require(is_chat_id(content.hide.chat_id), "hide.chat_id is not a chat id.")
            _require(len(content.hide.seqs) > 0, "hide.seqs is empty: name the messages to hide.")
            _limit(len(content.hide.seqs), limits.hide_seqs_max, "hide.seqs", "entries")
        case "chat_settings":
            _require(is_chat_id(content.chat_settings.chat_id), "chat_settings.chat_id is not a chat id.")
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
            _limit(len(changed.picture_url.encode()), limits.picture_url_bytes_max, "picture_url")
        case None:
            raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "content.body is missing: set one of its arms.")
        case "erased":
            raise RefusedError(chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, "Erased content cannot be sent; send a delete.")


def complete(write: Write, circumstances: Circumstances, limits: Limits) -> content_pb2.Content:
    """Checks whether the sender may put this content into the chat, and completes it.

    Raises:
        RefusedError: they may not.
    """
    chat, sender = circumstances.chat, circumstances.sender
    content = write.content
    arm = content.WhichOneof("body") or ""
    if arm == "join_requested":
        return _complete_join(write, circumstances, limits)
    if sender is None:
        raise not_a_member()
    check_kind(arm, chat.kind)
    if arm in _ADMINS_ONLY and sender.role < ADMIN:
        raise RefusedError(chat_pb2.ERROR_CODE_FORBIDDEN, "Only an admin of the group may do this.")
    if sender.muted_until_ms > circumstances.now_ms and arm not in _WHILE_MUTED:
        raise RefusedError(
            chat_pb2.ERROR_CODE_MUTED,
            f"You are muted in this chat until {sender.muted_until_ms} (milliseconds since the Unix epoch).",
        )
    if content.reply_to_seq:
        _check_reference(content.reply_to_seq, sender, circumstances.head_seq)
    match arm:
        case "reaction":
            _check_reference(content.reaction.target_seq, sender, circumstances.head_seq)
        case "edit":
            _check_edit(write, circumstances, limits)
        case "delete":
            _check_delete(write, circumstances, limits)
        case "members_added":
            return _complete_addition(content, chat, limits)
        case "member_removed":
            return _complete_removal(write, circumstances)
        case "role_changed":
            _check_role_change(content.role_changed, circumstances)
        case "member_muted":
            _check_mute(content.member_muted, circumstances)
        case "join_declined" if content.join_declined.user_id not in chat.join_request_user_ids:
            raise RefusedError(chat_pb2.ERROR_CODE_NOT_FOUND, "This user does not wait to be let in.")
    return content


def not_a_member() -> RefusedError:
    """The refusal for a chat that does not exist, or is none of the sender's business: they are not told which."""
    return RefusedError(
        chat_pb2.ERROR_CODE_NOT_A_MEMBER, "There is no such chat, or you are not a member. Look at ChatService.ListChats."
    )


def link_invalid() -> RefusedError:
    """The refusal for a join link that lets nobody in."""
    return RefusedError(chat_pb2.ERROR_CODE_LINK_INVALID, "The join link is not valid, or not any more. Ask for a new one.")


def check_kind(arm: str, kind: content_pb2.ChatKind.ValueType) -> None:
    """Checks whether this arm belongs into a chat of this kind, which exists."""
    if arm in _GROUP_ONLY and kind != content_pb2.CHAT_KIND_GROUP:
        raise RefusedError(chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, "Only a group has members to manage, a title or a link.")
    if arm in _SELF_ONLY and kind != content_pb2.CHAT_KIND_SELF:
        raise RefusedError(chat_pb2.ERROR_CODE_UNSUPPORTED_CONTENT, "This is for your self chat: send it to your own user id.")
    if arm == "chat_created":
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "The chat exists already.")


def _check_reference(seq: int, sender: content_pb2.Member, head_seq: int) -> None:
    if not sender.joined_seq <= seq <= head_seq:
        raise RefusedError(chat_pb2.ERROR_CODE_TARGET_NOT_FOUND, f"There is no message {seq} that you may see in this chat.")


def _check_edit(write: Write, circumstances: Circumstances, limits: Limits) -> None:
    target = circumstances.target
    if target is None or target.sender_user_id != write.sender_user_id or target.arm != "text":
        raise RefusedError(
            chat_pb2.ERROR_CODE_TARGET_NOT_FOUND, "Only a text message of your own that is not deleted can be edited."
        )
    if circumstances.now_ms - target.sent_at_ms > limits.edit_window_ms:
        raise RefusedError(
            chat_pb2.ERROR_CODE_WINDOW_PASSED,
            f"A message can be edited for {limits.edit_window_ms // 1000} s after it was sent.",
        )


def _check_delete(write: Write, circumstances: Circumstances, limits: Limits) -> None:
    target, sender = circumstances.target, circumstances.sender
    if target is None or sender is None or target.arm not in {"text", "encrypted"} or target.seq < sender.joined_seq:
        raise RefusedError(chat_pb2.ERROR_CODE_TARGET_NOT_FOUND, "There is no message to delete at this seq.")
    if sender.role >= ADMIN and circumstances.chat.kind == content_pb2.CHAT_KIND_GROUP:
        return
    if target.sender_user_id != write.sender_user_id:
        raise RefusedError(
            chat_pb2.ERROR_CODE_FORBIDDEN, "Only its sender or an admin may delete a message for everyone; you can hide it."
        )
    if circumstances.now_ms - target.sent_at_ms > limits.delete_window_ms:
        raise RefusedError(
            chat_pb2.ERROR_CODE_WINDOW_PASSED,
            f"A message can be deleted for everyone for {limits.delete_window_ms // 1000} s; you can hide it.",
        )


def _complete_addition(content: content_pb2.Content, chat: chat_pb2.Chat, limits: Limits) -> content_pb2.Content:
    present = {member.user_id for member in chat.members}
    added = [user_id for user_id in dict.fromkeys(content.members_added.user_ids) if user_id not in present]
    if not added:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "All of these users are members already.")
    if len(present) + len(added) > limits.group_members_max:
        raise RefusedError(
            chat_pb2.ERROR_CODE_LIMIT_EXCEEDED,
            f"A group has at most {limits.group_members_max} members; this has {len(present)}.",
        )
    return content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=added))


def _complete_removal(write: Write, circumstances: Circumstances) -> content_pb2.Content:
    chat, sender = circumstances.chat, circumstances.sender
    user_id = write.content.member_removed.user_id
    member = _require_member(chat, user_id)
    leaves = user_id == write.sender_user_id
    if not leaves and (sender is None or sender.role < ADMIN or sender.role <= member.role):
        raise RefusedError(
            chat_pb2.ERROR_CODE_FORBIDDEN, "A member is removed by an admin, an admin by an owner, an owner by nobody."
        )
    removed = content_pb2.MemberRemovedContent(user_id=user_id)
    if leaves and member.role == OWNER:
        removed.new_owner_user_id = _heir(chat, user_id)
    return content_pb2.Content(member_removed=removed)


def _heir(chat: chat_pb2.Chat, leaving_user_id: str) -> str:
    """Who becomes owner when this one leaves; empty if there is another owner, or nobody. Members stand in order of joining."""
    others = [member for member in chat.members if member.user_id != leaving_user_id]
    if not others or any(member.role == OWNER for member in others):
        return ""
    admins = [member for member in others if member.role == ADMIN]
    return (admins or others)[0].user_id


def _check_role_change(change: content_pb2.RoleChangedContent, circumstances: Circumstances) -> None:
    if circumstances.sender is None or circumstances.sender.role < OWNER:
        raise RefusedError(chat_pb2.ERROR_CODE_FORBIDDEN, "Only an owner of the group gives and takes roles.")
    member = _require_member(circumstances.chat, change.user_id)
    if change.role not in {MEMBER, ADMIN, OWNER}:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "role is missing or unknown.")
    owners = sum(1 for other in circumstances.chat.members if other.role == OWNER)
    if member.role == OWNER and change.role != OWNER and owners == 1:
        raise RefusedError(chat_pb2.ERROR_CODE_FORBIDDEN, "A group keeps an owner: make someone else owner first.")


def _check_mute(mute: content_pb2.MemberMutedContent, circumstances: Circumstances) -> None:
    member = _require_member(circumstances.chat, mute.user_id)
    if circumstances.sender is None or circumstances.sender.role <= member.role:
        raise RefusedError(
            chat_pb2.ERROR_CODE_FORBIDDEN, "A member is muted by an admin, an admin by an owner, an owner by nobody."
        )
    _require(mute.muted_until_ms >= 0, "muted_until_ms is negative.")


def _complete_join(write: Write, circumstances: Circumstances, limits: Limits) -> content_pb2.Content:
    chat = circumstances.chat
    if not chat.HasField("join_link") or chat.join_link.token != write.join_token or not chat.members:
        raise link_invalid()  # a group that everyone left has nobody to answer for who comes in
    if circumstances.sender is not None:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "You are a member already.")
    user_id = write.sender_user_id
    if not chat.join_link.approval_required:
        wanted = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=[user_id]))
        return _complete_addition(wanted, chat, limits)
    if user_id in chat.join_request_user_ids:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "You have asked already; an admin must let you in.")
    if len(chat.join_request_user_ids) >= limits.join_requests_max:
        raise RefusedError(chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, "Too many wait to be let in. Ask an admin to answer them.")
    return content_pb2.Content(join_requested=content_pb2.JoinRequestedContent())


def _require_member(chat: chat_pb2.Chat, user_id: str) -> content_pb2.Member:
    for member in chat.members:
        if member.user_id == user_id:
            return member
    raise RefusedError(chat_pb2.ERROR_CODE_NOT_FOUND, "This user is not a member of the group.")


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
        _require(is_user_id(user_id), f"{user_id!r} is not a user id: 1 to 64 letters, digits and _ . @ + -")


def _require_text(text: str, limits: Limits) -> None:
    _require(bool(text), "The text is empty.")
    _limit(len(text.encode()), limits.text_bytes_max, "the text")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, message)


def _limit(size: int, size_max: int, what: str, unit: str = "bytes") -> None:
    if size > size_max:
        raise RefusedError(chat_pb2.ERROR_CODE_TOO_LARGE, f"{what} has {size} {unit}; at most {size_max} are allowed.")
