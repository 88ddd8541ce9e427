"""What a node keeps loaded: a budget of all its shards together, which questions do not use up."""

import random

from chatgrpc.core.budget import Budget
from chatgrpc.core.clock import Now
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.row_store import ReadBucket, ReadHead, WriteMark
from chatgrpc.core.shard import Head, Request, Shard
from chatgrpc.core.write import Write
from chatgrpc.v1 import content_pb2
from tests.unit.core.model_rows import ModelRows

NOW = Now(1_000, 1_000)


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Node:
    """Shards over one store, with one budget."""

    def __init__(self, limits: Limits, shards: int = 3, rows: ModelRows | None = None, epoch: int = 1) -> None:
        self.rows = rows or ModelRows()
        self.budget = Budget(limits)
        self.limits = limits
        self.shards = [self.take(epoch) for _ in range(shards)]
        self.heads: list[Head] = []

    def take(self, epoch: int) -> Shard:
        return Shard(epoch, Lease(), self.limits, random.Random(1), budget=self.budget)

    def run(self, shard: Shard) -> list[Request | WriteMark]:
        """Lets the store answer; returns what was asked of it."""
        asked: list[Request | WriteMark] = []
        while requests := self.requests(shard):
            asked += requests
            for request in requests:
                self.rows.answer(shard, request, NOW)
        for mark in shard.take_marks():
            asked.append(mark)
            self.rows.put(mark)
        return asked

    def requests(self, shard: Shard) -> list[Request]:
        output = shard.step()
        self.heads += output.heads
        return output.requests

    def write(self, shard: Shard, peer: str, number: int = 1) -> None:
        chat_id = direct_chat_id("alice", peer)
        content = content_pb2.Content(text=content_pb2.TextContent(text="a"))
        shard.submit(number, Write(chat_id, "alice", content, number.to_bytes(16), 0, peer_user_id=peer), NOW)
        self.run(shard)

    def ask(self, shard: Shard, peer: str, *, with_chat: bool = False) -> tuple[Head, list[Request | WriteMark]]:
        assert shard.ask_head("ticket", direct_chat_id("alice", peer), NOW, with_chat=with_chat)
        self.heads.clear()
        asked = self.run(shard)
        (head,) = self.heads
        return head, asked

    def loaded(self) -> set[str]:
        peers = [f"bob{number}" for number in range(30)]
        return {peer for peer in peers for shard in self.shards if shard.chat(direct_chat_id("alice", peer)) is not None}


def test_the_budget_is_the_nodes_however_its_chats_lie_in_shards() -> None:
    node = Node(Limits(chats_active_max=6))
    one, two, three = node.shards
    for number in range(6):
        node.write(one, f"bob{number}")
    assert node.loaded() == {f"bob{number}" for number in range(6)}, "one shard may use it all"
    node.write(one, "bob0", number=2)
    for number in range(6, 9):
        node.write((two, three)[number % 2], f"bob{number}")
    assert node.loaded() == {"bob0", "bob4", "bob5", "bob6", "bob7", "bob8"}, "the longest idle of any shard have gone"
    assert node.budget.chats == 6


def test_chats_with_much_in_them_count_for_more() -> None:
    node = Node(Limits(chats_active_bytes_max=40_000), shards=1)
    (shard,) = node.shards
    for peer in range(8):
        node.write(shard, f"bob{peer}")
    few = len(node.loaded())
    for number in range(2, 60):
        node.write(shard, "bob7", number)
    assert 1 <= len(node.loaded()) < few
    assert "bob7" in node.loaded()
    assert node.budget.chats_bytes <= 40_000 + 500


def test_a_question_for_an_idle_chat_reads_twice_writes_nothing_and_keeps_nothing() -> None:
    before = Node(Limits())
    before.write(before.shards[0], "bob0")
    node = Node(Limits(), rows=before.rows, epoch=2)
    (shard, *_) = node.shards
    head, asked = node.ask(shard, "bob0")
    assert head.seq == 2
    assert [type(request) for request in asked] == [ReadHead, ReadBucket], "the mark that it read is not written again"
    assert (node.loaded(), shard.chats_active, node.budget.chats, node.budget.chats_bytes) == (set(), 0, 0, 0)


def test_asked_again_it_reads_nothing_and_still_says_where_the_chat_ends() -> None:
    before = Node(Limits())
    before.write(before.shards[0], "bob0")
    node = Node(Limits(), rows=before.rows, epoch=2)
    (shard, *_) = node.shards
    node.ask(shard, "bob0")
    head, asked = node.ask(shard, "bob0")
    assert (head.seq, asked) == (2, [])
    node.write(shard, "bob0", number=5)
    assert node.ask(shard, "bob0")[0].seq == 3


def test_where_a_chat_ends_is_known_by_its_owner_only() -> None:
    limits = Limits()
    node = Node(limits, shards=1)
    (first,) = node.shards
    node.write(first, "bob0")
    node.ask(first, "bob1")
    first.drop()
    assert node.budget.chats == 0
    later = node.take(2)
    other = Node(limits, shards=1, rows=node.rows, epoch=3)
    other.write(other.shards[0], "bob0", number=5)
    next_owner = node.take(4)
    head, asked = node.ask(next_owner, "bob0")
    assert head.seq == 3
    assert asked
    assert later.chats_active == 0


def test_a_mark_that_rose_is_written() -> None:
    before = Node(Limits())
    before.write(before.shards[0], "bob0")
    chat_id = direct_chat_id("alice", "bob0")
    before.rows.marks[chat_id] = 1
    node = Node(Limits(), rows=before.rows, epoch=2)
    _, asked = node.ask(node.shards[0], "bob0")
    assert asked[-1] == WriteMark(chat_id, 2)


def test_questions_drop_nothing_that_is_written_to() -> None:
    node = Node(Limits(chats_active_max=3))
    one, two, _ = node.shards
    hot = {"bob0", "bob1", "bob2"}
    for number in range(20):
        node.write(two, f"bob{number + 10}")
    for peer in sorted(hot):
        node.write(one, peer)
    for number in range(20):
        node.ask(two, f"bob{number + 10}")
        head, _ = node.ask(two, f"bob{number + 10}", with_chat=True)
        assert head.chat is not None
        assert set(head.chat.recipients) == {"alice", f"bob{number + 10}"}
    assert node.loaded() == hot


def test_a_chat_that_is_wanted_itself_stays_while_there_is_room_and_is_the_first_to_go() -> None:
    node = Node(Limits(chats_active_max=3))
    one, two, _ = node.shards
    for peer in ("bob10", "bob11"):
        node.write(two, peer)
    two.drop()
    two = node.shards[1] = node.take(2)
    node.ask(two, "bob10", with_chat=True)
    _, asked = node.ask(two, "bob10", with_chat=True)
    assert asked == [], "who is in it is asked for again and again"
    for number in range(3):
        node.write(one, f"bob{number}")
    assert node.loaded() == {"bob0", "bob1", "bob2"}
    node.write(two, "bob10", number=5)
    assert "bob10" in node.loaded(), "once it is written to, it is like all others"


def test_heads_that_are_remembered_are_bounded() -> None:
    budget = Budget(Limits(heads_remembered_max=10))
    owner = object()
    for number in range(100):
        budget.remember_head(owner, f"c{number}", number + 1)
    assert [budget.head_of(owner, f"c{number}") for number in (0, 89, 90, 99)] == [0, 0, 91, 100]
    assert budget.head_of(object(), "c99") == 0
