"""The owner's desk: what edges ask of a node's shards, what goes back, and to which nodes."""

import random

from chatgrpc.core.clock import Now
from chatgrpc.core.ids import direct_chat_id, group_chat_id
from chatgrpc.core.lanes import Forward, Forwarded, Lane, OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    HeadIs,
    Heads,
    HeadsHeard,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.owner_desk import ForOwner, Notice, OwnerDesk, Tenure
from chatgrpc.core.sequencer import Delivery
from chatgrpc.core.shard import Shard
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

DIRECT = direct_chat_id("alice", "bob")
GROUP = group_chat_id("alice", bytes(16))
LANE = Lane("edge", "session", DIRECT)
NOW = Now(1_000, 1_000)
LIMITS = Limits(small_group_members_max=3)

NODES = ("n1", "n2", "n3", "edge")


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Owner:
    """A node that owns shard 1, to which all chats belong but those named "far…"."""

    def __init__(self) -> None:
        self.rows = ModelRows()
        self.desk = OwnerDesk(LIMITS, lambda chat_id: 2 if chat_id.startswith("far") else 1)
        self.desk.see(NODES)
        self.messages: list[tuple[str, Message]] = []
        self.deliveries: list[Delivery] = []
        self.notices: list[Notice] = []
        self.now = NOW
        self.tenure = self.take(epoch=1)

    def take(self, epoch: int) -> Tenure:
        tenure = Tenure(1, Shard(epoch, Lease(), LIMITS, random.Random(epoch)), OwnerLanes(epoch, 10))
        self.desk.take(tenure)
        return tenure

    def receive(self, message: ForOwner, sender_id: str = "edge") -> None:
        self.desk.receive(sender_id, message, self.now)
        while True:
            output = self.desk.step()
            self.messages += output.messages
            self.deliveries += output.deliveries
            self.notices += output.notices
            if not output.requests:
                break
            for tenure, request in output.requests:
                if self.desk.holds(tenure):
                    self.rows.answer(tenure.shard, request, self.now)
                    self.desk.touch(tenure)

    def take_messages(self) -> list[tuple[str, Message]]:
        messages, self.messages = self.messages, []
        return messages

    def create_group(self, *user_ids: str) -> None:
        created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
        for user_id in user_ids:
            role = content_pb2.MEMBER_ROLE_OWNER if user_id == user_ids[0] else content_pb2.MEMBER_ROLE_MEMBER
            created.members.add(user_id=user_id, role=role)
        write = Write(GROUP, user_ids[0], content_pb2.Content(chat_created=created), bytes(16), 0)
        self.receive(Forward(Lane("edge", "creation", GROUP), 1, 1, write))
        self.take_messages()


def text(words: str, number: int = 1, lane: Lane = LANE, sender: str = "alice") -> Forward:
    content = content_pb2.Content(text=content_pb2.TextContent(text=words))
    peer = "bob" if lane.chat_id == DIRECT else ""
    return Forward(lane, number, 1, Write(lane.chat_id, sender, content, words.encode().ljust(16), 0, peer_user_id=peer))


def seq_of(message: Message) -> int:
    assert isinstance(message, Forwarded)
    assert isinstance(message.outcome, chat_pb2.SendResult)
    return message.outcome.seq


# Writes.


def test_a_write_is_answered_to_its_edge_and_to_a_repetition_again() -> None:
    owner = Owner()
    owner.receive(text("a"))
    ((node_id, answer),) = owner.take_messages()
    assert (node_id, seq_of(answer)) == ("edge", 2)
    owner.receive(text("a"))
    assert owner.take_messages() == [("edge", answer)]
    assert [delivery.seq for delivery in owner.deliveries] == [1, 2]


def test_a_write_that_overtook_another_one_waits_for_its_coming_again() -> None:
    owner = Owner()
    owner.receive(text("b", number=2))
    assert owner.take_messages() == []
    owner.receive(text("a", number=1))
    owner.receive(text("b", number=2))
    assert [seq_of(message) for _, message in owner.take_messages()] == [2, 3]


def test_a_write_that_the_shard_does_not_take_may_come_again() -> None:
    owner = Owner()
    owner.tenure.shard.stop_accepting()
    owner.receive(text("a"))
    assert owner.take_messages() == []
    owner.desk.drop(owner.tenure)
    owner.take(epoch=2)
    owner.receive(text("a"))
    assert len(owner.take_messages()) == 1


def test_what_concerns_another_ones_shard_is_dropped() -> None:
    owner = Owner()
    far = Lane("edge", "session", "far away")
    for message in (text("a", lane=far), AskHead("far away", 1), TellTyping("far away", "alice", 1)):
        owner.receive(message)
    assert owner.take_messages() == []
    assert owner.notices == []


# Shards come and go.


def test_a_tenure_is_held_until_it_is_dropped_and_the_next_one_is_another() -> None:
    owner = Owner()
    first = owner.tenure
    assert owner.desk.holds(first)
    second = owner.take(epoch=2)
    assert not owner.desk.holds(first)
    owner.desk.drop(first)
    assert owner.desk.holds(second), "dropping what is not held drops nothing"
    owner.desk.drop(second)
    assert owner.desk.tenures == {}


def test_a_dropped_shard_asks_for_nothing_more() -> None:
    owner = Owner()
    owner.desk.receive("edge", text("a"), NOW)
    owner.desk.drop(owner.tenure)
    assert owner.desk.step().requests == []


def test_with_the_lease_all_shards_are_gone() -> None:
    owner = Owner()
    owner.desk.receive("edge", text("a"), NOW)
    owner.desk.drop_all()
    assert owner.desk.step().requests == []
    assert owner.desk.tenures == {}


# Questions.


def test_a_head_is_stated_to_who_asked() -> None:
    owner = Owner()
    owner.receive(text("a"))
    owner.take_messages()
    owner.receive(AskHead(DIRECT, 7), sender_id="another edge")
    assert owner.take_messages() == [("another edge", HeadIs(DIRECT, 7, 2))]
    owner.receive(AskHead(GROUP, 8), sender_id="another edge")
    assert owner.take_messages() == [("another edge", HeadIs(GROUP, 8, 0))]


def test_members_are_told_unless_they_are_many() -> None:
    owner = Owner()
    owner.create_group("alice", "bob", "carol")
    owner.receive(AskMembers(GROUP, 7))
    owner.receive(AskMembers(DIRECT, 8))
    assert owner.take_messages() == [
        ("edge", MembersAre(GROUP, 7, ("alice", "bob", "carol"))),
        ("edge", MembersAre(DIRECT, 8, ())),
    ]
    crowd = Owner()
    crowd.create_group("alice", "bob", "carol", "dave")
    crowd.receive(AskMembers(GROUP, 7))
    assert crowd.take_messages() == [("edge", MembersAre(GROUP, 7, ()))]


# Receipts and typing.


def test_who_types_is_shown_to_the_other_members_if_it_is_a_member() -> None:
    owner = Owner()
    owner.create_group("alice", "bob", "carol")
    owner.receive(TellTyping(GROUP, "bob", 1))
    owner.receive(TellTyping(GROUP, "mallory", 1))
    owner.receive(TellTyping(DIRECT, "alice", 1))
    assert owner.notices == [Notice(("alice", "carol"), ShowTyping(GROUP, "bob", 1, ()))]


def test_nobody_is_shown_that_a_muted_member_types_until_the_mute_ends() -> None:
    owner = Owner()
    owner.create_group("alice", "bob")
    muted = content_pb2.MemberMutedContent(user_id="bob", muted_until_ms=NOW.wall_ms + 1)
    write = Write(GROUP, "alice", content_pb2.Content(member_muted=muted), (1).to_bytes(16), 1)
    owner.receive(Forward(Lane("edge", "muting", GROUP), 1, 1, write))
    owner.receive(TellTyping(GROUP, "bob", 1))
    assert owner.notices == []
    owner.now = Now(NOW.wall_ms + 1, NOW.monotonic_ms)
    owner.receive(TellTyping(GROUP, "bob", 1))
    assert owner.notices == [Notice(("alice",), ShowTyping(GROUP, "bob", 1, ()))]


def test_a_mark_is_shown_to_those_whose_messages_it_covers() -> None:
    owner = Owner()
    owner.create_group("alice", "bob", "carol")
    owner.receive(text("a", lane=Lane("edge", "session", GROUP)))
    owner.receive(text("b", lane=Lane("edge", "bob's session", GROUP), sender="bob"))
    owner.receive(RaiseMark(GROUP, "bob", delivered_seq=3, read_seq=0, delivered_from_seq=1, read_from_seq=0))
    assert owner.notices == [Notice(("alice",), ShowReceipt(GROUP, "bob", 3, 0, ()))], "carol sent nothing, bob knows"


def test_what_a_user_has_read_is_shown_to_their_own_devices_too() -> None:
    owner = Owner()
    owner.create_group("alice", "bob", "carol")
    owner.receive(text("a", lane=Lane("edge", "session", GROUP)))
    owner.receive(RaiseMark(GROUP, "bob", delivered_seq=2, read_seq=2, delivered_from_seq=2, read_from_seq=0))
    assert owner.notices == [Notice(("bob", "alice"), ShowReceipt(GROUP, "bob", 2, 2, ()))]


def test_in_a_large_group_a_mark_is_the_readers_own_business() -> None:
    owner = Owner()
    owner.create_group("alice", "bob", "carol", "dave")
    owner.receive(text("a", lane=Lane("edge", "session", GROUP)))
    owner.receive(RaiseMark(GROUP, "bob", delivered_seq=2, read_seq=0, delivered_from_seq=1, read_from_seq=0))
    owner.receive(RaiseMark(GROUP, "bob", delivered_seq=2, read_seq=2, delivered_from_seq=2, read_from_seq=0))
    assert owner.notices == [Notice(("bob",), ShowReceipt(GROUP, "bob", 2, 2, ()))]


# Routing.


def delivery(seq: int, *user_ids: str, left_user_id: str = "") -> Delivery:
    return Delivery("c", seq, b"event", user_ids, left_user_id, changes_members=bool(left_user_id))


def test_each_node_gets_one_copy_with_its_own_users() -> None:
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    desk.see(NODES)
    nodes = {"alice": ["n1", "n2"], "bob": ["n1"], "carol": ["n3"]}
    desk.route([delivery(5, "alice", "bob", "carol", "dave", left_user_id="carol")], [], nodes)
    assert desk.step().messages == [
        ("n1", Deliver("c", 5, b"event", ("alice", "bob"), "", True)),
        ("n2", Deliver("c", 5, b"event", ("alice",), "", True)),
        ("n3", Deliver("c", 5, b"event", ("carol",), "carol", True)),
    ]
    assert desk.step().messages == []


def test_notices_go_to_the_nodes_of_those_whom_they_are_for() -> None:
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    desk.see(NODES)
    desk.route([], [Notice(("alice", "bob"), ShowTyping("c", "carol", 1, ()))], {"alice": ["n1"], "bob": ["n2"]})
    assert desk.step().messages == [
        ("n1", ShowTyping("c", "carol", 1, ("alice",))),
        ("n2", ShowTyping("c", "carol", 1, ("bob",))),
    ]
    assert desk.beat() == [], "what may be lost is in no heartbeat"


def test_a_push_is_in_the_heartbeats_until_its_node_confirms_it() -> None:
    owner = Owner()
    owner.desk.route([delivery(5, "alice", "bob")], [], {"alice": ["n1"], "bob": ["n2"]})
    assert owner.desk.beat() == [("n1", Heads({"c": 5})), ("n2", Heads({"c": 5}))]
    owner.receive(HeadsHeard({"c": 5}), sender_id="n1")
    owner.receive(HeadsHeard({"c": 5}), sender_id="a node that nothing was pushed to")
    assert owner.desk.beat() == [("n2", Heads({"c": 5}))]


def test_all_is_heard_when_each_node_has_confirmed_all_that_was_pushed_to_it() -> None:
    owner = Owner()
    assert owner.desk.is_heard
    owner.desk.route([delivery(5, "alice", "bob")], [], {"alice": ["n1"], "bob": ["n2"]})
    assert not owner.desk.is_heard
    owner.receive(HeadsHeard({"c": 5}), sender_id="n1")
    owner.receive(HeadsHeard({"c": 4}), sender_id="n2")
    assert not owner.desk.is_heard
    owner.receive(HeadsHeard({"c": 5}), sender_id="n2")
    assert owner.desk.is_heard
    owner.desk.doubt({"d": 1}, ["n1"])
    assert not owner.desk.is_heard


def test_many_heads_are_named_a_few_in_a_message_and_confirmed_each_for_itself() -> None:
    desk = OwnerDesk(Limits(), lambda chat_id: 0)
    desk.see(["edge"])
    heads = {f"g.{number}": number + 1 for number in range(1_200)}
    desk.doubt(heads, ["edge"])
    beats = [message for _, message in desk.beat()]
    assert all(isinstance(beat, Heads) and len(beat.heads) <= 500 for beat in beats)
    named = [pair for beat in beats if isinstance(beat, Heads) for pair in beat.heads.items()]
    assert named == list(heads.items())
    first = beats[0]
    assert isinstance(first, Heads)
    desk.receive("edge", HeadsHeard(first.heads), Now(0, 0))
    assert sorted(len(message.heads) for _, message in desk.beat() if isinstance(message, Heads)) == [200, 500]


def test_each_push_names_the_one_before_it_that_is_not_confirmed() -> None:
    owner = Owner()
    nodes = {"alice": ["n1"], "bob": ["n2"]}

    def after_seqs() -> list[int]:
        return [message.after_seq for _, message in owner.desk.step().messages if isinstance(message, Deliver)]

    owner.desk.route([delivery(5, "alice"), delivery(6, "alice"), delivery(7, "alice", "bob")], [], nodes)
    assert after_seqs() == [0, 5, 6, 0]
    owner.desk.receive("n1", HeadsHeard({"c": 7}), NOW)
    owner.desk.route([delivery(8, "alice")], [], nodes)
    assert after_seqs() == [0]


def test_what_a_node_missed_while_it_was_not_seen_is_told_once_it_is() -> None:
    """It may have come, or come back, a moment ago: devices are on it already, and what is known here is older."""
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    desk.see({"n1"})
    desk.route([delivery(5, "alice", "bob")], [], {"alice": ["n1"], "bob": ["n2"]})
    assert [node_id for node_id, _ in desk.step().messages] == ["n1"]
    assert desk.beat() == [("n1", Heads({"c": 5}))]
    desk.see({"n2"})
    assert desk.beat() == [("n2", Heads({"c": 5}))]
    desk.route([delivery(6, "bob")], [], {"bob": ["n2"]})
    assert [message.after_seq for _, message in desk.step().messages if isinstance(message, Deliver)] == [5]
    desk.see({"n1", "n2"})
    assert ("n1", Heads({"c": 5})) in desk.beat()


def test_not_all_is_heard_while_something_is_noted_for_a_node_that_was_never_seen() -> None:
    """Whoever says that it has drained says that nobody missed anything: the notes are gone with it."""
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    desk.see({"n1", "n2"})
    desk.see({"n1"})
    desk.route([delivery(5, "alice")], [], {"alice": ["n2"]})
    assert desk.is_heard, "it is gone, or looks everything through when it comes back"
    desk.route([delivery(6, "bob")], [], {"bob": ["n3"]})
    assert not desk.is_heard
    desk.see({"n1", "n3"})
    assert not desk.is_heard
    desk.receive("n3", HeadsHeard({"c": 6}), NOW)
    assert desk.is_heard


def test_a_node_that_does_not_come_is_forgotten_after_a_while() -> None:
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    desk.see({"n2"})
    desk.route([delivery(5, "alice")], [], {"alice": ["n1"]})
    for _ in range(60):
        assert desk.beat() == []
        desk.see({"n2", "n3"})
    desk.see({"n1", "n2"})
    assert desk.beat() == []


def test_what_is_noted_of_a_node_that_is_not_seen_is_bounded() -> None:
    desk = OwnerDesk(LIMITS, lambda chat_id: 1)
    for number in range(20_010):
        event = Delivery(f"c{number}", 1, b"event", ("alice",), "", changes_members=False)
        desk.route([event], [], {"alice": ["n1"]})
    desk.route([Delivery("c7", 9, b"event", ("alice",), "", changes_members=False)], [], {"alice": ["n1"]})
    desk.see({"n1"})
    heads = {chat_id: seq for _, message in desk.beat() if isinstance(message, Heads) for chat_id, seq in message.heads.items()}
    assert len(heads) == 20_000
    assert heads["c7"] == 9, "what is in the book already is kept up to date, however full it is"


def test_a_mark_that_a_node_says_did_not_rise_is_told_nobody() -> None:
    """As a node of an earlier version says it, now and then: the owner must not fall over what others say."""
    owner = Owner()
    owner.create_group("alice", "bob")
    for equal in (10, 0, 2**64 - 1):
        owner.receive(RaiseMark(GROUP, "bob", equal, equal, equal, equal))
        owner.receive(RaiseMark(GROUP, "bob", equal, equal, 2**64 - 1, 2**64 - 1))
    assert owner.notices == []
