"""A shard in the hands of one owner: what is taken, what counts when, and what is left to the next owner."""

import random
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.clock import Now
from chatgrpc.core.epochs import Row
from chatgrpc.core.ids import direct_chat_id, group_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.row_store import ReadBucket, ReadHead, WriteBoundary, WriteMark, WriteRow, WriteViews
from chatgrpc.core.sequencer import Delivery, Lookup
from chatgrpc.core.shard import Head, Request, Shard
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_rows import ModelRows

CHAT = direct_chat_id("alice", "bob")
GROUP = group_chat_id("alice", bytes(16))
BUCKET_SEQS = 4


@dataclass
class Lease:
    """Holds until a test ends it."""

    over: bool = False

    def holds(self, now_ms: int) -> bool:
        return not self.over


@dataclass
class Owner:
    """One owner of a shard."""

    rows: ModelRows
    epoch: int = 1
    limits: Limits = field(default_factory=Limits)
    lease: Lease = field(default_factory=Lease)
    outcomes: dict[object, chat_pb2.SendResult | chat_pb2.Error] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    heads: dict[object, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shard = Shard(self.epoch, self.lease, self.limits, random.Random(self.epoch), self.rows.bucket_seqs)
        self.now = Now(1_000, 1_000)
        self._wanted: list[Request] = []

    def submit(self, ticket: object, write: Write) -> bool:
        taken = self.shard.submit(ticket, write, self.now)
        self.take()
        return taken

    def ask_head(self, ticket: object, chat_id: str = CHAT) -> bool:
        asked = self.shard.ask_head(ticket, chat_id, self.now)
        self.take()
        return asked

    def take(self) -> None:
        output = self.shard.step()
        self._wanted += output.requests
        for answer in output.answers:
            assert answer.ticket not in self.outcomes, "answered twice"
            self.outcomes[answer.ticket] = answer.outcome
        self.deliveries += output.deliveries
        self.heads |= {head.ticket: head.seq for head in output.heads}

    def requests(self) -> list[Request]:
        """What the store is asked for; what the shard says beside it is noted."""
        self.take()
        wanted, self._wanted = self._wanted, []
        return wanted

    def run(self) -> None:
        """Lets the store answer until nothing is asked any more."""
        while requests := self.requests():
            for request in requests:
                self.rows.answer(self.shard, request, self.now)

    def run_until(self, kind: type[Request]) -> list[Request]:
        """Lets the store answer until requests of a kind are asked, which are returned and not answered."""
        while requests := self.requests():
            held = [request for request in requests if isinstance(request, kind)]
            for request in requests:
                if request not in held:
                    self.rows.answer(self.shard, request, self.now)
            if held:
                return held
        raise AssertionError(f"no {kind.__name__} was asked for")

    def die(self) -> None:
        """Every row that is asked for lands, and nobody hears of it."""
        while requests := self.requests():
            for request in requests:
                if isinstance(request, WriteRow):
                    self.rows.put(request)
                else:
                    self.answer(request)

    def answer_only(self, requests: list[Request]) -> None:
        for request in requests:
            self.rows.answer(self.shard, request, self.now)

    def answer(self, *requests: Request) -> None:
        for request in requests:
            self.rows.answer(self.shard, request, self.now)
        self.take()

    def seq(self, ticket: object) -> int:
        outcome = self.outcomes[ticket]
        assert isinstance(outcome, chat_pb2.SendResult), outcome
        return outcome.seq


def text(words: str, seen_seq: int = 0) -> Write:
    content = content_pb2.Content(text=content_pb2.TextContent(text=words))
    return Write(CHAT, "alice", content, words.encode().ljust(16), seen_seq, peer_user_id="bob")


def edit(target_seq: int, words: str, seen_seq: int = 0) -> Write:
    content = content_pb2.Content(edit=content_pb2.EditContent(target_seq=target_seq, text=words))
    return Write(CHAT, "alice", content, words.encode().ljust(16), seen_seq, peer_user_id="bob")


def delete(target_seq: int, seen_seq: int = 0) -> Write:
    content = content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=target_seq))
    return Write(CHAT, "alice", content, f"delete {target_seq}".encode().ljust(16), seen_seq, peer_user_id="bob")


def create_group() -> Write:
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    created.members.add(user_id="alice", role=content_pb2.MEMBER_ROLE_OWNER)
    created.members.add(user_id="bob", role=content_pb2.MEMBER_ROLE_MEMBER)
    return Write(GROUP, "alice", content_pb2.Content(chat_created=created), bytes(16), 0)


def change_members(user_id: str, comes: bool, key: int) -> Write:
    if comes:
        content = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=[user_id]))
    else:
        content = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id=user_id))
    return Write(GROUP, "alice", content, key.to_bytes(16), 0)


def rows_of(requests: list[Request]) -> list[Row]:
    return [request.row for request in requests if isinstance(request, WriteRow)]


# Writes.


def test_a_write_is_answered_and_delivered_when_its_row_and_its_views_are_stored() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    assert owner.submit("hi", text("hi"))
    assert owner.shard.appends_waiting == 0, "the chat is being read"
    rows = owner.run_until(WriteRow)
    assert owner.shard.appends_waiting == 2, "the chat's opening, and the message"
    assert owner.outcomes == {}
    created, message = rows
    owner.answer(message)
    assert owner.outcomes == {}, "the event before it is not stored"
    owner.answer(created)
    (views,) = owner.run_until(WriteViews)
    assert (owner.outcomes, owner.deliveries) == ({}, [])
    owner.answer(views)
    assert owner.seq("hi") == 2
    assert [(delivery.seq, delivery.recipients) for delivery in owner.deliveries] == [
        (1, ("alice", "bob")),
        (2, ("alice", "bob")),
    ]
    assert owner.rows.texts(CHAT, 2) == ["chat_created", "hi"]
    assert owner.shard.is_idle


def test_a_write_that_was_committed_before_has_the_same_seq_under_the_next_owner() -> None:
    rows = ModelRows(BUCKET_SEQS)
    first = Owner(rows)
    for words in ("a", "b", "c"):
        first.submit(words, text(words))
    first.run()
    heir = Owner(rows, epoch=2)
    heir.submit("b again", text("b"))
    heir.submit("d", text("d"))
    heir.run()
    assert heir.seq("b again") == first.seq("b") == 3
    assert heir.seq("d") == 5
    assert rows.texts(CHAT, 5) == ["chat_created", "a", "b", "c", "d"]


def test_nothing_is_taken_once_the_shard_is_to_be_given_away_but_what_was_taken_is_finished() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.submit("a", text("a"))
    owner.shard.stop_accepting()
    assert not owner.submit("b", text("b"))
    assert not owner.ask_head("head")
    assert not owner.shard.is_idle
    owner.run()
    assert owner.seq("a") == 2
    assert owner.shard.is_idle
    assert owner.shard.take_marks() == [WriteMark(CHAT, 2)]


def test_a_shard_is_idle_when_nothing_of_it_is_read_or_written() -> None:
    rows = ModelRows(BUCKET_SEQS)
    owner = Owner(rows)
    assert owner.shard.is_idle
    owner.submit("a", text("a"))
    assert not owner.shard.is_idle, "the chat is being read"
    owner.run()
    assert owner.shard.is_idle
    owner.submit("b", text("b"))
    assert not owner.shard.is_idle, "a row is being written"
    owner.run()
    heir = Owner(rows, epoch=2)
    heir.submit("a again", text("a"))
    lookups = heir.run_until(Lookup)
    assert not heir.shard.is_idle, "the log is being searched"
    heir.answer(*lookups)
    assert heir.shard.is_idle


# The lease.


def test_what_was_stored_after_the_lease_was_over_counts_for_nothing() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.submit("a", text("a"))
    rows = owner.run_until(WriteRow)
    owner.lease.over = True
    owner.answer(*rows)
    assert owner.requests() == []
    assert (owner.outcomes, owner.deliveries) == ({}, [])
    assert not owner.shard.holds(owner.now)
    assert not owner.submit("b", text("b"))
    assert not owner.ask_head("head")


def test_what_was_read_after_the_lease_was_over_leads_to_nothing() -> None:
    for kind in (ReadHead, ReadBucket):
        owner = Owner(ModelRows(BUCKET_SEQS))
        owner.submit("a", text("a"))
        requests = owner.run_until(kind)
        owner.lease.over = True
        owner.answer(*requests)
        assert owner.requests() == []
        assert owner.outcomes == {}


def test_a_lookup_that_came_after_the_lease_was_over_decides_nothing() -> None:
    rows = ModelRows(BUCKET_SEQS)
    owner = Owner(rows)
    for words in ("a", "b", "c"):
        owner.submit(words, text(words))
    owner.run()
    heir = Owner(rows, epoch=2)
    heir.submit("a again", text("a"))
    lookups = heir.run_until(Lookup)
    heir.lease.over = True
    heir.answer(*lookups)
    assert heir.outcomes == {}


# Heads.


def test_the_head_of_a_chat_that_nobody_made_is_zero_and_leaves_no_trace() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.ask_head("head")
    owner.run()
    assert owner.heads == {"head": 0}
    assert owner.rows.rows == {}
    assert owner.rows.boundaries == {}
    assert owner.shard.chats_active == 0
    assert owner.shard.chat(CHAT) is None


def test_a_head_is_what_is_committed_and_not_what_is_on_its_way() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.submit("a", text("a"))
    owner.run()
    owner.submit("b", text("b"))
    owner.ask_head("head")
    assert owner.heads == {"head": 2}
    owner.run()
    owner.ask_head("later")
    assert owner.heads["later"] == 3


def test_all_who_ask_while_a_chat_is_read_are_answered_when_it_is() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.ask_head("one")
    owner.ask_head("other")
    (read,) = owner.requests()
    owner.ask_head("third")
    owner.answer(read)
    owner.run()
    assert owner.heads == {"one": 0, "other": 0, "third": 0}


def test_marks_are_named_once_each_time_they_rise() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS))
    owner.submit("a", text("a"))
    owner.run()
    assert owner.shard.take_marks() == [WriteMark(CHAT, 2)]
    assert owner.shard.take_marks() == []
    owner.submit("b", text("b"))
    owner.run()
    assert owner.shard.take_marks() == [WriteMark(CHAT, 3)]


# Taking over.


def test_rows_of_the_dead_owner_are_adopted_under_the_own_epoch_before_anything_is_said() -> None:
    rows = ModelRows(BUCKET_SEQS)
    dead = Owner(rows)
    dead.submit("a", text("a"))
    dead.die()
    heir = Owner(rows, epoch=5)
    heir.ask_head("head")
    adopted = heir.run_until(WriteRow)
    assert [(row.seq, row.epoch) for row in rows_of(adopted)] == [(1, 5), (2, 5)]
    assert [row.event for row in rows_of(adopted)] == [row.event for row in rows.rows[CHAT]]
    heir.answer(adopted[0])
    assert heir.requests() == []
    heir.answer(adopted[1])
    (boundary,) = heir.run_until(WriteBoundary)
    assert boundary == WriteBoundary(CHAT, 0, 5, 1)
    assert heir.heads == {}
    heir.answer(boundary)
    heir.run()
    assert heir.heads == {"head": 2}
    assert heir.shard.take_marks() == [WriteMark(CHAT, 2)]


def test_what_was_refused_for_good_is_no_event_whatever_a_dead_owner_left() -> None:
    """Owner 1 takes an edit and dies. Its row lands after owner 2 has looked, which refuses the edit, now too late."""
    rows, first = _one_message()
    first.now = Now(1_000 + Limits().edit_window_ms, 2_000)
    first.submit("in time", edit(2, "mended", seen_seq=2))
    stuck = first.run_until(WriteRow)
    second = Owner(rows, epoch=2)
    second.now = Now(first.now.wall_ms + 1, 3_000)
    second.submit("again", edit(2, "mended", seen_seq=2))
    (boundary,) = second.run_until(WriteBoundary)
    assert second.outcomes == {}, "the row may be found by the next owner yet"
    assert not second.shard.is_idle, "it is waited for when the shard is given away"
    chat = second.shard.chat(CHAT)
    assert chat is not None
    assert not chat.is_idle, "nor is the chat forgotten"
    second.answer(boundary)
    assert _code(second.outcomes["again"]) == chat_pb2.ERROR_CODE_WINDOW_PASSED
    assert second.shard.is_idle
    for row in stuck:
        assert isinstance(row, WriteRow)
        rows.put(row)
    third = Owner(rows, epoch=3)
    third.ask_head("head")
    third.run()
    assert third.heads == {"head": 2}


def test_a_group_whose_making_was_refused_for_good_is_none_whatever_a_dead_owner_left() -> None:
    rows = ModelRows(BUCKET_SEQS)
    first = Owner(rows)
    first.submit("creation", create_group())
    stuck = first.run_until(WriteRow)
    rows.group_counts["bob"] = Limits().groups_by_others_max  # others have added him meanwhile
    second = Owner(rows, epoch=2)
    second.submit("again", create_group())
    second.run()
    assert _code(second.outcomes["again"]) == chat_pb2.ERROR_CODE_LIMIT_EXCEEDED
    assert second.shard.chat(GROUP) is None, "a name that nobody made a chat of must not take a place"
    assert second.shard.is_idle
    for row in stuck:
        assert isinstance(row, WriteRow)
        rows.put(row)
    third = Owner(rows, epoch=3)
    third.ask_head("head", GROUP)
    third.run()
    assert third.heads == {"head": 0}
    third.submit("once more", create_group())
    rows.group_counts["bob"] = 0
    third.run()
    assert isinstance(third.outcomes["once more"], chat_pb2.SendResult)


def test_a_refusal_waits_for_a_boundary_once_and_not_where_one_stands() -> None:
    rows, first = _one_message()
    first.submit("of one who has written", edit(9, "?"))
    assert first.requests() == []
    second = Owner(rows, epoch=2)
    for ticket in ("a", "b"):
        second.submit(ticket, edit(9, ticket, seen_seq=2))
    assert len(second.run_until(WriteBoundary)) == 1
    second.answer(WriteBoundary(CHAT, 0, 2, 3))
    assert {_code(second.outcomes[ticket]) for ticket in "ab"} == {chat_pb2.ERROR_CODE_TARGET_NOT_FOUND}
    second.submit("c", edit(9, "c", seen_seq=2))
    assert second.requests() == []
    assert _code(second.outcomes["c"]) == chat_pb2.ERROR_CODE_TARGET_NOT_FOUND


def test_a_chat_that_is_given_up_answers_refusals_that_wait_for_its_boundary() -> None:
    rows, _ = _one_message()
    second = Owner(rows, epoch=2)
    second.submit("a", edit(9, "?", seen_seq=2))
    (boundary,) = second.run_until(WriteBoundary)
    assert isinstance(boundary, WriteBoundary)
    second.shard.write_failed(boundary, ValueError())
    second.take()
    assert _code(second.outcomes["a"]) == chat_pb2.ERROR_CODE_CHAT_DAMAGED
    assert second.shard.is_idle
    # It may land yet, and say of rows that would be taken over by then that they do not count: so not under this epoch.
    assert [damage.for_good for damage in second.shard.damaged()] == [True]
    second.answer(boundary)
    assert second.requests() == []


def test_strangers_and_those_who_left_make_an_owner_write_nothing() -> None:
    rows = ModelRows(BUCKET_SEQS)
    first = Owner(rows)
    first.submit("creation", create_group())
    first.run()
    first.submit("removal", change_members("bob", comes=False, key=1))
    first.run()
    for mark in first.shard.take_marks():
        rows.put(mark)
    second = Owner(rows, epoch=2)
    second.ask_head("keep it", GROUP)
    words = content_pb2.Content(text=content_pb2.TextContent(text="?"))
    joining = content_pb2.Content(join_requested=content_pb2.JoinRequestedContent())
    writes = {
        "who left": Write(GROUP, "bob", words, b"1".ljust(16), 0),
        "stranger": Write(GROUP, "eve", words, b"2".ljust(16), 0),
        "wrong link": Write(GROUP, "eve", joining, b"3".ljust(16), 0, join_token="guessed"),
        "no such chat": replace(edit(1, "?"), chat_id=direct_chat_id("alice", "zoe"), peer_user_id="zoe"),
    }
    for ticket, write in writes.items():
        second.submit(ticket, write)
    asked: list[Request] = []
    while requests := second.requests():
        asked += requests
        second.answer(*requests)
    assert {_code(second.outcomes[ticket]) for ticket in writes} == {
        chat_pb2.ERROR_CODE_NOT_A_MEMBER,
        chat_pb2.ERROR_CODE_LINK_INVALID,
        chat_pb2.ERROR_CODE_TARGET_NOT_FOUND,
    }
    assert not [request for request in asked if isinstance(request, WriteBoundary | WriteRow)]


def _one_message() -> tuple[ModelRows, Owner]:
    """A chat with one message, at 2, of which its owner has stored the mark."""
    rows = ModelRows(BUCKET_SEQS)
    owner = Owner(rows)
    owner.submit("message", text("hello"))
    owner.run()
    for mark in owner.shard.take_marks():
        rows.put(mark)
    return rows, owner


def _code(outcome: chat_pb2.SendResult | chat_pb2.Error) -> int:
    assert isinstance(outcome, chat_pb2.Error), outcome
    return outcome.code


def test_users_whom_an_adopted_event_lets_in_or_out_are_told_of_it() -> None:
    rows = ModelRows(BUCKET_SEQS)
    dead = Owner(rows)
    dead.submit("group", create_group())
    dead.submit("carol", change_members("carol", comes=True, key=1))
    dead.submit("dave", change_members("dave", comes=True, key=2))
    dead.submit("no dave", change_members("dave", comes=False, key=3))
    dead.run()
    rows.put(WriteMark(GROUP, 1))
    heir = Owner(rows, epoch=2)
    heir.ask_head("head", GROUP)
    heir.run()
    carol_in, dave_in, dave_out = heir.deliveries
    assert (carol_in.seq, carol_in.recipients, carol_in.left_user_id) == (2, ("carol",), "")
    assert (dave_in.seq, dave_in.recipients, dave_in.left_user_id) == (3, ("dave",), "")
    assert (dave_out.seq, dave_out.recipients, dave_out.left_user_id) == (4, ("alice", "bob", "carol", "dave"), "dave")
    assert all(delivery.changes_members for delivery in heir.deliveries)
    assert [delivery.chunk for delivery in heir.deliveries] == [delivery.chunk for delivery in dead.deliveries[1:]]
    assert heir.heads == {"head": 4}


def test_members_are_told_the_head_that_was_adopted_and_find_by_it_what_else_they_lack() -> None:
    rows = ModelRows()
    dead = Owner(rows)
    dead.submit("a", text("a"))
    dead.run()
    rows.put(WriteMark(CHAT, 2))
    dead.submit("b", text("b"))
    dead.submit("c", text("c"))
    dead.die()
    assert [delivery.seq for delivery in dead.deliveries] == [1, 2]
    heir = Owner(rows, epoch=2)
    heir.ask_head("head")
    heir.run()
    assert [(delivery.seq, delivery.recipients) for delivery in heir.deliveries] == [(4, ("alice", "bob"))]
    assert not heir.deliveries[0].changes_members
    rows.put(WriteMark(CHAT, 4))
    last = Owner(rows, epoch=3)
    last.ask_head("head")
    last.run()
    assert last.deliveries == [], "nothing was adopted"


def test_adopted_states_of_a_chat_are_stored_one_after_the_other() -> None:
    rows = ModelRows()
    dead = Owner(rows)
    dead.submit("group", create_group())
    dead.run()
    for key in (1, 2, 3):
        dead.submit(key, change_members("carol", comes=key != 2, key=key))
    dead.die()
    heir = Owner(rows, epoch=2)
    heir.ask_head("head", GROUP)
    views = [heir.run_until(WriteViews)]
    while len(views) < 4:
        heir.answer(*views[-1])
        views.append(heir.run_until(WriteViews))
    seqs = [[request.entry.seq for request in step if isinstance(request, WriteViews)] for step in views]
    assert seqs == [[1], [2], [3], [4]]
    assert heir.heads == {}
    heir.answer(*views[-1])
    heir.run()
    assert heir.heads == {"head": 4}


def test_adopted_erasures_come_after_adopted_edits() -> None:
    rows = ModelRows()
    dead = Owner(rows)
    dead.submit("a", text("a"))
    dead.run()
    rows.put(WriteMark(CHAT, 2))
    dead.submit("edit", edit(2, "b"))
    dead.submit("delete", delete(2))
    dead.die()
    heir = Owner(rows, epoch=2)
    heir.ask_head("head")
    (edited,) = heir.run_until(WriteViews)
    assert isinstance(edited, WriteViews)
    assert (edited.entry.amends_seq, edited.entry.erases_seq) == (2, 0)
    heir.answer(edited)
    (deleted,) = heir.run_until(WriteViews)
    assert isinstance(deleted, WriteViews)
    assert (deleted.entry.seq, deleted.entry.erases_seq, deleted.entry.epoch) == (4, 2, 2)


def test_repeated_successes_change_nothing() -> None:
    rows = ModelRows(BUCKET_SEQS)
    dead = Owner(rows)
    dead.submit("a", text("a"))
    dead.die()
    heir = Owner(rows, epoch=2)
    heir.submit("b", text("b"))
    while requests := heir.requests():
        for request in requests:
            heir.answer(request)
            if isinstance(request, WriteRow | WriteBoundary | WriteViews):
                heir.answer(request)
    heir.take()
    assert heir.seq("b") == 3
    assert [delivery.seq for delivery in heir.deliveries] == [1, 2, 3], "1 lets its members in, 2 is the adopted head"


# Memory.


def test_a_chat_that_was_forgotten_is_read_again_under_the_same_epoch() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS), limits=Limits(chats_active_max=1))
    owner.submit("a", text("a"))
    owner.run()
    owner.submit("group", create_group())
    owner.run()
    owner.submit("a again", text("a"))
    owner.submit("b", text("b"))
    owner.run()
    assert owner.seq("a again") == owner.seq("a")
    assert owner.seq("b") == 3
    assert owner.shard.chats_active <= 2
    epochs = {row.epoch for row in owner.rows.rows[CHAT]}
    assert epochs == {1}


def test_who_is_in_a_forgotten_chat_is_known_once_its_head_was_asked_for() -> None:
    owner = Owner(ModelRows(BUCKET_SEQS), limits=Limits(chats_active_max=1))
    owner.submit("a", text("a"))
    owner.run()
    owner.submit("group", create_group())
    owner.run()
    assert owner.shard.ask_head("head", CHAT, owner.now, with_chat=True)
    heads: list[Head] = []
    while not heads:
        output = owner.shard.step()
        owner.answer_only(output.requests)
        heads += output.heads
    (head,) = heads
    assert (head.ticket, head.seq) == ("head", 2)
    assert head.chat is not None
    assert head.chat.recipients == ("alice", "bob")
    assert owner.shard.chat(CHAT) is None, "there is no room for it"


# Owners one after the other.


@given(st.data())
def test_through_any_number_of_owners_each_message_is_committed_once_and_what_was_answered_stays(data: st.DataObject) -> None:
    """Each owner dies with any of its writes done and any not; the sender sends again what has no answer."""
    rows = ModelRows(BUCKET_SEQS)
    answered: dict[str, int] = {}
    outbox = [f"message {number}" for number in range(data.draw(st.integers(1, 12)))]
    for epoch in range(1, data.draw(st.integers(2, 6))):
        owner = Owner(rows, epoch=epoch, limits=Limits(recent_events_per_chat=2, appends_in_flight_per_chat_max=3))
        for words in outbox:
            if words not in answered:
                owner.submit(words, text(words))
        for _ in range(data.draw(st.integers(0, 40))):
            requests = owner.requests()
            if not requests:
                break
            for request in data.draw(st.permutations(requests)):
                fate = data.draw(st.sampled_from(("answered", "answered", "answered", "done")))
                if fate == "answered":
                    owner.answer(request)
                elif isinstance(request, WriteRow | WriteBoundary | WriteViews):
                    rows.put(request)
        for ticket in owner.outcomes:
            assert isinstance(ticket, str)
            assert answered.setdefault(ticket, owner.seq(ticket)) == owner.seq(ticket)
        for mark in owner.shard.take_marks():
            if data.draw(st.booleans()):
                rows.put(mark)
    last = Owner(rows, epoch=99)
    for words in outbox:
        last.submit(words, text(words))
    last.run()
    places = {words: last.seq(words) for words in outbox}
    assert {words: places[words] for words in answered} == answered
    assert sorted(places.values()) == list(range(2, len(outbox) + 2))
    log = rows.texts(CHAT, len(outbox) + 1)
    assert {words: log.index(words) + 1 for words in outbox} == places
