"""The fold: a chat's state is what its events make of it, one after the other.

The server's views, the clients' local copies and the snapshots on the wire all come from this one function, so
`apply(events, stale snapshot) == fresh snapshot` holds by construction, and a test holds it to that.
"""

from chatgrpc.v1 import chat_pb2, content_pb2

CHANGES_CHAT = frozenset(
    {
        "chat_created",
        "members_added",
        "member_removed",
        "role_changed",
        "chat_info_changed",
        "member_muted",
        "join_link_changed",
        "join_requested",
        "join_declined",
    }
)
"""Arms of `Content.body` that change the state of their chat; all others are messages."""

FORMER_MEMBERS_MAX = 512
"""Former members that a chat remembers. A part of the fold, and so no setting: every copy of the state must be the same."""


def apply_event(chat: chat_pb2.Chat, event: chat_pb2.ChatEvent) -> bool:
    """Applies an event to a chat's state, in place; returns whether it changed anything.

    Events at or below `chat.as_of_seq` are in the state already and change nothing; nor do messages, so `as_of_seq` is the
    seq of the last event that changed the state. Events above must come in order.
    """
    arm = event.content.WhichOneof("body")
    if event.seq <= chat.as_of_seq or arm not in CHANGES_CHAT:
        return False
    content = event.content
    match arm:
        case "chat_created":
            _create(chat, event, content.chat_created)
        case "members_added":
            _add(chat, event, content.members_added)
        case "member_removed":
            _remove(chat, event, content.member_removed)
        case "role_changed":
            _member_changed(chat, content.role_changed.user_id, role=content.role_changed.role)
        case "chat_info_changed":
            _info_changed(chat, content.chat_info_changed)
        case "member_muted":
            muted = content.member_muted
            _member_changed(chat, muted.user_id, muted_until_ms=muted.muted_until_ms)
        case "join_link_changed":
            chat.ClearField("join_link")
            if content.join_link_changed.HasField("join_link"):
                chat.join_link.CopyFrom(content.join_link_changed.join_link)
        case "join_requested":
            chat.join_request_user_ids.append(event.sender_user_id)
        case "join_declined":
            _forget_request(chat, content.join_declined.user_id)
    chat.as_of_seq = event.seq
    return True


def member_of(chat: chat_pb2.Chat, user_id: str) -> content_pb2.Member | None:
    """The user's place in the chat; None if they are not a member."""
    for member in chat.members:
        if member.user_id == user_id:
            return member
    return None


def former_member_of(chat: chat_pb2.Chat, user_id: str) -> content_pb2.FormerMember | None:
    """What the chat remembers of a user who is a member no more; None if nothing."""
    for former in chat.former_members:
        if former.user_id == user_id:
            return former
    return None


def _create(chat: chat_pb2.Chat, event: chat_pb2.ChatEvent, created: content_pb2.ChatCreatedContent) -> None:
    chat.chat_id = event.chat_id
    chat.kind = created.kind
    chat.title = created.title
    chat.members.extend(created.members)
    chat.created_at_ms = event.sent_at_ms
    chat.creator_user_id = event.sender_user_id


def _add(chat: chat_pb2.Chat, event: chat_pb2.ChatEvent, added: content_pb2.MembersAddedContent) -> None:
    former_members = {former.user_id: former for former in chat.former_members}  # hundreds may come back of hundreds who left
    added_ids = set(added.user_ids)
    came_back = former_members.keys() & added_ids
    for user_id in added.user_ids:
        member = chat.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER, joined_seq=event.seq)
        former = former_members.get(user_id)
        if former is not None:
            member.earlier_memberships = former.memberships
            if former.muted_until_ms > event.sent_at_ms:
                member.muted_until_ms = former.muted_until_ms
    if came_back:
        still_away = [former for former in chat.former_members if former.user_id not in came_back]
        del chat.former_members[:]
        chat.former_members.extend(still_away)
    if chat.join_request_user_ids:
        chat.join_request_user_ids[:] = [user_id for user_id in chat.join_request_user_ids if user_id not in added_ids]


def _remove(chat: chat_pb2.Chat, event: chat_pb2.ChatEvent, removed: content_pb2.MemberRemovedContent) -> None:
    for member in chat.members:
        if member.user_id == removed.user_id:
            chat.former_members.add(
                user_id=member.user_id,
                removed=event.sender_user_id != member.user_id,
                muted_until_ms=member.muted_until_ms if member.muted_until_ms > event.sent_at_ms else 0,
                memberships=member.earlier_memberships + 1,
            )
            chat.members.remove(member)
            break
    if len(chat.former_members) > FORMER_MEMBERS_MAX:
        least = min(chat.former_members, key=lambda former: (former.removed, former.muted_until_ms > event.sent_at_ms))
        chat.former_members.remove(least)  # the oldest of its kind: `min` takes the first
    if removed.new_owner_user_id:
        _member_changed(chat, removed.new_owner_user_id, role=content_pb2.MEMBER_ROLE_OWNER)


def _member_changed(
    chat: chat_pb2.Chat,
    user_id: str,
    role: content_pb2.MemberRole.ValueType | None = None,
    muted_until_ms: int | None = None,
) -> None:
    member = member_of(chat, user_id)
    if member is None:
        return
    if role is not None:
        member.role = role
    if muted_until_ms is not None:
        member.muted_until_ms = muted_until_ms


def _info_changed(chat: chat_pb2.Chat, changed: content_pb2.ChatInfoChangedContent) -> None:
    if changed.HasField("title"):
        chat.title = changed.title
    if changed.HasField("picture_url"):
        chat.picture_url = changed.picture_url


def _forget_request(chat: chat_pb2.Chat, user_id: str) -> None:
    if user_id in chat.join_request_user_ids:
        chat.join_request_user_ids.remove(user_id)
