"""What people and programs see of events: folded conversations, ticks, and no text that steers a terminal."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpc.v1 import chat_pb2, content_pb2
from chatgrpc_client.cli.conversation import LINES_MAX, Conversation
from chatgrpc_client.cli.keystrokes import Keystrokes
from chatgrpc_client.cli.rendering import as_json, explained, safe, safe_lines, sentence, until
from chatgrpc_client.cli.ticks import Ticks
from chatgrpc_client.exceptions import NotAMemberError, RequestError

from .frames import CHAT, created, event, text

Content = content_pb2.Content


def edit(target_seq: int, value: str) -> content_pb2.Content:
    return Content(edit=content_pb2.EditContent(target_seq=target_seq, text=value))


def reaction(target_seq: int, emoji: str) -> content_pb2.Content:
    return Content(reaction=content_pb2.ReactionContent(target_seq=target_seq, emoji=emoji))


def delete(target_seq: int) -> content_pb2.Content:
    return Content(delete=content_pb2.DeleteContent(target_seq=target_seq))


@settings(deadline=None)
@given(st.text())
def test_nothing_that_is_shown_steers_the_terminal(value: str) -> None:
    for shown in (safe(value), safe_lines(value, "  ").replace("\n", "")):
        assert not [c for c in shown if unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in {"RLO", "LRO"}]


@settings(deadline=None)
@given(st.text())
def test_json_lines_are_one_line_that_gives_the_text_back(value: str) -> None:
    line = as_json(event(3, text(value)))
    assert json.loads(line)["text"] == value
    assert line.splitlines() == [line]
    assert not [c for c in line if unicodedata.category(c) == "Cc"]


def test_json_names_every_kind_of_content() -> None:
    """Also those that a later version of the API adds: the fields come from the message itself."""
    for field in Content.DESCRIPTOR.oneofs_by_name["body"].fields:
        content = Content()
        getattr(content, field.name).SetInParent()
        line = json.loads(as_json(event(7, content)))
        assert (line["type"], line["chat_id"], line["seq"]) == (field.name, CHAT, 7)
    hide = Content(hide=content_pb2.HideContent(chat_id="g.x", seqs=[1, 2]))
    line = json.loads(as_json(event(7, hide)))
    assert (line["chat_id"], line["target_chat_id"], line["seqs"]) == (CHAT, "g.x", [1, 2])
    role = content_pb2.RoleChangedContent(user_id="bob", role=content_pb2.MEMBER_ROLE_ADMIN)
    assert json.loads(as_json(event(7, Content(role_changed=role))))["role"] == "admin"
    assert json.loads(as_json(event(7, Content(reply_to_seq=3))))["type"] == "unsupported"


def test_a_page_shows_messages_as_they_stand_after_it() -> None:
    conversation = Conversation("alice")
    lines = conversation.add_page(
        [
            created("alice", "bob"),
            event(2, text("frist")),
            event(3, text("gone"), sender="alice"),
            event(4, edit(2, "first")),
            event(5, reaction(2, "👍"), sender="alice"),
            event(6, reaction(2, "👍")),
            event(7, delete(3), sender="alice"),
            event(8, Content(text=content_pb2.TextContent(text="answer\nin two lines"), reply_to_seq=2), sender="alice"),
        ]
    )
    assert [line.split(" ", 1)[-1].split(": ")[-1].split(" — ")[-1] for line in lines] == [
        "bob began the chat",
        "first  (edited)  [👍 2]",
        "(deleted)",
        "↳#2 “first” answer\n         in two lines",
    ]


def test_live_changes_are_said_and_older_pages_show_them() -> None:
    conversation = Conversation("alice")
    assert conversation.add(event(10, text("hello"))) is not None
    assert conversation.add(event(11, edit(10, "hello!"))) == "       ✎ bob edited #10: hello!"
    assert conversation.add(event(12, reaction(10, "🎉"), sender="alice")) == "       🎉 you reacted to #10 “hello!”"
    assert conversation.add(event(13, reaction(10, ""), sender="alice")) == "       you took back the reaction to #10"
    assert conversation.add(event(14, delete(10))) == "       ⊘ bob deleted #10"
    assert conversation.add(event(15, edit(10, "too late"))) is None, "nothing is left to edit"
    assert conversation.add(event(16, edit(5, "five!"))) == "       ✎ bob edited #5: five!"
    (line,) = conversation.add_page([event(5, text("five"))])
    assert line.endswith("bob: five!  (edited)")


def test_a_page_of_nothing_but_what_became_of_older_messages_says_so() -> None:
    page = [event(30, reaction(2, "👍")), event(31, edit(3, "three!")), event(32, delete(4)), event(33, reaction(5, "🎉"))]
    conversation = Conversation("alice")
    conversation.hide([5])
    assert conversation.add_page(page) == [
        "       👍 bob reacted to #2",
        "       ✎ bob edited #3: three!",
        "       ⊘ bob deleted #4",
    ]
    assert [line.split(": ")[-1] for line in conversation.add_page([event(2), event(3), event(4), event(5)])] == [
        "text 2  [👍]",
        "three!  (edited)",
        "(deleted)",
    ], "and is not said once more with the messages"


def test_of_what_became_of_older_messages_the_latest_is_shown_whichever_page_brings_it_first() -> None:
    conversation = Conversation("alice")
    conversation.add(event(30, edit(2, "as it is")))
    conversation.add(event(31, reaction(2, "🎉")))
    conversation.add(event(32, delete(3)))
    conversation.add_page([event(20, edit(2, "as it was")), event(21, reaction(2, "👍")), event(22, edit(3, "as it was"))])
    lines = conversation.add_page([event(2), event(3)])
    assert [line.split(": ")[-1] for line in lines] == ["as it is  (edited)  [🎉]", "(deleted)"]


def test_a_page_that_brings_a_message_and_older_changes_of_it_leaves_the_newer_ones() -> None:
    conversation = Conversation("alice")
    conversation.add_page([event(40), event(50, edit(15, "newest text")), event(51, reaction(15, ""))])
    lines = conversation.add_page([event(15), event(20, edit(15, "middle text")), event(21, reaction(15, "👍"))])
    assert [line.split(": ")[-1] for line in lines] == ["newest text  (edited)"]
    assert conversation.lines[15].text == "newest text", "which is what is forwarded"
    conversation.add_page([event(12), event(13, reaction(12, "👍"), sender="alice"), event(14, edit(12, "twelve!"))])
    assert conversation.show(conversation.lines[12]).endswith("twelve!  (edited)  [👍]"), "each kind and user by itself"


def test_what_became_of_older_messages_is_kept_up_to_a_bound_however_often_they_change() -> None:
    reader, tail = Conversation("alice"), Conversation("alice", pending_max=0)
    for seq in range(100, 100 + 2 * LINES_MAX):
        for conversation in (reader, tail):
            assert conversation.add(event(seq, reaction(2, "👍"))) == "       👍 bob reacted to #2"
    assert len(reader._pending) == 1
    for seq in range(10_000, 10_000 + 2 * LINES_MAX):
        reader.add(event(seq, reaction(2, "👍"), sender=f"user{seq}"))
    assert len(reader._pending) == LINES_MAX
    assert not tail._pending


def test_a_page_is_shown_however_much_is_held() -> None:
    conversation = Conversation("alice")
    for seq in range(100, 100 + LINES_MAX):
        conversation.add(event(seq))
    page = [event(seq) for seq in range(80, 100)]
    assert len(conversation.add_page(page)) == len(page)
    assert len(conversation.lines) == LINES_MAX
    assert len(Conversation("alice").add_page(event(seq) for seq in range(1, LINES_MAX + 100))) == LINES_MAX + 99


def test_a_mute_that_ends_before_it_begins_is_none() -> None:
    def said(muted_until_ms: int) -> str:
        muted = content_pb2.MemberMutedContent(user_id="carol", muted_until_ms=muted_until_ms)
        return sentence(event(3, Content(member_muted=muted)), "alice")

    assert said(0) == said(1) == "bob let carol write again"
    assert said(event(3).sent_at_ms + 1).startswith("bob muted carol until ")


def test_hidden_messages_are_not_shown_again() -> None:
    conversation = Conversation("alice")
    conversation.hide([5])
    assert len(conversation.add_page([event(4), event(5), event(6)])) == 2
    assert conversation.add(event(7, reaction(5, "👍"))) is None


def test_what_becomes_of_a_hidden_message_is_not_shown_whether_it_is_held_or_not() -> None:
    conversation = Conversation("alice")
    conversation.add(event(6, text("not for me")))
    conversation.hide([5, 6])
    for seq in (5, 6):
        for change in (edit(seq, "still not for me"), reaction(seq, "👍"), delete(seq)):
            assert conversation.add(event(7, change)) is None
            assert conversation.add_page([event(7, change)]) == []
    answer = Content(text=content_pb2.TextContent(text="an answer"), reply_to_seq=6)
    assert "not for me" not in (conversation.add(event(8, answer)) or "")


def test_typing_is_told_now_and_then_and_anew_after_a_message() -> None:
    keys = Keystrokes()
    assert [keys.typed(now_s) for now_s in (0.5, 0.6, 3.4, 3.6)] == [True, False, False, True]
    keys.sent()
    assert [keys.typed(now_s) for now_s in (4.0, 4.7, 5.0)] == [False, True, False]
    assert [keys.cleared(), keys.cleared()] == [True, False]
    keys.sent()
    assert not keys.cleared(), "a message ends the typing by itself"
    assert Keystrokes().cleared() is False


def test_errors_are_told_in_the_words_of_the_commands() -> None:
    def said(kind: type[RequestError], message: str) -> str:
        return explained(kind(chat_pb2.ERROR_CODE_UNSPECIFIED, message))

    assert "ListChats" not in said(NotAMemberError, "There is no such chat. Look at ChatService.ListChats.")
    hint = "chat_id is not a chat id: take it from ChatService.ListChats or from an event."
    assert said(RequestError, hint) == "chat_id is not a chat id"
    assert said(RequestError, "Not now. Ask MessageService.ListEvents first. Then again.") == "Not now. Then again."


def receipt(user_id: str, delivered_seq: int, read_seq: int) -> chat_pb2.Receipt:
    return chat_pb2.Receipt(chat_id=CHAT, user_id=user_id, delivered_seq=delivered_seq, read_seq=read_seq)


def shown(ticks: Ticks) -> list[str]:
    return [tick.text for tick in ticks.now()]


def test_ticks_of_two_people() -> None:
    ticks = Ticks("alice")
    ticks.members(["alice", "bob"])
    assert shown(ticks) == []
    for seq in (2, 3, 5):
        ticks.own(seq)
    assert shown(ticks) == ["✓ sent #5"]
    ticks.receipt(receipt("bob", 3, 2))
    assert shown(ticks) == ["✓✓ read #2", "✓✓ delivered #3", "✓ sent #5"]
    ticks.receipt(receipt("bob", 5, 0))
    assert shown(ticks) == ["✓✓ read #2", "✓✓ delivered #5"], "marks only rise"
    ticks.receipt(receipt("bob", 5, 5))
    assert shown(ticks) == ["✓✓ read #5"]
    ticks.receipt(receipt("alice", 9, 9))
    assert shown(ticks) == ["✓✓ read #5"], "own marks say nothing of others"


def test_ticks_of_a_group_count_its_members() -> None:
    ticks = Ticks("alice")
    ticks.members(["alice", "bob", "carol"])
    ticks.own(2)
    ticks.receipt(receipt("bob", 2, 0))
    assert shown(ticks) == ["✓✓ delivered 1/2 #2"]
    ticks.receipt(receipt("carol", 2, 2))
    assert shown(ticks) == ["✓✓ read 1/2 #2"]
    ticks.members(["alice", "carol"])
    assert shown(ticks) == ["✓✓ read #2"]


@pytest.mark.parametrize("at_ms", [-(1 << 63), -1, 0, 253_402_300_800_000, 1 << 53, (1 << 63) - 1])
def test_no_number_of_a_peer_is_too_far_away_to_be_shown(at_ms: int) -> None:
    """A mute until the year 292,278,994 hid a group from all its members."""
    muted = content_pb2.Content(member_muted=content_pb2.MemberMutedContent(user_id="bob", muted_until_ms=at_ms))
    event = chat_pb2.ChatEvent(chat_id="g.x", seq=(1 << 64) - 1, sender_user_id="alice", sent_at_ms=at_ms, content=muted)
    line = Conversation("bob").add(event)
    assert line is not None
    assert "alice muted you " in line or not at_ms
    assert json.loads(as_json(event))["muted_until_ms"] == at_ms


def test_a_mute_that_nobody_will_see_the_end_of_is_for_good() -> None:
    assert until((1 << 63) - 1) == "for good"
    assert "Jan 2100" in until(4_103_000_000_000)
