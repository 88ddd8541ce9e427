"""The edge's desk: what streams want of owners, and what is missed of what owners say."""

from collections.abc import Mapping

import pytest

from chatgrpc.core.edge_desk import EdgeDesk, EdgeOutput, Missed
from chatgrpc.core.lanes import EdgeLanes, Forward, Forwarded, Lane
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    HeadIs,
    Heads,
    HeadsHeard,
    MembersAre,
    Message,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

ONE = {1: ShardOwner("owner", 5)}
OTHER = {1: ShardOwner("heir", 9)}


def desk(owners: Mapping[int, ShardOwner] = ONE, stated_max: int = 100) -> EdgeDesk:
    """A desk to which all chats belong to shard 1, but those named "far…", which are of shard 2."""
    lanes = EdgeLanes(resend_after_ms=100, give_up_after_ms=1_000)
    made = EdgeDesk("edge", lanes, lambda chat_id: 2 if chat_id.startswith("far") else 1, 100, stated_max)
    made.see(owners, 0)
    return made


def write(text: str, chat_id: str = "c") -> Write:
    content = content_pb2.Content(text=content_pb2.TextContent(text=text))
    return Write(chat_id, "alice", content, text.encode().ljust(16), 0)


def deliver(seq: int, after_seq: int = 0, chat_id: str = "c") -> Deliver:
    return Deliver(chat_id, seq, b"event", ("alice",), "", False, after_seq)


def number_of(message: Message) -> int:
    assert isinstance(message, AskHead | AskMembers | Forward)
    return message.number


# Writes.


def test_a_write_goes_to_the_owner_and_its_outcome_comes_back_with_its_ticket() -> None:
    edge = desk()
    edge.submit("session", "ticket", write("a"), 0)
    assert not edge.is_idle
    ((node_id, sent),) = edge.step(0).messages
    assert node_id == "owner"
    assert isinstance(sent, Forward)
    assert (sent.lane, sent.epoch) == (Lane("edge", "session", "c"), 5)
    edge.receive("owner", Forwarded(sent.lane, 1, chat_pb2.SendResult(seq=5)), 10)
    assert not edge.is_idle, "an answer waits to be taken"
    ((ticket, of_write, got),) = edge.step(0).answers
    assert (ticket, of_write.client_message_id, got) == ("ticket", b"a".ljust(16), chat_pb2.SendResult(seq=5))
    assert edge.is_idle
    edge.receive("owner", Forwarded(sent.lane, 1, chat_pb2.SendResult(seq=5)), 11)
    assert edge.step(0).answers == []


def test_without_an_owner_nothing_is_sent_until_there_is_one() -> None:
    edge = desk({})
    edge.submit("session", "ticket", write("a"), 0)
    edge.ask_head("c", lambda seq: None, 0)
    edge.ask_members("c", lambda user_ids: None, 0)
    assert edge.step(0).messages == []
    assert edge.see(ONE, 10) == {1}
    kinds = [(node_id, type(message)) for node_id, message in edge.step(10).messages]
    assert sorted(kinds, key=str) == sorted([("owner", AskHead), ("owner", AskMembers), ("owner", Forward)], key=str)


def test_what_one_owner_has_not_answered_goes_to_the_next_one_and_to_it_alone() -> None:
    edge = desk(ONE | {2: ShardOwner("far owner", 6)})
    edge.submit("session", "a", write("a"), 0)
    edge.submit("session", "b", write("b", "far c"), 0)
    edge.ask_head("c", lambda seq: None, 0)
    edge.step(0)
    assert edge.see(OTHER | {2: ShardOwner("far owner", 6)}, 10) == {1}
    assert {(node_id, type(message)) for node_id, message in edge.step(10).messages} == {("heir", AskHead), ("heir", Forward)}


def refused(code: chat_pb2.ErrorCode.ValueType, epoch: int) -> Forwarded:
    return Forwarded(Lane("edge", "session", "c"), 1, chat_pb2.Error(code=code), epoch)


def test_what_was_sent_to_the_next_owner_is_not_refused_by_the_one_before() -> None:
    """Seed 120054752: its sender was let in meanwhile, and the next owner committed what they had been told was refused."""
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.step(0)
    edge.see(OTHER, 10)
    ((_, again),) = edge.step(10).messages
    assert isinstance(again, Forward)
    assert again.epoch == 9
    edge.see({}, 15)
    edge.receive("owner", refused(chat_pb2.ERROR_CODE_NOT_A_MEMBER, 5), 20)
    assert edge.step(20).answers == [], "the other one may commit it, though nobody owns the shard any more"
    edge.receive("heir", Forwarded(again.lane, 1, chat_pb2.SendResult(seq=5), 9), 30)
    assert [got for _, _, got in edge.step(30).answers] == [chat_pb2.SendResult(seq=5)]


def test_nor_by_the_same_node_under_an_earlier_epoch() -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.step(0)
    edge.see({1: ShardOwner("owner", 9)}, 10)
    edge.receive("owner", refused(chat_pb2.ERROR_CODE_MUTED, 5), 20)
    assert edge.step(20).answers == [], "neither before it was sent"
    edge.receive("owner", refused(chat_pb2.ERROR_CODE_MUTED, 5), 30)
    assert edge.step(30).answers == [], "nor after that"
    edge.receive("owner", refused(chat_pb2.ERROR_CODE_MUTED, 9), 40)
    assert len(edge.step(40).answers) == 1


@pytest.mark.parametrize(
    "forwarded",
    [
        Forwarded(Lane("edge", "session", "c"), 1, chat_pb2.SendResult(seq=5), 5),
        refused(chat_pb2.ERROR_CODE_UNAVAILABLE, 5),
        refused(chat_pb2.ERROR_CODE_NOT_A_MEMBER, 0),
        refused(chat_pb2.ERROR_CODE_NOT_A_MEMBER, 12),
    ],
    ids=["it is committed", "it is to come again", "nobody says which owner's word it is", "an owner later than is known here"],
)
def test_else_an_outcome_counts_whoever_says_it(forwarded: Forwarded) -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.step(0)
    edge.see(OTHER, 10)
    edge.receive("owner", forwarded, 20)
    assert [got for _, _, got in edge.step(20).answers] == [forwarded.outcome]


def test_an_owner_that_is_gone_refuses_what_no_other_was_sent() -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.step(0)
    edge.see({}, 10)
    edge.receive("owner", refused(chat_pb2.ERROR_CODE_NOT_A_MEMBER, 5), 20)
    assert len(edge.step(20).answers) == 1


def test_the_same_node_under_another_epoch_is_another_owner() -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.step(0)
    assert edge.see(ONE, 10) == set()
    assert edge.step(10).messages == []
    assert edge.see({1: ShardOwner("owner", 6)}, 20) == {1}
    assert [node_id for node_id, _ in edge.step(20).messages] == ["owner"]


def test_a_shard_that_lost_its_owner_has_moved_once_it_has_the_next_one() -> None:
    edge = desk()
    assert edge.see({}, 10) == set()
    assert edge.see(ONE, 20) == {1}, "even to the same one again: it may have dropped what it had"


def test_what_is_not_answered_is_sent_again_and_given_up_in_the_end() -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.ask_head("c", lambda seq: None, 0)
    edge.step(0)
    edge.pass_time(100)
    assert {type(message) for _, message in edge.step(100).messages} == {AskHead, Forward}
    edge.pass_time(1_000)
    output = edge.step(1_000)
    ((ticket, _, got),) = output.answers
    assert ticket == "a"
    assert isinstance(got, chat_pb2.Error)
    assert {type(message) for _, message in output.messages} == {AskHead}, "a question is never given up"


def test_a_new_link_to_the_owner_is_given_at_once_what_the_old_one_may_have_lost() -> None:
    edge = desk({1: ShardOwner("owner", 5), 2: ShardOwner("other", 6)})
    for chat_id in ("c", "far"):
        edge.submit("session", "a", write("a", chat_id), 0)
        edge.ask_head(chat_id, lambda seq: None, 0)
        edge.ask_members(chat_id, lambda user_ids: None, 0)
    edge.step(0)
    edge.linked("other", 10)
    edge.linked("stranger", 10)
    assert [(node_id, type(message)) for node_id, message in edge.step(10).messages] == [
        ("other", AskHead),
        ("other", AskMembers),
        ("other", Forward),
    ]


def test_a_closed_session_is_sent_for_no_more() -> None:
    edge = desk()
    edge.submit("session", "a", write("a"), 0)
    edge.close("session")
    assert edge.step(0).messages == []
    assert edge.is_idle


# Questions.


def test_a_head_is_told_to_who_asked_and_remembered() -> None:
    edge = desk()
    heard: list[int | None] = []
    edge.ask_head("c", heard.append, 0)
    ((_, asked),) = edge.step(0).messages
    assert edge.questions_waiting == 1
    edge.receive("owner", HeadIs("c", number_of(asked), 7), 5)
    assert heard == [7]
    assert edge.stated_seq("c") == 7
    assert edge.questions_waiting == 0
    assert edge.step(0).missed == {}, "that is no push"


def test_an_answer_to_an_earlier_question_states_a_head_and_answers_nobody() -> None:
    edge = desk()
    first: list[int | None] = []
    second: list[int | None] = []
    edge.ask_head("c", first.append, 0)
    edge.ask_head("c", second.append, 1)
    (_, early), (_, late) = edge.step(1).messages
    edge.receive("owner", HeadIs("c", number_of(early), 7), 5)
    assert (first, second) == ([7], [])
    edge.receive("owner", HeadIs("c", number_of(late), 8), 6)
    assert second == [8]


def test_members_are_told_to_who_asked() -> None:
    edge = desk()
    heard: list[tuple[str, ...]] = []
    edge.ask_members("c", heard.append, 0)
    ((_, asked),) = edge.step(0).messages
    edge.receive("owner", MembersAre("c", number_of(asked), ("alice", "bob")), 5)
    assert heard == [("alice", "bob")]


def test_what_may_be_lost_is_said_once_and_only_if_there_is_an_owner() -> None:
    edge = desk()
    edge.tell("far c", TellTyping("far c", "alice", 1))
    edge.tell("c", TellTyping("c", "alice", 1))
    assert edge.step(0).messages == [("owner", TellTyping("c", "alice", 1))]
    edge.see(OTHER, 10)
    assert edge.step(10).messages == []


# What owners say.


def test_deliveries_and_notices_come_out_in_order_and_once() -> None:
    edge = desk()
    typing = ShowTyping("c", "bob", 1, ("alice",))
    for message in (deliver(5), deliver(6, after_seq=5), typing):
        edge.receive("owner", message, 0)
    output = edge.step(0)
    assert [event.seq for event in output.deliveries] == [5, 6]
    assert output.notices == [typing]
    assert output.missed == {}
    assert edge.stated_seq("c") == 6
    assert edge.step(0) == EdgeOutput([], [], [], {}, [])


def test_heads_that_were_pushed_are_confirmed_and_no_news() -> None:
    edge = desk()
    edge.receive("owner", deliver(5), 0)
    edge.receive("owner", Heads({"c": 5}), 1)
    output = edge.step(1)
    assert output.messages == [("owner", HeadsHeard({"c": 5}))]
    assert output.missed == {}


def test_a_head_that_was_not_pushed_is_missed_once() -> None:
    edge = desk()
    for missed in ({"c": Missed(0, 5), "d": Missed(0, 1)}, {}):  # the confirmation was lost, and it is named again
        edge.receive("owner", Heads({"c": 5, "d": 1}), 1)
        output = edge.step(1)
        assert output.messages == [("owner", HeadsHeard({"c": 5, "d": 1}))]
        assert output.missed == missed
    assert edge.stated_seq("c") == 5


def test_a_push_is_missed_although_the_head_is_known_otherwise() -> None:
    edge = desk()
    edge.ask_head("c", lambda seq: None, 0)
    ((_, asked),) = edge.step(0).messages
    edge.receive("owner", HeadIs("c", number_of(asked), 5), 1)
    edge.note_stated("c", 6)
    edge.receive("owner", Heads({"c": 5}), 2)
    assert edge.step(0).missed == {"c": Missed(0, 5)}


def test_a_push_before_another_one_is_missed_as_soon_as_that_comes() -> None:
    edge = desk()
    edge.receive("owner", deliver(4), 0)
    edge.receive("owner", deliver(6, after_seq=5), 1)
    assert edge.step(0).missed == {"c": Missed(4, 5)}
    edge.receive("owner", Heads({"c": 6}), 2)
    assert edge.step(0).missed == {}


def test_a_hole_between_pushes_is_none_if_the_sender_says_so() -> None:
    edge = desk()
    edge.receive("owner", deliver(4), 0)
    edge.receive("owner", deliver(9), 1)
    assert edge.step(0).missed == {}, "5 to 8 were for nobody here, or are confirmed"


def test_what_another_owner_pushed_does_not_stand_for_what_this_one_did() -> None:
    edge = desk()
    edge.receive("heir", deliver(9), 0)
    edge.receive("owner", Heads({"c": 5}), 1)
    assert edge.step(0).missed == {"c": Missed(0, 5)}


def test_the_latest_heads_are_remembered() -> None:
    edge = desk(stated_max=2)
    for chat_id in ("a", "b", "a", "c"):
        edge.note_stated(chat_id, 3)
    assert [edge.stated_seq(chat_id) for chat_id in ("a", "b", "c")] == [3, 0, 3]
    edge.note_stated("a", 2)
    assert edge.stated_seq("a") == 3, "a head does not fall"
