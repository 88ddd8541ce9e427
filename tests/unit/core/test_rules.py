"""Who may put what into a chat's log: each arm, role, kind of chat and limit."""

from typing import Any

import pytest

from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.events import event_chunk, history_chunk
from chatgrpc.core.ids import self_chat_id
from chatgrpc.core.lanes import EdgeLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.rules import (
    MESSAGES,
    Circumstances,
    EventMeta,
    check_kind,
    complete,
    new_members,
    target_seq,
)
from chatgrpc.core.shape import check_shape
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2, message_service_pb2, session_pb2

NOW_MS = 10_000_000_000
HEAD_SEQ = 20
LIMITS = Limits(
    text_bytes_max=10,
    content_bytes_max=2_000,
    group_members_max=8,
    title_chars_max=10,
    picture_url_bytes_max=20,
    hide_seqs_max=3,
    reaction_bytes_max=8,
    join_requests_max=2,
)
MEMBER, ADMIN, OWNER = content_pb2.MEMBER_ROLE_MEMBER, content_pb2.MEMBER_ROLE_ADMIN, content_pb2.MEMBER_ROLE_OWNER
GROUP, DIRECT, SELF = content_pb2.CHAT_KIND_GROUP, content_pb2.CHAT_KIND_DIRECT, content_pb2.CHAT_KIND_SELF
KEY = bytes(16)
BODY = content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"]


def content(arm: str, reply_to_seq: int = 0, **fields: Any) -> content_pb2.Content:
    made = content_pb2.Content(reply_to_seq=reply_to_seq)
    getattr(made, arm).SetInParent()
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(getattr(made, arm), name).extend(value)
        else:
            setattr(getattr(made, arm), name, value)
    return made


def group(kind: content_pb2.ChatKind.ValueType = GROUP) -> chat_pb2.Chat:
    """A group whose members are called after their roles, two of each."""
    chat = chat_pb2.Chat(chat_id="g.x", kind=kind, title="t", join_request_user_ids=["asker"])
    for role, name in ((OWNER, "owner"), (ADMIN, "admin"), (MEMBER, "member")):
        for number in ("", "2"):
            chat.members.add(user_id=name + number, role=role, joined_seq=5)
    chat.join_link.token = "secret"
    return chat


def head(seq: int, sender: str, arm: str = "text", age_ms: int = 0) -> EventMeta:
    return EventMeta(seq, KEY, sender, KEY, NOW_MS - age_ms, arm)


def decide(
    sender: str,
    wanted: content_pb2.Content,
    chat: chat_pb2.Chat | None = None,
    target: EventMeta | None = None,
    join_token: str = "",
) -> content_pb2.Content:
    chat = chat or group()
    members = {member.user_id: member for member in chat.members}
    write = Write(chat.chat_id, sender, wanted, KEY, None, join_token=join_token)
    if target is None and 0 < wanted.reaction.target_seq <= HEAD_SEQ:
        target = head(wanted.reaction.target_seq, "member2")
    return complete(write, Circumstances(chat, members.get(sender), HEAD_SEQ, target, NOW_MS), LIMITS)


def outcome(
    sender: str,
    wanted: content_pb2.Content,
    chat: chat_pb2.Chat | None = None,
    target: EventMeta | None = None,
    join_token: str = "",
) -> str:
    """OK, or the code it is refused with."""
    try:
        decide(sender, wanted, chat, target, join_token)
    except RefusedError as refused:
        return chat_pb2.ErrorCode.Name(refused.error.code).removeprefix("ERROR_CODE_")
    return "OK"


def shape(wanted: content_pb2.Content) -> str:
    try:
        check_shape(wanted, LIMITS)
    except RefusedError as refused:
        return chat_pb2.ErrorCode.Name(refused.error.code).removeprefix("ERROR_CODE_")
    return "OK"


# Roles.

OK, NO, OUT, NONE, BAD = "OK", "FORBIDDEN", "NOT_A_MEMBER", "NOT_FOUND", "INVALID_ARGUMENT"
LATEST_MUTE_MS = NOW_MS + LIMITS.mute_ms_max


@pytest.mark.parametrize(
    ("wanted", "of_owner", "of_admin", "of_member"),
    [
        (content("text", text="hi"), OK, OK, OK),
        (content("encrypted", scheme="s"), OK, OK, OK),
        (content("reaction", target_seq=6), OK, OK, OK),
        (content("members_added", user_ids=["new"]), OK, OK, NO),
        (content("member_removed", user_id="member2"), OK, OK, NO),
        (content("member_removed", user_id="admin2"), OK, NO, NO),
        (content("member_removed", user_id="owner2"), NO, NO, NO),
        (content("member_removed", user_id="nobody"), NONE, NONE, NONE),
        (content("role_changed", user_id="member2", role=ADMIN), OK, NO, NO),
        (content("role_changed", user_id="owner2", role=MEMBER), OK, NO, NO),
        (content("role_changed", user_id="nobody", role=ADMIN), NONE, NO, NO),
        (content("role_changed", user_id="member2", role=0), "INVALID_ARGUMENT", NO, NO),
        (content("role_changed", user_id="member2", role=9), "INVALID_ARGUMENT", NO, NO),
        (content("chat_info_changed", title="New"), OK, OK, NO),
        (content("member_muted", user_id="member2", muted_until_ms=NOW_MS + 1), OK, OK, NO),
        (content("member_muted", user_id="admin2", muted_until_ms=NOW_MS + 1), OK, NO, NO),
        (content("member_muted", user_id="owner2", muted_until_ms=NOW_MS + 1), NO, NO, NO),
        (content("member_muted", user_id="nobody"), NONE, NONE, NO),
        (content("member_muted", user_id="member2", muted_until_ms=LATEST_MUTE_MS), OK, OK, NO),
        (content("member_muted", user_id="member2", muted_until_ms=LATEST_MUTE_MS + 1), BAD, BAD, NO),
        (content("join_link_changed"), OK, OK, NO),
        (content("join_declined", user_id="asker"), OK, OK, NO),
        (content("join_declined", user_id="nobody"), NONE, NONE, NO),
    ],
    ids=lambda value: str(value).replace("\n", " ") if isinstance(value, content_pb2.Content) else None,
)
def test_roles(wanted: content_pb2.Content, of_owner: str, of_admin: str, of_member: str) -> None:
    assert [outcome(sender, wanted) for sender in ("owner", "admin", "member")] == [of_owner, of_admin, of_member]
    assert outcome("stranger", wanted) == OUT


@pytest.mark.parametrize("sender", ["owner", "admin", "member"])
def test_everyone_may_leave(sender: str) -> None:
    assert outcome(sender, content("member_removed", user_id=sender)) == OK


@pytest.mark.parametrize(
    ("members", "heir"),
    [
        ([("me", OWNER), ("m", MEMBER), ("a1", ADMIN), ("a2", ADMIN)], "a1"),
        ([("m1", MEMBER), ("me", OWNER), ("m2", MEMBER)], "m1"),
        ([("me", OWNER), ("other", OWNER), ("a", ADMIN)], ""),
        ([("me", OWNER)], ""),
        ([("me", ADMIN), ("m", MEMBER)], ""),
    ],
)
def test_the_last_owner_who_leaves_has_an_heir(members: list[tuple[str, Any]], heir: str) -> None:
    chat = chat_pb2.Chat(chat_id="g.x", kind=GROUP)
    for user_id, role in members:
        chat.members.add(user_id=user_id, role=role, joined_seq=1)
    removed = decide("me", content("member_removed", user_id="me", new_owner_user_id="m"), chat).member_removed
    assert removed == content_pb2.MemberRemovedContent(user_id="me", new_owner_user_id=heir), "the sender does not say who"


def test_a_group_keeps_an_owner() -> None:
    chat = group()
    del chat.members[1]
    assert outcome("owner", content("role_changed", user_id="owner", role=ADMIN), chat) == NO
    assert outcome("owner", content("role_changed", user_id="owner", role=OWNER), chat) == "NOTHING_TO_CHANGE"
    assert outcome("owner", content("role_changed", user_id="owner", role=ADMIN)) == OK, "there is another"


# Mutes.


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (content("text", text="hi"), "MUTED"),
        (content("encrypted", scheme="s"), "MUTED"),
        (content("reaction", target_seq=6), "MUTED"),
        (content("edit", target_seq=6, text="ho"), "MUTED"),
        (content("delete", target_seq=6), OK),
        (content("member_removed", user_id="member"), OK),
    ],
)
def test_who_is_muted_takes_back_and_leaves_but_says_nothing(wanted: content_pb2.Content, expected: str) -> None:
    chat = group()
    chat.members[4].muted_until_ms = NOW_MS + 1
    target = head(6, "member")
    assert outcome("member", wanted, chat, target) == expected
    chat.members[4].muted_until_ms = NOW_MS
    assert outcome("member", wanted, chat, target) == OK, "the mute is over"


def test_an_owner_is_muted_by_no_mute_of_before() -> None:
    """They were muted, then made owner: nobody could let them write again."""
    chat = group()
    chat.members[0].muted_until_ms = NOW_MS + 1
    assert outcome("owner", content("text", text="hi"), chat) == OK


@pytest.mark.parametrize(
    ("muted", "heir"),
    [({"a1"}, "a2"), ({"a1", "a2"}, "m"), ({"a1", "a2", "m"}, "a1")],
)
def test_nobody_muted_is_the_heir_if_there_is_another(muted: set[str], heir: str) -> None:
    chat = chat_pb2.Chat(chat_id="g.x", kind=GROUP)
    for user_id, role in (("me", OWNER), ("m", MEMBER), ("a1", ADMIN), ("a2", ADMIN)):
        chat.members.add(user_id=user_id, role=role, joined_seq=1, muted_until_ms=(NOW_MS + 1) * (user_id in muted))
    removed = decide("me", content("member_removed", user_id="me"), chat).member_removed
    assert removed.new_owner_user_id == heir


# References.


@pytest.mark.parametrize(("seq", "expected"), [(4, "TARGET_NOT_FOUND"), (5, OK), (20, OK), (21, "TARGET_NOT_FOUND")])
def test_replies_and_reactions_refer_to_what_the_sender_may_see(seq: int, expected: str) -> None:
    assert outcome("member", content("text", text="hi", reply_to_seq=seq)) == expected
    assert outcome("member", content("reaction", target_seq=seq)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (head(6, "member"), OK),
        (head(6, "member", age_ms=LIMITS.edit_window_ms), OK),
        (head(6, "member", age_ms=LIMITS.edit_window_ms + 1), "WINDOW_PASSED"),
        (head(6, "owner"), "TARGET_NOT_FOUND"),
        (head(6, "member", "encrypted"), "TARGET_NOT_FOUND"),
        (head(6, "member", "edit"), "TARGET_NOT_FOUND"),
        (head(6, "member", "erased"), "TARGET_NOT_FOUND"),
        (None, "TARGET_NOT_FOUND"),
    ],
)
def test_edits(target: EventMeta | None, expected: str) -> None:
    assert outcome("member", content("edit", target_seq=6, text="ho"), target=target) == expected


@pytest.mark.parametrize(
    ("sender", "kind", "target", "expected"),
    [
        ("member", GROUP, head(6, "member"), OK),
        ("member", GROUP, head(6, "member", "encrypted"), OK),
        ("member", GROUP, head(6, "member", age_ms=LIMITS.delete_window_ms), OK),
        ("member", GROUP, head(6, "member", age_ms=LIMITS.delete_window_ms + 1), "WINDOW_PASSED"),
        ("member", GROUP, head(6, "owner"), "FORBIDDEN"),
        ("admin", GROUP, head(6, "owner"), OK),
        ("owner", GROUP, head(6, "member", age_ms=LIMITS.delete_window_ms + 1), OK),
        ("owner", DIRECT, head(6, "member"), "FORBIDDEN"),
        ("owner", DIRECT, head(6, "owner", age_ms=LIMITS.delete_window_ms + 1), "WINDOW_PASSED"),
        ("owner", GROUP, head(4, "member"), "TARGET_NOT_FOUND"),
        ("member", GROUP, head(6, "member", "erased"), "TARGET_NOT_FOUND"),
        ("admin", GROUP, head(6, "member", "members_added"), "TARGET_NOT_FOUND"),
        ("admin", GROUP, head(6, "member", "reaction"), "TARGET_NOT_FOUND"),
        ("admin", GROUP, None, "TARGET_NOT_FOUND"),
    ],
)
def test_deletions(sender: str, kind: Any, target: EventMeta | None, expected: str) -> None:
    assert outcome(sender, content("delete", target_seq=6), group(kind), target) == expected


# Kinds of chats.


@pytest.mark.parametrize("kind", [DIRECT, GROUP, SELF])
def test_each_arm_belongs_into_its_kinds_of_chat(kind: content_pb2.ChatKind.ValueType) -> None:
    for_groups = {
        "members_added",
        "member_removed",
        "role_changed",
        "chat_info_changed",
        "member_muted",
        "join_link_changed",
        "join_requested",
        "join_declined",
    }
    for_self = {"hide", "chat_settings"}
    for field in content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields:
        if field.name == "erased":
            continue  # refused by its shape
        try:
            check_kind(field.name, kind)
            expected = OK
        except RefusedError as refused:
            expected = chat_pb2.ErrorCode.Name(refused.error.code).removeprefix("ERROR_CODE_")
        if (field.name in for_groups and kind != GROUP) or (field.name in for_self and kind != SELF):
            assert expected == "UNSUPPORTED_CONTENT", field.name
        elif field.name == "chat_created":
            assert expected == "INVALID_ARGUMENT"
        else:
            assert expected == OK, field.name


def test_messages_are_what_people_send() -> None:
    fields = content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields
    assert {field.name for field in fields if field.number < 16} == MESSAGES


# Adding, and joining by the link.


def test_only_those_are_added_who_are_not_there() -> None:
    added = decide("admin", content("members_added", user_ids=["new", "member", "new", "newer"])).members_added
    assert list(added.user_ids) == ["new", "newer"]
    assert outcome("admin", content("members_added", user_ids=["member", "owner"])) == "INVALID_ARGUMENT"


def test_a_group_has_a_greatest_size() -> None:
    assert outcome("admin", content("members_added", user_ids=["a", "b"])) == OK
    assert outcome("admin", content("members_added", user_ids=["a", "b", "c"])) == "LIMIT_EXCEEDED"
    assert outcome("admin", content("members_added", user_ids=["a", "b", "member"])) == OK


def test_the_link_lets_in() -> None:
    joined = decide("new", content("join_requested"), join_token="secret")
    assert list(joined.members_added.user_ids) == ["new"]


def test_the_link_may_only_let_ask() -> None:
    chat = group()
    chat.join_link.approval_required = True
    assert decide("new", content("join_requested"), chat, join_token="secret").HasField("join_requested")
    assert outcome("asker", content("join_requested"), chat, join_token="secret") == "INVALID_ARGUMENT", "asked already"
    chat.join_request_user_ids.append("another")
    assert outcome("new", content("join_requested"), chat, join_token="secret") == "LIMIT_EXCEEDED"


def test_links_that_let_nobody_in() -> None:
    assert outcome("new", content("join_requested"), join_token="wrong") == "LINK_INVALID"
    assert outcome("member", content("join_requested"), join_token="wrong") == "LINK_INVALID"
    assert outcome("member", content("join_requested"), join_token="secret") == "INVALID_ARGUMENT"
    revoked = group()
    revoked.ClearField("join_link")
    assert outcome("new", content("join_requested"), revoked) == "LINK_INVALID"
    deserted = group()
    del deserted.members[:]
    assert outcome("new", content("join_requested"), deserted, join_token="secret") == "LINK_INVALID"
    full = group()
    for user_id in ("a", "b"):
        full.members.add(user_id=user_id, role=MEMBER)
    assert outcome("new", content("join_requested"), full, join_token="secret") == "LIMIT_EXCEEDED"


# Shapes.


def created(*user_ids: str, title: str = "t", kind: content_pb2.ChatKind.ValueType = GROUP) -> content_pb2.Content:
    wanted = content("chat_created", kind=kind, title=title)
    for user_id in user_ids:
        wanted.chat_created.members.add(user_id=user_id)
    return wanted


CHAT_ID = self_chat_id("alice")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (content_pb2.Content(), "INVALID_ARGUMENT"),
        (content("erased"), "UNSUPPORTED_CONTENT"),
        (content("text"), "INVALID_ARGUMENT"),
        (content("text", text="x" * 10), OK),
        (content("text", text="x" * 11), "TOO_LARGE"),
        (content("text", text="ä" * 5), OK),
        (content("text", text="ä" * 6), "TOO_LARGE"),
        (content("edit", text="x"), "INVALID_ARGUMENT"),
        (content("edit", target_seq=1), "INVALID_ARGUMENT"),
        (content("edit", target_seq=1, text="x" * 11), "TOO_LARGE"),
        (content("edit", target_seq=1, text="x"), OK),
        (content("encrypted", ciphertext=b"x"), "INVALID_ARGUMENT"),
        (content("encrypted", scheme="s", ciphertext=b"x" * 9), OK),
        (content("encrypted", scheme="s", ciphertext=b"x" * 10), "TOO_LARGE"),
        (content("reaction", emoji="+"), "INVALID_ARGUMENT"),
        (content("reaction", target_seq=1), OK),
        (content("reaction", target_seq=1, emoji="👍"), OK),
        (content("reaction", target_seq=1, emoji="+"), "INVALID_ARGUMENT"),
        (content("reaction", target_seq=1, emoji="👍👍"), "INVALID_ARGUMENT"),
        (content("reaction", target_seq=1, emoji="x" * 9), "TOO_LARGE"),
        (content("delete"), "INVALID_ARGUMENT"),
        (content("delete", target_seq=1), OK),
        (content("hide", seqs=[1]), "INVALID_ARGUMENT"),
        (content("hide", chat_id=CHAT_ID), "INVALID_ARGUMENT"),
        (content("hide", chat_id=CHAT_ID, seqs=[1, 2, 3]), OK),
        (content("hide", chat_id=CHAT_ID, seqs=[1, 2, 3, 4]), "TOO_LARGE"),
        (content("chat_settings"), "INVALID_ARGUMENT"),
        (content("chat_settings", chat_id=CHAT_ID), OK),
        (created("alice", "bob"), OK),
        (created("alice", "alice"), "INVALID_ARGUMENT"),
        (created("not a user"), "INVALID_ARGUMENT"),
        (created(title=" "), "INVALID_ARGUMENT"),
        (created(title="ä" * 10), OK),
        (created(title="x" * 11), "TOO_LARGE"),
        (created(*"abcdefgh"), OK),
        (created(*"abcdefghi"), "LIMIT_EXCEEDED"),
        (created("alice", kind=DIRECT), "UNSUPPORTED_CONTENT"),
        (created("alice", kind=SELF), "UNSUPPORTED_CONTENT"),
        (content("members_added"), "INVALID_ARGUMENT"),
        (content("members_added", user_ids=["x y"]), "INVALID_ARGUMENT"),
        (content("members_added", user_ids=list("abcdefgh")), OK),
        (content("members_added", user_ids=list("abcdefghi")), "LIMIT_EXCEEDED"),
        (content("chat_info_changed"), "INVALID_ARGUMENT"),
        (content("chat_info_changed", title="t", picture_url="https://p.example/12"), OK),
        (content("chat_info_changed", title="t", picture_url="https://p.example/123"), "TOO_LARGE"),
        (content("chat_info_changed", picture_url="http://p.example"), "INVALID_ARGUMENT"),
        (content("member_removed"), OK),
        (content("role_changed"), OK),
        (content("member_muted"), OK),
        (content("join_link_changed"), OK),
        (content("join_requested"), OK),
        (content("join_declined"), OK),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:60] if isinstance(value, content_pb2.Content) else None,
)
def test_shapes(wanted: content_pb2.Content, expected: str) -> None:
    assert shape(wanted) == expected


def test_g7_fields_of_the_future_count_too() -> None:
    """Otherwise they would carry any number of bytes past every limit into the log and to every member."""
    wanted = content("text", text="hi").SerializeToString()
    known = content_pb2.Content.FromString(wanted + b"\xa2\x38" + b"\xc8\x0f" + b"x" * 1_992)  # field 900, 1,992 bytes
    assert known.ByteSize() > LIMITS.content_bytes_max
    assert shape(known) == "TOO_LARGE"
    small = content_pb2.Content.FromString(wanted + b"\xa2\x38" + b"\x02xx")
    assert shape(small) == OK


# Reactions.


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        *((arm, OK) for arm in ("text", "encrypted")),
        *((arm, "TARGET_NOT_FOUND") for arm in sorted({field.name for field in BODY.fields} - {"text", "encrypted"})),
    ],
)
def test_only_messages_are_reacted_to(arm: str, expected: str) -> None:
    assert outcome("member", content("reaction", target_seq=6, emoji="👍"), target=head(6, "member2", arm)) == expected


def test_nothing_from_before_one_came_is_reacted_to() -> None:
    assert outcome("member", content("reaction", target_seq=4, emoji="👍"), target=head(4, "member2")) == "TARGET_NOT_FOUND"


# Who was a member before.


def test_who_was_removed_comes_in_by_an_admin_only() -> None:
    chat = group()
    chat.former_members.add(user_id="gone", removed=True, memberships=1)
    chat.former_members.add(user_id="left", memberships=1)
    wanted = content("join_requested")
    assert outcome("gone", wanted, chat, join_token="secret") == NO
    assert outcome("left", wanted, chat, join_token="secret") == OK
    assert outcome("admin", content("members_added", user_ids=["gone"]), chat) == OK
    chat.join_link.approval_required = True
    del chat.join_request_user_ids[:]
    assert decide("gone", wanted, chat, join_token="secret").HasField("join_requested"), "an admin decides"


@pytest.mark.parametrize(("memberships", "expected"), [(99, OK), (100, "LIMIT_EXCEEDED")])
def test_g7_nobody_comes_in_any_number_of_times(memberships: int, expected: str) -> None:
    chat = group()
    chat.former_members.add(user_id="yo-yo", memberships=memberships)
    assert outcome("admin", content("members_added", user_ids=["new", "yo-yo"]), chat) == expected
    assert outcome("yo-yo", content("join_requested"), chat, join_token="secret") == expected


# What the sequencer asks.


def test_targets() -> None:
    assert target_seq(content("edit", target_seq=3), "edit") == 3
    assert target_seq(content("delete", target_seq=4), "delete") == 4
    assert target_seq(content("reaction", target_seq=5), "reaction") == 5
    assert target_seq(content("text", text="hi", reply_to_seq=6), "text") == 0


def test_new_members() -> None:
    assert new_members(created("alice", "bob"), "chat_created") == ["alice", "bob"]
    assert new_members(content("members_added", user_ids=["carol"]), "members_added") == ["carol"]
    assert new_members(content("text", text="hi"), "text") == []


# What is taken must parse wherever it is put.


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, *varint(value >> 7)]) if value > 0x7F else bytes([value])


def groups(depth: int) -> bytes:
    """A field that nobody knows: groups in groups, as deep as that."""
    return varint(900 << 3 | 3) * depth + varint(900 << 3 | 4) * depth


def blob(inside: bytes) -> bytes:
    """A field that nobody knows, of bytes."""
    return varint(901 << 3 | 2) + varint(len(inside)) + inside


def with_unknown(at_content: bytes = b"", in_arm: bytes = b"") -> content_pb2.Content:
    text = content_pb2.TextContent(text="hi").SerializeToString() + in_arm
    number = content_pb2.Content.TEXT_FIELD_NUMBER
    return content_pb2.Content.FromString(varint(number << 3 | 2) + varint(len(text)) + text + at_content)


@pytest.mark.parametrize("depth", [1, 2, 50, 90, 97])
def test_groups_are_refused_however_deep_they_are_nested(depth: int) -> None:
    limits = Limits()
    for made in (with_unknown(at_content=groups(depth)), with_unknown(in_arm=groups(depth))):
        with pytest.raises(RefusedError, match="holds a group") as refused:
            check_shape(made, limits)
        assert refused.value.error.code == chat_pb2.ERROR_CODE_INVALID_ARGUMENT


UNREADABLE = {
    "a number of more than 64 bits": varint(902 << 3) + b"\xff" * 9 + b"\x02",
    "the same behind others": blob(b"x") + varint(903 << 3 | 1) + bytes(8) + varint(904 << 3 | 5) + bytes(4)
    + varint(902 << 3) + b"\x80" * 9 + b"\x7f",
    "a field that is known, as a number": b"\x08\x01",
}  # fmt: skip
"""Of what our parser takes and keeps, what those of Go or Rust refuse together with all that it stands in."""


@pytest.mark.parametrize("unknown", UNREADABLE.values(), ids=UNREADABLE)
def test_what_other_parsers_refuse_is_refused(unknown: bytes) -> None:
    for made in (with_unknown(at_content=unknown), with_unknown(in_arm=unknown)):
        assert unknown in made.SerializeToString(), "our parser keeps it"
        with pytest.raises(RefusedError, match="content holds"):
            check_shape(made, Limits())


@pytest.mark.parametrize("number", [0, 1, 2**32, 2**64 - 1])
def test_numbers_that_nobody_knows_are_kept(number: int) -> None:
    made = with_unknown(at_content=varint(902 << 3) + varint(number), in_arm=varint(902 << 3) + varint(number))
    check_shape(made, Limits())


def test_unknown_fields_are_bounded_before_each_is_looked_at() -> None:
    limits = Limits()
    small = varint(902 << 3) + b"\x01"
    check_shape(with_unknown(at_content=small * 1_000), limits)
    for made in (with_unknown(at_content=small * 2_000), with_unknown(in_arm=small * 2_000), with_unknown(small * 300_000)):
        with pytest.raises(RefusedError) as refused:
            check_shape(made, limits)
        assert refused.value.error.code == chat_pb2.ERROR_CODE_TOO_LARGE
    long_text = content_pb2.Content(text=content_pb2.TextContent(text="x" * limits.text_bytes_max))
    long_text.MergeFromString(small)
    check_shape(long_text, limits)


def test_other_fields_that_nobody_knows_are_kept_and_parse_in_every_answer() -> None:
    made = with_unknown(at_content=blob(groups(99)), in_arm=blob(groups(99)))
    check_shape(made, Limits())
    event = chat_pb2.ChatEvent(chat_id="g.x", seq=1, content=made).SerializeToString()
    pushed = session_pb2.ConnectResponse.FromString(event_chunk(event))
    page = session_pb2.ConnectResponse.FromString(history_chunk(1, session_pb2.HistoryPage(chat_id="g.x"), [event]))
    listed = message_service_pb2.ListMessagesResponse()
    listed.events.add().MergeFromString(event)
    listed = message_service_pb2.ListMessagesResponse.FromString(listed.SerializeToString())
    read = message_service_pb2.GetMessageResponse(event=chat_pb2.ChatEvent.FromString(event))
    read = message_service_pb2.GetMessageResponse.FromString(read.SerializeToString())
    found = [pushed.frames[0].event, page.frames[0].history_page.events[0], listed.events[0], read.event]
    assert [one.content for one in found] == [made] * 4


def test_the_edge_refuses_groups_before_a_link_wraps_them() -> None:
    edge = EdgeDesk("edge", EdgeLanes(100, 1_000), lambda chat_id: 1, 100, 100)
    edge.see({1: ShardOwner("owner", 1)}, 0)
    edge.submit("s", "ticket", Write("c", "alice", with_unknown(at_content=groups(98)), KEY, 0), 0)
    output = edge.step(0)
    ((ticket, _, outcome),) = output.answers
    assert (ticket, type(outcome)) == ("ticket", chat_pb2.Error)
    assert output.messages == []


def test_what_is_so_already_is_no_event() -> None:
    chat = group()
    chat.picture_url = "https://p"
    for member in chat.members:
        if member.user_id == "member":
            member.muted_until_ms = NOW_MS + 5
    nothing = "NOTHING_TO_CHANGE"
    for wanted, expected in (
        (content("role_changed", user_id="member", role=MEMBER), nothing),
        (content("role_changed", user_id="admin", role=ADMIN), nothing),
        (content("role_changed", user_id="owner2", role=OWNER), nothing),
        (content("role_changed", user_id="member", role=ADMIN), OK),
        (content("member_muted", user_id="member", muted_until_ms=NOW_MS + 5), nothing),
        (content("member_muted", user_id="member", muted_until_ms=NOW_MS + 6), OK),
        (content("member_muted", user_id="member"), OK),
        (content("member_muted", user_id="member2"), nothing),
        (content("member_muted", user_id="member2", muted_until_ms=NOW_MS), nothing),
        (content("chat_info_changed", title="t"), nothing),
        (content("chat_info_changed", picture_url="https://p"), nothing),
        (content("chat_info_changed", title="t", picture_url="https://p"), nothing),
        (content("chat_info_changed", title="t", picture_url=""), OK),
        (content("chat_info_changed", title="T", picture_url="https://p"), OK),
        (content("join_link_changed"), OK),
    ):
        assert outcome("owner", wanted, chat) == expected, wanted
    chat.ClearField("join_link")
    assert outcome("owner", content("join_link_changed"), chat) == nothing
    assert outcome("member2", content("chat_info_changed", title="t"), chat) == NO, "who may not learns nothing else"
