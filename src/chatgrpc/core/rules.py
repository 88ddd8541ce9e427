"""Who may put what into a chat's log.

`complete` needs the chat's state, and returns the content as it will stand in the log; what can be told without the chat is
checked before (core/shape.py). Both raise `RefusedError`, whose message says what to do next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from chatgrpc.core.fold import CHANGES_CHAT, former_member_of, member_of
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

MEMBER = content_pb2.MEMBER_ROLE_MEMBER
ADMIN = content_pb2.MEMBER_ROLE_ADMIN
OWNER = content_pb2.MEMBER_ROLE_OWNER

MESSAGES = frozenset({"text", "reaction", "edit", "delete", "encrypted", "hide", "chat_settings"})
"""Arms that a user sends as a message; all others are written on their behalf by ChatService."""

_SELF_ONLY = frozenset({"hide", "chat_settings"})
_GROUP_ONLY = CHANGES_CHAT - {"chat_created"}
_ADMINS_ONLY = frozenset({"members_added", "chat_info_changed", "member_muted", "join_link_changed", "join_declined"})
_WHILE_MUTED = frozenset({"member_removed", "hide", "chat_settings", "delete"})


class EventMeta(NamedTuple):
    """What the owner remembers of an event: all but what was said, if it is no reaction."""

    seq: int
    message_id: bytes
    sender_user_id: str
    client_message_id: bytes
    sent_at_ms: int
    arm: str
    reaction: tuple[int, str] | None = None
    """Of a reaction: the seq of its target, and the emoji."""
    text: tuple[int, int] | None = None
    """Of a text and of an edit: the seq of the message, and the text's hash (of this process)."""


@dataclass(slots=True)
class Circumstances:
    """What `complete` judges by, besides the write. Not to be changed; see `Write`."""

    chat: chat_pb2.Chat
    sender: content_pb2.Member | None
    """The sender's place in the chat; None if they are not a member."""
    head_seq: int
    target: EventMeta | None
    """The event that the content refers to, for a reaction, an edit or a deletion, if there is one."""
    now_ms: int


def target_seq(content: content_pb2.Content, arm: str) -> int:
    """Seq of the event whose kind, sender and time decide about this content; 0 = none."""
    match arm:
        case "edit":
            return content.edit.target_seq
        case "delete":
            return content.delete.target_seq
        case "reaction":
            return content.reaction.target_seq
    return 0


def new_members(content: content_pb2.Content, arm: str) -> list[str]:
    """Users who would become members by this content."""
    match arm:
        case "chat_created":
            return [member.user_id for member in content.chat_created.members]
        case "members_added":
            return list(content.members_added.user_ids)
    return []


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
    if is_muted(sender, circumstances.now_ms) and arm not in _WHILE_MUTED:
        raise RefusedError(
            chat_pb2.ERROR_CODE_MUTED,
            f"You are muted in this chat for {duration(sender.muted_until_ms - circumstances.now_ms)} more.",
        )
    if content.reply_to_seq:
        _check_reference(content.reply_to_seq, sender, circumstances.head_seq)
    match arm:
        case "reaction":
            _check_reaction(circumstances.target, sender)
        case "edit":
            _check_edit(write, circumstances, limits)
        case "delete":
            _check_delete(write, circumstances, limits)
        case "members_added":
            return _complete_addition(write, chat, limits)
        case "member_removed":
            return _complete_removal(write, circumstances)
        case "role_changed" | "chat_info_changed" | "member_muted" | "join_link_changed":
            _check_setting(content, circumstances, limits)
        case "join_declined":
            _require_request(chat, [content.join_declined.user_id])
    return content


def is_muted(member: content_pb2.Member, now_ms: int) -> bool:
    """Whether the member may not write now. An owner may: who was muted and became one could be let write again by nobody."""
    return member.muted_until_ms > now_ms and member.role != OWNER


def not_a_member() -> RefusedError:
    """The refusal for a chat that does not exist, or is none of the sender's business: they are not told which."""
    return RefusedError(
        chat_pb2.ERROR_CODE_NOT_A_MEMBER, "There is no such chat, or you are not a member. Look at ChatService.ListChats."
    )


def nothing_to_change(message: str) -> RefusedError:
    """The refusal of what is so already: as an event, it would wake all devices of all members to say nothing."""
    return RefusedError(chat_pb2.ERROR_CODE_NOTHING_TO_CHANGE, message)


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


def _check_reaction(target: EventMeta | None, sender: content_pb2.Member) -> None:
    if target is None or target.arm not in {"text", "encrypted"} or target.seq < sender.joined_seq:
        raise RefusedError(
            chat_pb2.ERROR_CODE_TARGET_NOT_FOUND,
            "There is no message to react to at this seq, or it is deleted.",
        )


def _check_edit(write: Write, circumstances: Circumstances, limits: Limits) -> None:
    target = circumstances.target
    if target is None or target.sender_user_id != write.sender_user_id or target.arm != "text":
        raise RefusedError(
            chat_pb2.ERROR_CODE_TARGET_NOT_FOUND, "Only a text message of your own that is not deleted can be edited."
        )
    if circumstances.now_ms - target.sent_at_ms > limits.edit_window_ms:
        raise RefusedError(
            chat_pb2.ERROR_CODE_WINDOW_PASSED,
            f"A message can be edited for {duration(limits.edit_window_ms)} after it was sent.",
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
            f"A message can be deleted for everyone for {duration(limits.delete_window_ms)}; you can hide it.",
        )


def _complete_addition(write: Write, chat: chat_pb2.Chat, limits: Limits) -> content_pb2.Content:
    user_ids = write.content.members_added.user_ids
    if write.answers_request:
        _require_request(chat, user_ids)
    return _addition(user_ids, chat, limits)


def _addition(user_ids: Iterable[str], chat: chat_pb2.Chat, limits: Limits) -> content_pb2.Content:
    present = {member.user_id for member in chat.members}
    added = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in present]
    if not added:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "All of these users are members already.")
    if len(present) + len(added) > limits.group_members_max:
        raise RefusedError(
            chat_pb2.ERROR_CODE_LIMIT_EXCEEDED,
            f"A group has at most {limits.group_members_max} members; this has {len(present)}.",
        )
    memberships = {former.user_id: former.memberships for former in chat.former_members}
    for user_id in added:
        if memberships.get(user_id, 0) >= limits.memberships_per_chat_max:
            raise RefusedError(
                chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, f"{user_id} came and went too often, and cannot be let in here any more."
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
        removed.new_owner_user_id = _heir(chat, user_id, circumstances.now_ms)
    return content_pb2.Content(member_removed=removed)


def _heir(chat: chat_pb2.Chat, leaving_user_id: str, now_ms: int) -> str:
    """Who becomes owner when this one leaves; empty if there is another owner, or nobody. Members stand in order of joining.

    Somebody muted only if all are.
    """
    others = [member for member in chat.members if member.user_id != leaving_user_id]
    if not others or any(member.role == OWNER for member in others):
        return ""
    heirs = [member for member in others if not is_muted(member, now_ms)] or others
    admins = [member for member in heirs if member.role == ADMIN]
    return (admins or heirs)[0].user_id


def _check_setting(content: content_pb2.Content, circumstances: Circumstances, limits: Limits) -> None:
    match content.WhichOneof("body"):
        case "role_changed":
            _check_role_change(content.role_changed, circumstances)
        case "chat_info_changed":
            _check_info_change(content.chat_info_changed, circumstances.chat)
        case "member_muted":
            _check_mute(content.member_muted, circumstances, limits)
        case "join_link_changed":
            if not content.join_link_changed.HasField("join_link") and not circumstances.chat.HasField("join_link"):
                raise nothing_to_change("The group has no join link that could be revoked.")


def _check_role_change(change: content_pb2.RoleChangedContent, circumstances: Circumstances) -> None:
    if circumstances.sender is None or circumstances.sender.role < OWNER:
        raise RefusedError(chat_pb2.ERROR_CODE_FORBIDDEN, "Only an owner of the group gives and takes roles.")
    member = _require_member(circumstances.chat, change.user_id)
    if change.role not in {MEMBER, ADMIN, OWNER}:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "role is missing or unknown.")
    owners = sum(1 for other in circumstances.chat.members if other.role == OWNER)
    if member.role == OWNER and change.role != OWNER and owners == 1:
        raise RefusedError(chat_pb2.ERROR_CODE_FORBIDDEN, "A group keeps an owner: make someone else owner first.")
    if member.role == change.role:
        raise nothing_to_change("This member has the role already.")


def _check_info_change(changed: content_pb2.ChatInfoChangedContent, chat: chat_pb2.Chat) -> None:
    title_stays = not changed.HasField("title") or changed.title == chat.title
    picture_stays = not changed.HasField("picture_url") or changed.picture_url == chat.picture_url
    if title_stays and picture_stays:
        raise nothing_to_change("The group has this title and this picture already.")


def _check_mute(mute: content_pb2.MemberMutedContent, circumstances: Circumstances, limits: Limits) -> None:
    member = _require_member(circumstances.chat, mute.user_id)
    if circumstances.sender is None or circumstances.sender.role <= member.role:
        raise RefusedError(
            chat_pb2.ERROR_CODE_FORBIDDEN, "A member is muted by an admin, an admin by an owner, an owner by nobody."
        )
    if mute.muted_until_ms > circumstances.now_ms + limits.mute_ms_max:
        raise RefusedError(
            chat_pb2.ERROR_CODE_INVALID_ARGUMENT,
            f"muted_until_ms lies too far ahead: a member can be muted for {limits.mute_ms_max // 86_400_000} days at a time.",
        )
    until_ms, was_until_ms = (ms if ms > circumstances.now_ms else 0 for ms in (mute.muted_until_ms, member.muted_until_ms))
    if until_ms == was_until_ms:  # a mute that is over is none
        raise nothing_to_change("This member is muted until then already." if until_ms else "This member is not muted.")


def _complete_join(write: Write, circumstances: Circumstances, limits: Limits) -> content_pb2.Content:
    chat = circumstances.chat
    if not chat.HasField("join_link") or chat.join_link.token != write.join_token or not chat.members:
        raise link_invalid()  # a group that everyone left has nobody to answer for who comes in
    if circumstances.sender is not None:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "You are a member already.")
    user_id = write.sender_user_id
    if not chat.join_link.approval_required:
        former = former_member_of(chat, user_id)
        if former is not None and former.removed:
            raise RefusedError(
                chat_pb2.ERROR_CODE_FORBIDDEN, "You were removed from this group. Ask one of its admins to add you again."
            )
        return _addition([user_id], chat, limits)
    if user_id in chat.join_request_user_ids:
        raise RefusedError(chat_pb2.ERROR_CODE_INVALID_ARGUMENT, "You have asked already; an admin must let you in.")
    if len(chat.join_request_user_ids) >= limits.join_requests_max:
        raise RefusedError(chat_pb2.ERROR_CODE_LIMIT_EXCEEDED, "Too many wait to be let in. Ask an admin to answer them.")
    return content_pb2.Content(join_requested=content_pb2.JoinRequestedContent())


def _require_request(chat: chat_pb2.Chat, user_ids: Iterable[str]) -> None:
    if any(user_id not in chat.join_request_user_ids for user_id in user_ids):
        raise RefusedError(chat_pb2.ERROR_CODE_NOT_FOUND, "This user does not wait to be let in. AddMembers adds anyone.")


def _require_member(chat: chat_pb2.Chat, user_id: str) -> content_pb2.Member:
    member = member_of(chat, user_id)
    if member is None:
        raise RefusedError(chat_pb2.ERROR_CODE_NOT_FOUND, "This user is not a member of the group.")
    return member


def duration(ms: int) -> str:
    """A time span for people: in the largest unit of which there are two or more."""
    seconds = -(-ms // 1000)
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * unit_s:
            return f"{-(-seconds // unit_s)} {unit}"
    return f"{seconds} s"
