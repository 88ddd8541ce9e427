"""Who is not a member is refused before anything of the chat is looked at, and cannot tell whether there is one."""

import random

import pytest

from chatgrpc.core.clock import Now
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.row_store import WriteViews
from chatgrpc.core.sequencer import Lookup
from chatgrpc.core.shard import Request, Shard
from chatgrpc.core.visibility import Interval
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

NOW = Now(1_000, 1_000)
DIRECT = direct_chat_id("alice", "bob")
GROUP = group_chat_id("alice", bytes(16))
LIMITS = Limits(recent_events_per_chat=2, dedupe_span_max=50)


class Lease:
    """Never ends."""

    def holds(self, now_ms: int) -> bool:
        return True


class Owner:
    """An owner of all chats."""

    def __init__(self, rows: ModelRows | None = None, limits: Limits = LIMITS) -> None:
        self.rows = rows or ModelRows()
        self.shard = Shard(len(self.rows.boundaries) + 1, Lease(), limits, random.Random(1))
        self._wanted: list[Request] = []
        self.outcomes: dict[object, chat_pb2.SendResult | chat_pb2.Error] = {}

    def submit(self, ticket: object, write: Write) -> list[Request]:
        """Submits, and lets the store answer; returns what was asked of it."""
        assert self.shard.submit(ticket, write, NOW)
        return self.answer()

    def answer(self) -> list[Request]:
        """Lets the store answer; returns what was asked of it."""
        asked: list[Request] = []
        while requests := self.requests():
            asked += requests
            for request in requests:
                self.rows.answer(self.shard, request, NOW)
        return asked

    def step(self) -> None:
        """Outcomes are noted, and requests kept until the store is to answer."""
        output = self.shard.step()
        self._wanted += output.requests
        self.outcomes |= {answer.ticket: answer.outcome for answer in output.answers}

    def requests(self) -> list[Request]:
        """What the store is asked for."""
        self.step()
        wanted, self._wanted = self._wanted, []
        return wanted

    def code(self, ticket: object) -> chat_pb2.ErrorCode.ValueType:
        outcome = self.outcomes[ticket]
        assert isinstance(outcome, chat_pb2.Error), outcome
        return outcome.code

    def seq(self, ticket: object) -> int:
        outcome = self.outcomes[ticket]
        assert isinstance(outcome, chat_pb2.SendResult), outcome
        return outcome.seq


def text(chat_id: str, sender: str, number: int, seen_seq: int | None = 0, peer: str = "") -> Write:
    content = content_pb2.Content(text=content_pb2.TextContent(text=f"{number}"))
    return Write(chat_id, sender, content, number.to_bytes(16), seen_seq, peer_user_id=peer)


def change(content: content_pb2.Content, number: int, sender: str = "alice") -> Write:
    return Write(GROUP, sender, content, number.to_bytes(16), 0)


def group(*user_ids: str) -> Write:
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    for user_id in user_ids:
        created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_OWNER if user_id == "alice" else 1)
    return Write(GROUP, "alice", content_pb2.Content(chat_created=created), bytes(16), 0)


def removal(user_id: str, number: int, sender: str = "alice") -> Write:
    removed = content_pb2.MemberRemovedContent(user_id=user_id)
    return change(content_pb2.Content(member_removed=removed), number, sender)


def long_chat(length: int = 40) -> ModelRows:
    """A direct chat of so many messages."""
    owner = Owner(limits=Limits())
    for number in range(1, length):
        owner.submit(number, text(DIRECT, "alice", number, seen_seq=max(0, number - 1), peer="bob"))
    assert owner.seq(length - 1) == length
    return owner.rows


@pytest.mark.parametrize("seen_seq", [None, 0, 5, 39, 40, 1_000_000])
def test_a_stranger_costs_the_same_whatever_the_chat_is(seen_seq: int | None) -> None:
    """Hot, cold and long, and none at all: one read of the stranger's own memberships, and the same words."""
    hot, cold, empty = Owner(long_chat()), Owner(long_chat()), Owner()
    hot.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=39))
    found = []
    for owner in (hot, cold, empty):
        before = owner.shard.chats_active
        asked = owner.submit("eve", text(DIRECT, "eve", 1, seen_seq))
        found.append((asked, owner.outcomes["eve"]))
        assert owner.shard.chats_active == before, "nothing was loaded for a stranger"
    assert found[0] == found[1] == found[2]
    assert found[0][0] == [ReadIntervals("eve", DIRECT)]
    assert hot.code("eve") == chat_pb2.ERROR_CODE_NOT_A_MEMBER


def test_who_was_let_in_meanwhile_is_not_judged_by_what_was_read_before() -> None:
    owner = Owner()
    owner.submit("made", group("alice", "bob"))
    assert owner.shard.submit("early", text(GROUP, "carol", 1), NOW)
    (read,) = owner.requests()
    assert read == ReadIntervals("carol", GROUP)
    added = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"]))
    owner.submit("added", change(added, 2))
    assert owner.seq("added") == 2
    owner.submit("at once", text(GROUP, "carol", 3, seen_seq=2))
    owner.shard.intervals_read(read, (), NOW)
    assert owner.requests() == [read]
    assert owner.code("early") == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert "at once" not in owner.outcomes
    owner.shard.intervals_read(read, (Interval(2),), NOW)
    owner.submit("later", text(GROUP, "carol", 4, seen_seq=2))
    assert (owner.seq("at once"), owner.seq("later")) == (3, 4)
    assert owner.shard.is_idle
    assert owner.shard.held_bytes == 0


@pytest.mark.parametrize("arm", ["edit", "delete", "reaction", "members_added"])
def test_nor_does_it_depend_on_what_they_write(arm: str) -> None:
    content = {
        "edit": content_pb2.Content(edit=content_pb2.EditContent(target_seq=3, text="x")),
        "delete": content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=3)),
        "reaction": content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=3, emoji="\N{THUMBS UP SIGN}")),
        "members_added": content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["eve", "mallory"])),
    }[arm]
    owner = Owner(long_chat())
    asked = owner.submit("eve", Write(DIRECT, "eve", content, bytes(16), 0))
    assert asked == [ReadIntervals("eve", DIRECT)]


def test_a_member_is_asked_about_once_and_not_while_the_chat_is_loaded() -> None:
    owner = Owner(long_chat())
    assert ReadIntervals("bob", DIRECT) in owner.submit("cold", text(DIRECT, "bob", 100, seen_seq=40))
    hot = owner.submit("hot", text(DIRECT, "bob", 101, seen_seq=41))
    assert not any(isinstance(request, ReadIntervals | Lookup) for request in hot)
    assert (owner.seq("cold"), owner.seq("hot")) == (41, 42)


def test_writes_of_one_sender_wait_at_the_door_in_their_order() -> None:
    owner = Owner(long_chat())
    for number in (100, 101):
        owner.shard.submit(number, text(DIRECT, "bob", number, seen_seq=40), NOW)
    assert owner.requests() == [ReadIntervals("bob", DIRECT)]
    assert not owner.shard.is_idle, "a shard that is given away answers them first"
    owner.shard.intervals_read(ReadIntervals("bob", DIRECT), owner.rows.intervals("bob", DIRECT), NOW)
    owner.submit(102, text(DIRECT, "bob", 102, seen_seq=40))
    assert [owner.seq(number) for number in (100, 101, 102)] == [41, 42, 43]


def test_a_read_that_began_before_a_write_came_says_nothing_to_it() -> None:
    """Its sender may have been let in since, and been told so."""
    owner = Owner()
    owner.submit("create", group("alice"))
    read = ReadIntervals("bob", GROUP)
    owner.shard.submit("too early", text(GROUP, "bob", 100, seen_seq=0), NOW)
    assert owner.requests() == [read]
    found = owner.rows.intervals("bob", GROUP)
    added = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["bob"]))
    owner.submit("add", change(added, 9))
    assert owner.seq("add") == 2
    for number in (101, 102):
        owner.shard.submit(number, text(GROUP, "bob", number, seen_seq=2), NOW)
    owner.shard.intervals_read(read, found, NOW)
    assert owner.requests() == [read], "once more, for both"
    owner.shard.intervals_read(read, owner.rows.intervals("bob", GROUP), NOW)
    owner.submit(103, text(GROUP, "bob", 103, seen_seq=2))
    assert owner.code("too early") == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert [owner.seq(number) for number in (101, 102, 103)] == [3, 4, 5]


def test_their_own_chats_are_open_to_everybody() -> None:
    owner = Owner()
    owner.submit("first", text(DIRECT, "alice", 1, peer="bob"))
    owner.submit("self", text(self_chat_id("alice"), "alice", 2))
    assert (owner.seq("first"), owner.seq("self")) == (2, 2)


def test_what_follows_on_the_write_that_makes_the_chat_comes_in_behind_it() -> None:
    owner = Owner()
    owner.shard.submit("first", text(DIRECT, "alice", 1, peer="bob"), NOW)
    asked = owner.submit("second", text(DIRECT, "alice", 2))
    assert not any(isinstance(request, ReadIntervals) for request in asked)
    assert (owner.seq("first"), owner.seq("second")) == (2, 3)


def test_a_former_member_gets_the_first_result_again_and_reads_no_further_than_they_were_there() -> None:
    before = Owner()
    before.submit("create", group("alice", "bob"))
    before.submit("said", text(GROUP, "bob", 7, seen_seq=1))
    before.submit("leaves", removal("bob", 8, sender="bob"))
    for number in range(9, 39):
        before.submit(number, text(GROUP, "alice", number, seen_seq=number - 6))
    owner = Owner(before.rows)
    asked = owner.submit("said again", text(GROUP, "bob", 7, seen_seq=1))
    assert [request.ranges for request in asked if isinstance(request, Lookup)] == [((1, 3),)], "up to where they left"
    assert owner.seq("said again") == 2
    owner.submit("left again", removal("bob", 8, sender="bob"))
    assert owner.seq("left again") == 3
    owner.submit("said now", text(GROUP, "bob", 70, seen_seq=1))
    assert owner.code("said now") == chat_pb2.ERROR_CODE_NOT_A_MEMBER


def run_without_views(owner: Owner) -> list[Request]:
    """Lets the store do all but the views, so that nothing of what it was asked for counts; returns those."""
    views: list[Request] = []
    while requests := owner.requests():
        for request in requests:
            if isinstance(request, WriteViews):
                views.append(request)
            else:
                owner.rows.answer(owner.shard, request, NOW)
    return views


@pytest.mark.parametrize("came_before", [False, True])
def test_who_is_told_that_they_are_no_member_has_no_event(came_before: bool) -> None:
    """The list of their memberships does not know of an admission that a lost owner left uncommitted, nor that they wrote."""
    before = Owner()
    before.submit("create", group("alice", "bob") if came_before else group("alice"))
    if came_before:
        before.submit("leaves", removal("bob", 8, sender="bob"))
    added = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["bob"]))
    writes = change(added, 9), text(GROUP, "bob", 10, seen_seq=2), text(GROUP, "alice", 11, seen_seq=2)
    for write in writes:
        before.shard.submit(write.sender_user_id, write, NOW)
        run_without_views(before)
    assert not before.outcomes.keys() & {"alice", "bob"}, "nothing of it counts yet"

    owner = Owner(before.rows)
    owner.submit("bob", text(GROUP, "bob", 10, seen_seq=2))
    if came_before:
        assert owner.seq("bob") == 4, "they are asked in, as who was there before, and it is found that they are there again"
    else:
        assert owner.code("bob") == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    owner.submit("alice", text(GROUP, "alice", 11, seen_seq=2))
    said = [text for text in before.rows.texts(GROUP, owner.seq("alice")) if text.isdigit()]
    assert said == (["10", "11"] if came_before else ["11"])


def test_who_writes_while_their_admission_is_on_its_way_is_taken_once_it_counts() -> None:
    owner = Owner()
    owner.submit("create", group("alice"))
    added = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["bob"]))
    views: list[Request] = []
    for write in (change(added, 9), text(GROUP, "bob", 10, seen_seq=1), text(GROUP, "alice", 11, seen_seq=1)):
        owner.shard.submit(int.from_bytes(write.client_message_id), write, NOW)
        views += run_without_views(owner)
    assert owner.shard.appends_waiting == 1
    for request in views:
        owner.rows.answer(owner.shard, request, NOW)
    owner.submit("bob again", text(GROUP, "bob", 10, seen_seq=1))
    assert [owner.seq(ticket) for ticket in (9, 10, 11, "bob again")] == [2, 3, 4, 3]


def test_a_former_member_who_saw_much_is_told_no_more_than_a_stranger() -> None:
    before = Owner()
    before.submit("create", group("alice", "bob"))
    before.submit("leaves", removal("bob", 8))
    owner = Owner(before.rows)
    for seen_seq in (2, 3, 1_000_000):
        owner.submit(seen_seq, text(GROUP, "bob", 100 + seen_seq, seen_seq=seen_seq))
        assert owner.code(seen_seq) == chat_pb2.ERROR_CODE_NOT_A_MEMBER


# Bytes.


def test_what_waits_in_a_chat_is_bounded_in_bytes() -> None:
    owner = Owner(long_chat(), limits=Limits(writes_waiting_bytes_per_chat_max=5_000))
    owner.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=39))
    for number in range(10):
        content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 1_000))
        owner.shard.submit(number, Write(DIRECT, "bob", content, (2_000 + number).to_bytes(16), 41), NOW)
    owner.step()
    refused = {ticket: outcome for ticket, outcome in owner.outcomes.items() if ticket in range(10)}
    assert 4 <= 10 - len(refused) <= 5
    for outcome in refused.values():
        assert isinstance(outcome, chat_pb2.Error)
        assert outcome.code == chat_pb2.ERROR_CODE_UNAVAILABLE
        assert outcome.retry_after_ms > 0
    taken = [number for number in range(10) if number not in refused]
    owner.submit("let the store answer", text(DIRECT, "bob", 3_000, seen_seq=41))
    assert [owner.seq(number) for number in taken] == [42 + number for number in range(len(taken))]
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 20_000))
    owner.submit("large", Write(DIRECT, "bob", content, (4_000).to_bytes(16), 41))
    assert owner.seq("large") > 42, "one that is larger than all that may wait goes alone"


def test_what_waits_of_one_user_leaves_room_for_others_and_is_given_back() -> None:
    """Contents that wait at the door, in a chat that is not loaded, and in flight."""
    limits = Limits(writes_waiting_bytes_per_user_max=10_000, writes_waiting_bytes_max=20_000)
    owner = Owner(long_chat(), limits=limits)
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 1_000))

    def fill(first: int, user_id: str, to: str) -> int:
        """Twenty writes, each to another chat; returns how many are refused."""
        for number in range(first, first + 20):
            chat_id = direct_chat_id(to or user_id, f"peer{number}")
            peer_user_id = "" if to else f"peer{number}"
            write = Write(chat_id, user_id, content, number.to_bytes(16), 0, peer_user_id=peer_user_id)
            owner.shard.submit(number, write, NOW)
        return sum(isinstance(answer.outcome, chat_pb2.Error) for answer in owner.shard.step().answers)

    assert fill(100, "eve", "alice") == 11, "at the door"
    assert fill(200, "eve", "") == 20, "it is one room for all of hers"
    assert fill(300, "bob", "") == 11, "in chats that are to be loaded"
    owner.shard.drop()
    assert owner.shard.held_bytes == 0
    owner = Owner(long_chat(), limits=limits)
    owner.submit("warm it", text(DIRECT, "bob", 1_000, seen_seq=39))
    refused = 0
    for number in range(40):
        owner.shard.submit(number, Write(DIRECT, "bob", content, (2_000 + number).to_bytes(16), 41), NOW)
        if number % 20 == 19:
            owner.step()
            refused = sum(isinstance(owner.outcomes.get(n), chat_pb2.Error) for n in range(40))
    owner.submit("let the store answer", text(DIRECT, "bob", 3_000, seen_seq=41))
    assert 20 <= refused < 40, "those in flight count"
    assert owner.shard.held_bytes == 0
    owner.submit("after all", text(DIRECT, "bob", 5_000, seen_seq=41))
    assert owner.seq("after all") > 41


def test_what_waits_on_a_node_is_bounded_in_bytes_also_at_the_door_and_given_back_with_the_shard() -> None:
    owner = Owner(limits=Limits(writes_waiting_bytes_max=10_000))
    content = content_pb2.Content(text=content_pb2.TextContent(text="x" * 1_000))
    for number in range(20):
        owner.shard.submit(number, Write(direct_chat_id("alice", f"{number}"), "eve", content, bytes(16), 0), NOW)
    assert len(owner.shard.step().answers) == 11
    owner.shard.drop()
    for number in range(20):
        owner.shard.submit(number, Write(direct_chat_id("alice", f"{number}"), "eve", content, bytes(16), 0), NOW)
    assert len(owner.shard.step().answers) == 11, "and not 20"
