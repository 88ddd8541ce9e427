"""Writes without a key, from the edge that takes them through the owners that are tried: committed once (G3)."""

import random
from collections.abc import Callable

import pytest

from chatgrpc.core.clock import Now
from chatgrpc.core.edge_desk import EdgeDesk, ForEdge
from chatgrpc.core.ids import group_chat_id
from chatgrpc.core.lanes import EdgeLanes, Forward, Forwarded, OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import AskHead, HeadIs, Message
from chatgrpc.core.owner_desk import OwnerDesk, Tenure
from chatgrpc.core.refusal import owner_silent
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

GROUP = group_chat_id("alice", bytes(16))
NOW = Now(1_000, 1_000)


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Cluster:
    """One edge, and owners of the one shard, one after the other, over the same rows."""

    def __init__(self) -> None:
        self.rows = ModelRows()
        self.edge = EdgeDesk("edge", EdgeLanes(100, 1_000), lambda chat_id: 1, 100, 100)
        self.epoch = 0
        self._outcomes: dict[object, chat_pb2.SendResult | chat_pb2.Error] = {}
        self.owner_dies()

    def owner_dies(self) -> None:
        """The next one takes over; the edge sees it."""
        self.epoch += 1
        self.owner = OwnerDesk(Limits(), lambda chat_id: 1)
        self.owner.take(Tenure(1, Shard(self.epoch, Lease(), Limits(), random.Random(self.epoch)), OwnerLanes(self.epoch, 10)))
        self.edge.see({1: ShardOwner(f"owner {self.epoch}", self.epoch)}, NOW.monotonic_ms)

    def run(self, *, tells: Callable[[ForEdge], bool] = lambda message: True) -> None:
        """Lets everything go on; what the owner `tells` the edge hears."""
        while messages := self.messages():
            for _, message in messages:
                assert isinstance(message, Forward | AskHead)
                self.owner.receive("edge", message, NOW)
            while (output := self.owner.step()).requests or output.messages:
                for tenure, request in output.requests:
                    self.rows.answer(tenure.shard, request, NOW)
                    self.owner.touch(tenure)
                for _, said in output.messages:
                    assert isinstance(said, Forwarded | HeadIs)
                    if tells(said):
                        self.edge.receive("owner", said, NOW.monotonic_ms)

    def messages(self, after_ms: int = 0) -> list[tuple[str, Message]]:
        """What the edge says; outcomes are noted."""
        output = self.edge.step(NOW.monotonic_ms + after_ms)
        self._outcomes |= {ticket: outcome for ticket, _, outcome in output.answers}
        return output.messages

    def outcomes(self) -> dict[object, chat_pb2.SendResult | chat_pb2.Error]:
        self._outcomes |= {ticket: outcome for ticket, _, outcome in self.edge.step(NOW.monotonic_ms).answers}
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def write(self, content: content_pb2.Content, key: bytes, sender: str = "alice", seen_seq: int | None = None) -> None:
        self.edge.submit(f"call of {key!r}", key, Write(GROUP, sender, content, key.ljust(16), seen_seq), NOW.monotonic_ms)


def text(words: str) -> content_pb2.Content:
    return content_pb2.Content(text=content_pb2.TextContent(text=words))


CHANGES = {
    "text": text("pay 100"),
    "members_added": content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"])),
    "member_removed": content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="bob")),
    "chat_info_changed": content_pb2.Content(chat_info_changed=content_pb2.ChatInfoChangedContent(title="new")),
}


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    for user_id in ("alice", "bob", "dave"):
        created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_OWNER if user_id == "alice" else 1)
    made.write(content_pb2.Content(chat_created=created), bytes(16))
    made.run()
    assert [outcome for outcome in made.outcomes().values() if isinstance(outcome, chat_pb2.Error)] == []
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_lost_owner_had_committed_the_next_one_finds_below_what_others_wrote(cluster: Cluster, change: str) -> None:
    cluster.write(CHANGES[change], b"K")
    cluster.run(tells=lambda message: isinstance(message, HeadIs))
    cluster.write(text("hi"), b"B", sender="dave", seen_seq=1)
    cluster.run(tells=lambda message: False)
    cluster.owner_dies()
    cluster.run()
    outcomes = cluster.outcomes()
    first, other = outcomes[b"K"], outcomes[b"B"]
    assert isinstance(first, chat_pb2.SendResult), "its own success is no refusal"
    assert isinstance(other, chat_pb2.SendResult)
    assert (first.seq, other.seq) == (2, 3)
    assert cluster.rows.texts(GROUP, 9) == ["chat_created", "pay 100" if change == "text" else change, "hi"]


def test_the_creation_of_a_chat_needs_no_question() -> None:
    cluster = Cluster()
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    created.members.add(user_id="alice", role=content_pb2.MEMBER_ROLE_OWNER)
    cluster.write(content_pb2.Content(chat_created=created), bytes(16))
    ((_, sent),) = cluster.messages()
    assert isinstance(sent, Forward)


def test_those_of_one_caller_keep_their_order(cluster: Cluster) -> None:
    for key in (b"1", b"2", b"3"):
        write = Write(GROUP, "alice", text(key.decode()), key.ljust(16), None)
        cluster.edge.submit("session", key, write, NOW.monotonic_ms)
    cluster.run()
    assert cluster.rows.texts(GROUP, 9)[1:] == ["1", "2", "3"]


def test_without_an_owner_it_is_given_up_and_asked_for_no_more(cluster: Cluster) -> None:
    cluster.write(text("a"), b"K")
    cluster.messages()
    assert not cluster.edge.is_idle
    cluster.edge.pass_time(NOW.monotonic_ms + 999)
    assert cluster.outcomes() == {}
    cluster.messages(after_ms=999)
    cluster.edge.pass_time(NOW.monotonic_ms + 1_000)
    (failed,) = cluster.outcomes().values()
    assert isinstance(failed, chat_pb2.Error)
    assert failed.message == owner_silent().message
    assert (cluster.edge.is_idle, cluster.edge.questions_waiting) == (True, 0)
    cluster.run()
    assert cluster.rows.texts(GROUP, 9) == ["chat_created"], "an answer that comes late sends nothing"


def test_a_caller_that_has_gone_sends_nothing_any_more(cluster: Cluster) -> None:
    cluster.write(text("a"), b"K")
    cluster.edge.close("call of b'K'")
    assert (cluster.edge.is_idle, cluster.edge.questions_waiting) == (True, 0)
    cluster.run()
    assert cluster.rows.texts(GROUP, 9) == ["chat_created"]
