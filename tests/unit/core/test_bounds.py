"""What waits is bounded while the store is away: ten minutes of virtual time, by the real desks."""

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from chatgrpc.core.clock import Now
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.lanes import EdgeLanes, Forward, Forwarded, Lane, OwnerLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.links import AskHead, AskMembers, HeadIs, MembersAre, Message, RaiseMark, TellTyping
from chatgrpc.core.owner_desk import Notice, OwnerDesk, Tenure
from chatgrpc.core.shard import Shard
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

CHATS = [direct_chat_id("alice", f"friend{number}") for number in range(10)]
TEN_MINUTES_MS = 600_000
TICK_MS = 250


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Cluster:
    """Edges, and an owner whose store answers nothing until it is let."""

    def __init__(self, edges: int = 3, limits: Limits | None = None) -> None:
        self.now_ms = 0
        self.shard = Shard(1, Lease(), limits or Limits(), random.Random(1))
        self.owner = OwnerDesk(limits or Limits(), lambda chat_id: 1)
        self.owner.take(Tenure(1, self.shard, OwnerLanes(1, 1_000)))
        self.edges = {f"edge{number}": self.edge(f"edge{number}") for number in range(edges)}
        self.rows = ModelRows()
        self.messages = 0
        self.notices: list[Notice] = []

    def edge(self, node_id: str) -> EdgeDesk:
        desk = EdgeDesk(node_id, EdgeLanes(250, 10_000), lambda chat_id: 1, 250, 1_000)
        desk.see({1: ShardOwner("owner", 1)}, 0)
        return desk

    def tick(self) -> None:
        self.now_ms += TICK_MS
        for node_id, edge in self.edges.items():
            edge.pass_time(self.now_ms)
            for _, message in edge.step(self.now_ms).messages:
                self.messages += 1
                self.ask(node_id, message)

    def ask(self, node_id: str, message: Message) -> None:
        assert isinstance(message, AskHead | AskMembers | RaiseMark | TellTyping | Forward)
        self.owner.receive(node_id, message, Now(self.now_ms, self.now_ms))

    def store_comes_back(self) -> list[tuple[str, Message]]:
        messages: list[tuple[str, Message]] = []
        while (output := self.owner.step()).requests:
            messages += output.messages
            self.notices += output.notices
            for tenure, request in output.requests:
                self.rows.answer(tenure.shard, request, Now(self.now_ms, self.now_ms))
                self.owner.touch(tenure)
        self.notices += output.notices
        return messages + output.messages


@contextmanager
def memory_that_stays() -> Iterator[list[int]]:
    """Gives a list that holds, after the block, by how many bytes the memory in use has grown."""
    grown: list[int] = []
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield grown
        grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()


def test_questions_wait_once_for_each_who_asks_however_long_the_store_is_away() -> None:
    cluster = Cluster()
    heads: list[int | None] = []
    members: list[tuple[str, ...]] = []
    for edge in cluster.edges.values():
        for chat_id in CHATS:
            edge.ask_head(chat_id, heads.append, 0)
            edge.ask_members(chat_id, members.append, 0)
    while cluster.now_ms < TEN_MINUTES_MS:
        cluster.tick()
    assert cluster.messages > 2 * 3 * len(CHATS) * 100, "they were asked again all the time"
    assert cluster.shard.questions_waiting == 2 * 3 * len(CHATS)
    answers = cluster.store_comes_back()
    assert sum(isinstance(message, HeadIs) for _, message in answers) == 3 * len(CHATS)
    assert sum(isinstance(message, MembersAre) for _, message in answers) == 3 * len(CHATS)
    for node_id, message in answers:
        assert isinstance(message, HeadIs | MembersAre)
        cluster.edges[node_id].receive("owner", message, cluster.now_ms)
    assert len(heads) == 3 * len(CHATS), "the one answer does for all that was asked"
    assert [edge.questions_waiting for edge in cluster.edges.values()] == [0, 0, 0]


def test_what_is_told_all_the_time_takes_no_more_room_after_ten_minutes_than_after_one() -> None:
    cluster = Cluster()

    def tell(seq: int) -> None:
        for node_id in cluster.edges:
            for user_id in ("alice", "bob"):
                cluster.ask(node_id, RaiseMark(CHATS[0], user_id, seq, seq, seq - 1, seq - 1))
                cluster.ask(node_id, TellTyping(CHATS[0], user_id, 1))

    for seq in range(1, 100):
        tell(seq)
    with memory_that_stays() as grown:
        for seq in range(100, 10_000):
            tell(seq)
    assert cluster.shard.questions_waiting == 2 * 2 * 3
    assert grown[0] < 100_000


def test_marks_that_rose_while_the_chat_was_not_ready_rose_from_where_the_first_did() -> None:
    before, after = Cluster(), Cluster()
    content = content_pb2.Content(text=content_pb2.TextContent(text="a"))
    before.edges["edge0"].submit("s", 1, Write(CHATS[0], "alice", content, bytes(16), 0, peer_user_id="friend0"), 0)
    before.tick()
    before.store_comes_back()
    after.rows = before.rows
    for seq in (1, 2, 3):
        after.ask("edge0", RaiseMark(CHATS[0], "friend0", seq, 0, seq - 1, 0))
    after.store_comes_back()
    (notice,) = after.notices
    assert notice.user_ids == ("alice",), "who sent the first of them hears of it, too"


def test_a_screen_that_flips_leaves_nothing_behind() -> None:
    cluster = Cluster(edges=1)
    edge = cluster.edges["edge0"]
    heard: list[tuple[str, ...]] = []
    for flip in range(1_000):
        chat_id = CHATS[flip % 2]
        edge.ask_members(chat_id, heard.append, 0)
        edge.ask_members(chat_id, heard.append, 0)
        edge.withdraw_members(chat_id, heard.append)
    assert edge.questions_waiting == 0


def test_questions_from_ever_more_askers_are_passed_over() -> None:
    cluster = Cluster(limits=Limits(questions_waiting_per_chat_max=10))
    for number in range(100):
        cluster.ask("edge", TellTyping(CHATS[0], f"user{number}", 1))
    assert cluster.shard.questions_waiting == 10


def test_a_chat_that_is_not_ours_keeps_no_questions() -> None:
    cluster = Cluster()
    cluster.ask("edge", AskHead(CHATS[0], 1))
    ((_, read),) = cluster.owner.step().requests
    now = Now(0, 0)
    cluster.rows.boundaries[CHATS[0], 0] = {9: 1}
    assert cluster.rows.marks == {}
    cluster.rows.answer(cluster.shard, read, now)
    (bucket_read,) = cluster.shard.step().requests
    cluster.rows.answer(cluster.shard, bucket_read, now)
    assert [damage.chat_id for damage in cluster.shard.step().damage] == [CHATS[0]]
    for number in range(2, 1_000):
        cluster.ask("edge", AskHead(CHATS[0], number))
    assert cluster.shard.questions_waiting == 0
    assert cluster.shard.step().requests == []


def test_a_lane_is_kept_only_while_something_waits_in_it() -> None:
    cluster = Cluster(edges=1)
    lanes = EdgeLanes(250, 10_000)
    edge = EdgeDesk("edge", lanes, lambda chat_id: 1, 250, 1_000)
    edge.see({1: ShardOwner("owner", 1)}, 0)
    for number in range(1_000):
        chat_id = direct_chat_id("alice", f"x{number}")
        content = content_pb2.Content(text=content_pb2.TextContent(text="a"))
        edge.submit("session", number, Write(chat_id, "eve", content, bytes(16), 0), number)
        for _, message in edge.step(number).messages:
            cluster.ask("edge", message)
        for _, answer in cluster.store_comes_back():
            assert isinstance(answer, Forwarded)
            edge.receive("owner", answer, number)
        ((_, _, outcome),) = edge.step(number).answers
        assert isinstance(outcome, chat_pb2.Error)
    assert len(lanes) == 0
    assert edge.is_idle


def test_a_lane_that_was_forgotten_goes_on_where_its_owner_is() -> None:
    owner, edge = OwnerLanes(1, 10), EdgeLanes(250, 10_000)
    taken: list[int] = []
    for chat_id in ("a", "b", "a", "a", "b", "a"):
        lane = Lane("edge", "session", chat_id)
        edge.submit(lane, "ticket", Write(chat_id, "alice", content_pb2.Content(), bytes(16), 0), 0)
        (forward,) = edge.take_forwards(0)
        assert owner.receive(forward) is True
        owner.accepted(forward)
        taken.append(forward.number)
        assert owner.receive(forward) is False, "and once only"
        answered = owner.answered(lane, forward.number, chat_pb2.SendResult())
        assert edge.answered(answered, 0)
        assert edge.answered(Forwarded(lane, forward.number, chat_pb2.SendResult()), 0) == []
    assert taken == sorted(set(taken))


def test_the_answer_is_to_the_last_question() -> None:
    cluster = Cluster(edges=1)
    for number in range(1, 50):
        cluster.ask("edge0", AskHead(CHATS[0], number))
    assert cluster.store_comes_back() == [("edge0", HeadIs(CHATS[0], 49, 0))]


def test_what_streams_send_while_the_store_is_away_is_bounded_in_bytes_for_as_long_as_that_lasts() -> None:
    """Fifty devices send large messages to one chat, and are answered that it was not taken, or that nobody knows."""
    limits = Limits(writes_waiting_bytes_per_chat_max=200_000)
    cluster = Cluster(edges=2, limits=limits)
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 10_000))
    refused: list[chat_pb2.Error] = []
    number = 0
    while cluster.now_ms < TEN_MINUTES_MS:
        cluster.now_ms += 4 * TICK_MS
        for node_id, edge in cluster.edges.items():
            number += 1
            write = Write(CHATS[0], "alice", content, number.to_bytes(16), 0, peer_user_id="friend0")
            edge.submit(f"session{number % 25}", number, write, cluster.now_ms)
            edge.pass_time(cluster.now_ms)
            said = edge.step(cluster.now_ms)
            for _, message in said.messages:
                cluster.ask(node_id, message)
            for to_node_id, answer in cluster.owner.step().messages:
                assert isinstance(answer, Forwarded)
                cluster.edges[to_node_id].receive("owner", answer, cluster.now_ms)
            for _, _, outcome in said.answers + edge.step(cluster.now_ms).answers:
                assert isinstance(outcome, chat_pb2.Error)
                refused.append(outcome)
    assert cluster.shard.held_bytes <= 210_000
    assert len(refused) > number - 100
    assert {error.code for error in refused} == {chat_pb2.ERROR_CODE_UNAVAILABLE}
    assert all(error.retry_after_ms for error in refused)
