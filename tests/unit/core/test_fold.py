"""apply(events, stale snapshot) == fresh snapshot, and what each event makes of a chat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.fold import CHANGES_CHAT, FORMER_MEMBERS_MAX, apply_event, member_of
from chatgrpc.v1 import chat_pb2, content_pb2

USERS = ["alice", "bob", "carol", "dave"]
OWNER, ADMIN, MEMBER = content_pb2.MEMBER_ROLE_OWNER, content_pb2.MEMBER_ROLE_ADMIN, content_pb2.MEMBER_ROLE_MEMBER
users = st.sampled_from(USERS)


def content(**arm: object) -> content_pb2.Content:
    return content_pb2.Content(**arm)  # type: ignore[arg-type]


contents = st.one_of(
    st.sets(users, min_size=1).map(lambda ids: content(members_added=content_pb2.MembersAddedContent(user_ids=sorted(ids)))),
    st.tuples(users, st.sampled_from(["", *USERS])).map(
        lambda who: content(member_removed=content_pb2.MemberRemovedContent(user_id=who[0], new_owner_user_id=who[1]))
    ),
    st.tuples(users, st.sampled_from([MEMBER, ADMIN, OWNER])).map(
        lambda change: content(role_changed=content_pb2.RoleChangedContent(user_id=change[0], role=change[1]))
    ),
    st.text(max_size=5).map(lambda title: content(chat_info_changed=content_pb2.ChatInfoChangedContent(title=title))),
    st.tuples(users, st.integers(0, 9)).map(
        lambda mute: content(member_muted=content_pb2.MemberMutedContent(user_id=mute[0], muted_until_ms=mute[1]))
    ),
    st.booleans().map(
        lambda on: content(
            join_link_changed=content_pb2.JoinLinkChangedContent(
                join_link=content_pb2.JoinLink(token="t", approval_required=True) if on else None
            )
        )
    ),
    st.just(content(join_requested=content_pb2.JoinRequestedContent())),
    users.map(lambda user_id: content(join_declined=content_pb2.JoinDeclinedContent(user_id=user_id))),
    st.just(content(text=content_pb2.TextContent(text="hi"))),
    st.just(content(erased=content_pb2.ErasedContent())),
    st.just(content_pb2.Content()),
)


def created(*user_ids: str) -> content_pb2.Content:
    members = [content_pb2.Member(user_id=user_id, role=MEMBER, joined_seq=1) for user_id in user_ids]
    return content(
        chat_created=content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="Friends", members=members)
    )


def log(contents: list[tuple[str, content_pb2.Content]]) -> list[chat_pb2.ChatEvent]:
    return [
        chat_pb2.ChatEvent(chat_id="g.x", seq=seq, sender_user_id=sender, sent_at_ms=100 * seq, content=content)
        for seq, (sender, content) in enumerate(contents, start=1)
    ]


def fold(events: list[chat_pb2.ChatEvent], chat: chat_pb2.Chat | None = None) -> chat_pb2.Chat:
    chat = chat or chat_pb2.Chat()
    for event in events:
        apply_event(chat, event)
    return chat


def group(*contents: content_pb2.Content, sender: str = "alice") -> chat_pb2.Chat:
    """Alice's and bob's group after these events."""
    return fold(log([("alice", created("alice", "bob")), *((sender, content) for content in contents)]))


@given(st.lists(st.tuples(users, contents), max_size=15), st.data())
def test_events_on_a_stale_snapshot_make_the_fresh_one(
    rest: list[tuple[str, content_pb2.Content]], data: st.DataObject
) -> None:
    events = log([("alice", created("alice", "bob")), *rest])
    fresh = fold(events)
    for prefix in range(len(events) + 1):
        stale = fold(events[:prefix])
        overlap = data.draw(st.integers(0, prefix))
        assert fold(events[overlap:], stale) == fresh, "also when some of them are in the snapshot already"


@given(st.lists(st.tuples(users, contents), max_size=15))
def test_as_of_seq_is_the_last_event_that_changed_the_chat(rest: list[tuple[str, content_pb2.Content]]) -> None:
    events = log([("alice", created("alice", "bob")), *rest])
    chat = chat_pb2.Chat()
    for event in events:
        before = chat.as_of_seq
        changed = apply_event(chat, event)
        assert changed == (event.content.WhichOneof("body") in CHANGES_CHAT)
        assert chat.as_of_seq == (event.seq if changed else before)


def test_every_arm_that_the_server_writes_changes_the_chat() -> None:
    """But for the one that stands where a message was."""
    written = {field.name for field in content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields if field.number >= 16}
    assert written - {"erased"} == CHANGES_CHAT


def test_creation() -> None:
    chat = group()
    assert (chat.chat_id, chat.kind, chat.title) == ("g.x", content_pb2.CHAT_KIND_GROUP, "Friends")
    assert (chat.created_at_ms, chat.creator_user_id, chat.as_of_seq) == (100, "alice", 1)
    assert [(member.user_id, member.joined_seq) for member in chat.members] == [("alice", 1), ("bob", 1)]


def test_members_stand_in_the_order_they_joined() -> None:
    chat = group(
        content(members_added=content_pb2.MembersAddedContent(user_ids=["dave", "carol"])),
        content(member_removed=content_pb2.MemberRemovedContent(user_id="alice")),
        content(members_added=content_pb2.MembersAddedContent(user_ids=["alice"])),
    )
    assert [(member.user_id, member.role, member.joined_seq) for member in chat.members] == [
        ("bob", MEMBER, 1),
        ("dave", MEMBER, 2),
        ("carol", MEMBER, 2),
        ("alice", MEMBER, 4),
    ]


GO = content(member_removed=content_pb2.MemberRemovedContent(user_id="bob"))
COME = content(members_added=content_pb2.MembersAddedContent(user_ids=["bob"]))


def mute(until_ms: int) -> content_pb2.Content:
    return content(member_muted=content_pb2.MemberMutedContent(user_id="bob", muted_until_ms=until_ms))


@pytest.mark.parametrize("sender", ["alice", "bob"])
def test_who_comes_back_comes_back_without_role_and_with_the_mute(sender: str) -> None:
    promoted = content(role_changed=content_pb2.RoleChangedContent(user_id="bob", role=ADMIN))
    chat = group(promoted, mute(10_000), GO, COME, sender=sender)
    expected = content_pb2.Member(user_id="bob", role=MEMBER, joined_seq=5, muted_until_ms=10_000, earlier_memberships=1)
    assert member_of(chat, "bob") == expected
    assert not chat.former_members


def test_of_those_who_left_the_ones_who_come_back_are_forgotten_and_the_others_keep_their_places() -> None:
    people = ["bob", "carol", "dave", "erin"]
    gone = [(name, content(member_removed=content_pb2.MemberRemovedContent(user_id=name))) for name in people]
    asked = [(name, content(join_requested=content_pb2.JoinRequestedContent())) for name in ("frank", "dave")]
    back = content(members_added=content_pb2.MembersAddedContent(user_ids=["dave", "gina", "bob"]))
    chat = fold(log([("alice", created("alice", *people)), *gone, *asked, ("alice", back)]))
    assert [former.user_id for former in chat.former_members] == ["carol", "erin"]
    assert [(member.user_id, member.earlier_memberships) for member in chat.members[1:]] == [
        ("dave", 1),
        ("gina", 0),
        ("bob", 1),
    ]
    assert list(chat.join_request_user_ids) == ["frank"]


def test_a_mute_that_is_over_is_not_remembered() -> None:
    chat = group(mute(399), GO)  # the removal stands at 300 ms
    assert [former.muted_until_ms for former in chat.former_members] == [399]
    bob = member_of(group(mute(399), GO, COME), "bob")  # and the return at 400
    assert bob is not None
    assert bob.muted_until_ms == 0
    assert [former.muted_until_ms for former in group(mute(300), GO).former_members] == [0]


@pytest.mark.parametrize(("sender", "removed"), [("alice", True), ("bob", False)])
def test_who_was_removed_is_told_from_who_left(sender: str, removed: bool) -> None:
    chat = group(GO, COME, GO, sender=sender)
    assert list(chat.former_members) == [content_pb2.FormerMember(user_id="bob", removed=removed, memberships=2)]


def test_former_members_are_bounded_and_those_who_just_left_are_forgotten_first() -> None:
    """Otherwise whoever was removed would have it forgotten by others who come and go."""
    first = chat_pb2.ChatEvent(seq=1, sender_user_id="alice", content=created("alice"))
    chat = fold([first])
    seq = 1

    def come_and_go(user_id: str, *, by: str, until_ms: int = 0) -> None:
        nonlocal seq
        for arm in (
            content(members_added=content_pb2.MembersAddedContent(user_ids=[user_id])),
            content(member_muted=content_pb2.MemberMutedContent(user_id=user_id, muted_until_ms=until_ms)),
            content(member_removed=content_pb2.MemberRemovedContent(user_id=user_id)),
        ):
            seq += 1
            apply_event(chat, chat_pb2.ChatEvent(seq=seq, sender_user_id=by, content=arm))

    come_and_go("removed", by="alice")
    come_and_go("muted", by="muted", until_ms=5_000)
    for number in range(2 * FORMER_MEMBERS_MAX):
        come_and_go(f"passer-by{number}", by=f"passer-by{number}")
    assert len(chat.former_members) == FORMER_MEMBERS_MAX
    assert [former.user_id for former in chat.former_members[:2]] == ["removed", "muted"]
    for number in range(FORMER_MEMBERS_MAX):
        come_and_go(f"spammer{number}", by="alice")
    assert [chat.former_members[0].user_id, chat.former_members[-1].user_id] == ["spammer0", f"spammer{FORMER_MEMBERS_MAX - 1}"]


def test_an_heir_becomes_owner() -> None:
    chat = group(
        content(member_removed=content_pb2.MemberRemovedContent(user_id="alice", new_owner_user_id="bob")),
    )
    assert [(member.user_id, member.role) for member in chat.members] == [("bob", OWNER)]


def test_a_mute_is_set_and_lifted() -> None:
    mute = content(member_muted=content_pb2.MemberMutedContent(user_id="bob", muted_until_ms=9))
    lift = content(member_muted=content_pb2.MemberMutedContent(user_id="bob"))
    assert [member.muted_until_ms for member in group(mute).members] == [0, 9]
    assert [member.muted_until_ms for member in group(mute, lift).members] == [0, 0]


def test_title_and_picture_are_replaced_together() -> None:
    chat = group(content(chat_info_changed=content_pb2.ChatInfoChangedContent(title="New", picture_url="https://p")))
    assert (chat.title, chat.picture_url) == ("New", "https://p")


def test_the_join_link_is_made_and_revoked() -> None:
    link = content_pb2.JoinLink(token="t", approval_required=True)
    made = content(join_link_changed=content_pb2.JoinLinkChangedContent(join_link=link))
    revoked = content(join_link_changed=content_pb2.JoinLinkChangedContent())
    assert group(made).join_link == link
    assert not group(made, revoked).HasField("join_link")


def test_who_asked_waits_until_let_in_or_declined() -> None:
    asked = content(join_requested=content_pb2.JoinRequestedContent())
    declined = content(join_declined=content_pb2.JoinDeclinedContent(user_id="carol"))
    added = content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"]))
    assert list(group(asked, sender="carol").join_request_user_ids) == ["carol"]
    assert list(group(asked, declined, sender="carol").join_request_user_ids) == []
    assert list(group(asked, added, sender="carol").join_request_user_ids) == []


def test_an_event_about_nobody_changes_no_member() -> None:
    chat = group(
        content(member_removed=content_pb2.MemberRemovedContent(user_id="carol")),
        content(role_changed=content_pb2.RoleChangedContent(user_id="carol", role=ADMIN)),
        content(member_muted=content_pb2.MemberMutedContent(user_id="carol", muted_until_ms=9)),
        content(join_declined=content_pb2.JoinDeclinedContent(user_id="carol")),
    )
    assert chat.members == group().members
    assert member_of(chat, "carol") is None
