"""The sequencer, one schedule at a time; random ones stand in test_sequencer_guarantees.py."""

import random
from collections.abc import Sequence

import pytest

from chatgrpc.core.active_chat import ActiveChat, event_meta
from chatgrpc.core.clock import Now
from chatgrpc.core.ids import direct_chat_id, group_chat_id, self_chat_id
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.sequencer import Delivery, Group, Lookup, Sequencer
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.core.model_log import ModelLog

Outcome = chat_pb2.SendResult | chat_pb2.Error


class Owner:
    """A sequencer over a model log, whose store does what the test says."""

    def __init__(self, limits: Limits | None = None, log: ModelLog | None = None) -> None:
        self.limits = limits or Limits()
        self.log = log or ModelLog()
        self.sequencer = Sequencer(1, self.limits, random.Random(1))
        self.now_ms = 1_000
        """By the wall clock."""
        self.monotonic_ms = 5_000
        self.opened: set[str] = set()
        """Who has opened the direct chat with whoever writes."""
        self.outcomes: dict[str, Outcome] = {}
        self.order: list[str] = []
        self.deliveries: list[Delivery] = []

    @property
    def now(self) -> Now:
        return Now(self.now_ms, self.monotonic_ms)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        self.monotonic_ms += ms

    def submit(self, ticket: str, write: Write) -> None:
        self.sequencer.submit(ticket, write, self.now)
        self.take_answers()

    def take_answers(self) -> None:
        for answer in self.sequencer.take_answers():
            assert isinstance(answer.ticket, str)
            assert answer.ticket not in self.outcomes, "answered twice"
            self.outcomes[answer.ticket] = answer.outcome
            self.order.append(answer.ticket)

    def read(self) -> None:
        """Answers all reads that are wanted, and those that this leads to."""
        while True:
            loads, lookups = self.sequencer.take_loads(), self.sequencer.take_lookups()
            intervals = self.sequencer.take_intervals()
            if not loads and not lookups and not intervals:
                break
            for read in intervals:
                membership = self.log.membership(read.user_id, read.chat_id)
                self.sequencer.intervals_read(read, membership.intervals if membership is not None else (), self.now)
            for chat in loads:
                self.sequencer.loaded(chat, self.log.load(chat.chat_id), self.now)
            for lookup in lookups:
                self.answer(lookup)
        self.take_answers()

    def answer(self, lookup: Lookup) -> None:
        events = [event for after, up_to in lookup.ranges for event in self.log.read_after(lookup.chat.chat_id, after, up_to)]
        counts = self.log.count_groups(lookup.user_ids) if lookup.user_ids else {}
        self.sequencer.looked_up(
            lookup,
            [event_meta(lookup.chat.chat_id, event.seq, event.event) for event in events],
            counts,
            self.now,
            frozenset(self.opened),
        )
        self.take_answers()

    def take_group(self) -> Group:
        group = self.sequencer.take_group()
        assert group is not None
        return group

    def commit(self, group: Group | None = None) -> None:
        group = group or self.take_group()
        self.log.append(group.entries)
        self.deliveries += self.sequencer.committed(group)
        for chat in self.sequencer.take_admitted():
            self.sequencer.go_on(chat, self.now)
        self.take_answers()

    def fail(self, group: Group | None = None) -> None:
        self.sequencer.failed(group or self.take_group())
        self.take_answers()

    def settle(self) -> None:
        self.read()
        while group := self.sequencer.take_group():
            self.commit(group)
            self.read()

    def do(self, ticket: str, write: Write) -> Outcome:
        """Submits a write and lets the store work until there is nothing left to do."""
        self.submit(ticket, write)
        self.settle()
        return self.outcomes[ticket]

    def result(self, ticket: str) -> chat_pb2.SendResult:
        outcome = self.outcomes[ticket]
        assert isinstance(outcome, chat_pb2.SendResult), outcome
        return outcome

    def error(self, ticket: str) -> str:
        outcome = self.outcomes[ticket]
        assert isinstance(outcome, chat_pb2.Error), outcome
        return chat_pb2.ErrorCode.Name(outcome.code).removeprefix("ERROR_CODE_")


def key(number: int) -> bytes:
    return number.to_bytes(16)


def text(words: str = "hi", reply_to_seq: int = 0) -> content_pb2.Content:
    return content_pb2.Content(text=content_pb2.TextContent(text=words), reply_to_seq=reply_to_seq)


def to(user_id: str, number: int, seen_seq: int | None = 0, sender: str = "alice", **content: object) -> Write:
    """A text to a user."""
    return Write(direct_chat_id(sender, user_id), sender, text(), key(number), seen_seq, peer_user_id=user_id)


def into(
    chat_id: str, number: int, content: content_pb2.Content | None = None, sender: str = "alice", seen_seq: int | None = None
) -> Write:
    return Write(chat_id, sender, content or text(), key(number), seen_seq)


def new_group(number: int, creator: str = "alice", *others: str) -> Write:
    created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
    created.members.add(user_id=creator, role=content_pb2.MEMBER_ROLE_OWNER)
    for user_id in others:
        created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER)
    return Write(group_chat_id(creator, key(number)), creator, content_pb2.Content(chat_created=created), key(number), 0)


def edit(target_seq: int) -> content_pb2.Content:
    return content_pb2.Content(edit=content_pb2.EditContent(target_seq=target_seq, text="ho"))


def delete(target_seq: int) -> content_pb2.Content:
    return content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=target_seq))


def remove(user_id: str) -> content_pb2.Content:
    return content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id=user_id))


def give(user_id: str, role: content_pb2.MemberRole.ValueType) -> content_pb2.Content:
    return content_pb2.Content(role_changed=content_pb2.RoleChangedContent(user_id=user_id, role=role))


def add(*user_ids: str) -> content_pb2.Content:
    return content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=user_ids))


# G1.


def test_g1_nothing_is_answered_or_delivered_before_it_is_committed() -> None:
    owner = Owner()
    owner.submit("t", to("bob", 1))
    owner.read()
    group = owner.take_group()
    assert owner.outcomes == {}
    owner.commit(group)
    assert owner.result("t").seq == 2
    assert [(d.seq, d.recipients) for d in owner.deliveries] == [(1, ("alice", "bob")), (2, ("alice", "bob"))]


def test_g1_a_refusal_waits_for_the_events_that_it_rests_on() -> None:
    """Bob is removed, and his message refused for it; but the removal never comes to be, so bob may send after all."""
    owner = Owner()
    group_id = new_group(1, "alice", "bob").chat_id
    owner.do("create", new_group(1, "alice", "bob"))
    owner.submit("remove", into(group_id, 2, remove("bob")))
    owner.submit("send", into(group_id, 3, sender="bob"))
    owner.read()
    assert owner.outcomes.keys() == {"create"}
    owner.fail()
    assert [owner.error(ticket) for ticket in ("remove", "send")] == ["UNAVAILABLE", "UNAVAILABLE"]
    owner.do("again", into(group_id, 3, sender="bob"))
    assert owner.result("again").seq == 2


def test_g1_a_refusal_leaves_when_they_are_committed() -> None:
    owner = Owner()
    group_id = new_group(1, "alice", "bob").chat_id
    owner.do("create", new_group(1, "alice", "bob"))
    owner.submit("remove", into(group_id, 2, remove("bob")))
    owner.submit("send", into(group_id, 3, sender="bob"))
    owner.settle()
    assert owner.order == ["create", "remove", "send"]
    assert owner.error("send") == "NOT_A_MEMBER"


def test_g1_a_failed_append_fails_all_that_stands_behind_it() -> None:
    owner = Owner(Limits(group_entries_max=2))
    for number in range(4):
        owner.submit(f"t{number}", to("bob", number))
    owner.read()
    owner.fail()
    assert owner.order == ["t0", "t1", "t2", "t3"], "in order, so that they are sent again in order"
    assert {owner.error(ticket) for ticket in owner.order} == {"UNAVAILABLE"}
    assert owner.sequencer.take_group() is None


def test_g1_a_failed_append_leaves_other_chats_alone() -> None:
    owner = Owner(Limits(group_entries_max=2))
    owner.submit("bob", to("bob", 1))
    owner.submit("carol", to("carol", 2))
    owner.read()
    owner.fail()
    assert owner.outcomes.keys() == {"bob"}
    owner.settle()
    assert owner.result("carol").seq == 2


# G2.


def test_g2_seqs_follow_the_order_of_submission() -> None:
    owner = Owner()
    for number in range(5):
        owner.submit(f"t{number}", to("bob", number))
    owner.settle()
    assert [owner.result(f"t{number}").seq for number in range(5)] == [2, 3, 4, 5, 6]


def test_g2_a_group_is_split_at_its_limit_and_keeps_its_order() -> None:
    owner = Owner(Limits(group_entries_max=2))
    for number in range(4):
        owner.submit(f"t{number}", to("bob", number))
    owner.read()
    sizes = []
    while group := owner.sequencer.take_group():
        sizes.append(len(group.entries))
        owner.commit(group)
    assert sizes == [2, 2, 1]
    assert owner.order == ["t0", "t1", "t2", "t3"]


def test_a_step_of_the_clock_is_in_no_stamp_but_of_those_sent_meanwhile() -> None:
    owner = Owner()
    owner.now_ms = 1_700_000_000_000
    for number, step_ms in enumerate((0, 7_200_000, -7_200_000, -3_600_000, 3_600_000)):
        owner.now_ms += step_ms
        owner.do(f"t{number}", to("bob", number + 1))
        assert owner.result(f"t{number}").sent_at_ms == owner.now_ms
    now_ms, owner = owner.now_ms, Owner(log=owner.log)
    owner.now_ms = now_ms
    owner.do("later", to("bob", 9))
    assert owner.result("later").sent_at_ms == owner.now_ms


def test_g2_time_does_not_fall_by_what_the_clocks_of_owners_differ() -> None:
    owner = Owner()
    owner.do("t0", to("bob", 1))
    owner.now_ms -= 500
    owner.do("t1", to("bob", 2))
    assert owner.result("t1").sent_at_ms == owner.result("t0").sent_at_ms
    owner = Owner(log=owner.log)
    owner.now_ms -= 500
    owner.do("t2", to("bob", 3))
    assert owner.result("t2").sent_at_ms == 1_000


# G3.


def test_g3_a_repetition_of_a_committed_write_gets_its_result() -> None:
    owner = Owner()
    owner.do("t", to("bob", 1))
    owner.do("again", to("bob", 1))
    first, again = owner.result("t"), owner.result("again")
    assert not first.duplicate
    assert again.duplicate
    again.duplicate = False
    assert again == first


def test_g3_a_repetition_of_a_write_on_its_way_waits_for_it() -> None:
    owner = Owner()
    owner.submit("t", to("bob", 1))
    owner.submit("again", to("bob", 1))
    owner.read()
    assert owner.outcomes == {}
    owner.commit()
    assert owner.order == ["t", "again"]
    assert [owner.result(ticket).duplicate for ticket in owner.order] == [False, True]
    assert owner.result("t").seq == owner.result("again").seq == 2


def test_g3_the_same_key_of_another_sender_is_another_write() -> None:
    owner = Owner()
    owner.do("alice", to("bob", 1))
    owner.do("bob", to("alice", 1, sender="bob"))
    assert (owner.result("alice").seq, owner.result("bob").seq) == (2, 3)
    assert not owner.result("bob").duplicate


@pytest.mark.parametrize("behind", [0, 1, 5, 50])
def test_g3_an_earlier_try_is_found_in_the_log_after_a_restart(behind: int) -> None:
    owner = Owner()
    owner.do("t", to("bob", 1))
    for number in range(behind):
        owner.do(f"t{number}", to("bob", 10 + number))
    again = Owner(log=owner.log)
    again.do("again", to("bob", 1))
    assert (again.result("again").seq, again.result("again").duplicate) == (2, True)


def test_g3_an_earlier_try_that_nobody_knows_the_outcome_of_is_found() -> None:
    owner = Owner()
    owner.submit("t", to("bob", 1))
    owner.read()
    group = owner.take_group()
    owner.log.append(group.entries)
    owner.fail(group)
    assert owner.error("t") == "UNAVAILABLE"
    owner.do("again", to("bob", 1))
    assert owner.result("again").seq == 2


def test_g3_a_write_on_its_way_is_found_behind_any_number_of_others() -> None:
    """What is not committed cannot be found in the log, so it must not leave the memory."""
    owner = Owner(Limits(recent_events_per_chat=2))
    for number in range(8):
        owner.submit(f"t{number}", to("bob", number))
    owner.read()
    owner.submit("again", to("bob", 0))
    owner.read()
    owner.settle()
    assert owner.result("again").seq == owner.result("t0").seq


def test_g3_a_creation_is_found_however_long_the_chat_is() -> None:
    owner = Owner(Limits(recent_events_per_chat=2, dedupe_span_max=3))
    owner.do("create", new_group(1))
    for number in range(8):
        owner.do(f"t{number}", into(new_group(1).chat_id, 10 + number))
    for after_restart in (owner, Owner(owner.limits, owner.log)):
        after_restart.do("again", new_group(1))
        assert (after_restart.result("again").seq, after_restart.result("again").duplicate) == (1, True)


def test_g3_nobody_can_guess_the_key_of_the_event_that_opens_a_chat() -> None:
    one, other = Owner(), Owner()
    other.sequencer = Sequencer(1, other.limits, random.Random(2))
    for owner in (one, other):
        owner.do("t", to("bob", 1))
    openings = [owner.log.events[direct_chat_id("alice", "bob")][0].client_message_id for owner in (one, other)]
    assert openings[0] != openings[1]


def test_g3_too_far_behind_is_refused_at_the_limit_and_not_before() -> None:
    owner = Owner(Limits(dedupe_span_max=5))
    for number in range(5):
        owner.do(f"t{number}", to("bob", number))
    assert owner.log.head_seq(direct_chat_id("alice", "bob")) == 6
    owner.do("near", to("bob", 10, seen_seq=1))
    assert owner.result("near").seq == 7
    owner.do("far", to("bob", 11, seen_seq=1))
    assert owner.error("far") == "SEEN_SEQ_TOO_OLD"
    owner.do("ahead", to("bob", 12, seen_seq=8))
    assert owner.error("ahead") == "SEEN_SEQ_AHEAD"
    owner.do("duplicate", to("bob", 10, seen_seq=1))
    assert owner.result("duplicate").seq == 7, "what is in memory is found all the same"


@pytest.mark.parametrize("seen_seq", [1, 100])
def test_g6_where_the_log_ends_is_told_to_members_only(seen_seq: int) -> None:
    """Too far behind, or ahead: a stranger who is told which could find the head, and that there is a chat."""
    owner = Owner(Limits(dedupe_span_max=5))
    for number in range(8):
        owner.do(f"t{number}", to("bob", number))
    owner.do("stranger", into(direct_chat_id("alice", "bob"), 99, sender="eve", seen_seq=seen_seq))
    owner.do("no chat", into("d." + "x" * 22, 99, sender="eve", seen_seq=seen_seq))
    assert owner.error("stranger") == owner.error("no chat") == "NOT_A_MEMBER"
    owner.do("their own", to("carol", 20, seen_seq=seen_seq))
    assert owner.error("their own") == "SEEN_SEQ_AHEAD"


def test_g3_a_widened_search_is_kept_for_a_minute() -> None:
    owner = Owner(Limits(recent_events_per_chat=2))
    for number in range(30):
        owner.do(f"t{number}", to("bob", number))
    owner.do("again", to("bob", 0))
    owner.submit("once more", to("bob", 1))
    assert owner.sequencer.take_lookups() == []
    assert owner.result("once more").seq == 3
    chat = owner.sequencer.chat(direct_chat_id("alice", "bob"))
    assert chat is not None
    owner.pass_time(60_000)
    for number in range(30, 40):
        owner.do(f"t{number}", to("bob", number, seen_seq=None))
    assert len(chat.recent) == 2
    owner.submit("later", to("bob", 1))
    assert len(owner.sequencer.take_lookups()) == 1


def test_g5_a_widened_search_does_not_keep_more_than_it_can_use() -> None:
    owner = Owner(Limits(recent_events_per_chat=2, dedupe_span_max=20))
    for number in range(10):
        owner.do(f"t{number}", to("bob", number))
    owner.do("again", to("bob", 0))
    for number in range(10, 60):
        owner.do(f"t{number}", to("bob", number, seen_seq=9))
    chat = owner.sequencer.chat(direct_chat_id("alice", "bob"))
    assert chat is not None
    assert len(chat.recent) == 20


# G6, and who may.


def test_g6_only_members_are_delivered_to() -> None:
    owner = Owner()
    group_id = new_group(1).chat_id
    owner.do("create", new_group(1, "alice", "bob"))
    owner.do("add", into(group_id, 2, add("carol")))
    owner.do("remove", into(group_id, 3, remove("bob")))
    owner.do("send", into(group_id, 4))
    assert [(d.seq, sorted(d.recipients), d.left_user_id) for d in owner.deliveries] == [
        (1, ["alice", "bob"], ""),
        (2, ["alice", "bob", "carol"], ""),
        (3, ["alice", "bob", "carol"], "bob"),
        (4, ["alice", "carol"], ""),
    ]


def test_g6_a_chat_of_others_and_no_chat_look_the_same() -> None:
    owner = Owner()
    owner.do("create", new_group(1))
    owner.do("others", into(new_group(1).chat_id, 2, sender="mallory"))
    owner.do("none", into(group_chat_id("alice", key(9)), 3, sender="mallory"))
    assert owner.error("others") == "NOT_A_MEMBER"
    assert owner.outcomes["others"] == owner.outcomes["none"]


def test_a_direct_chat_of_others_is_not_opened() -> None:
    owner = Owner()
    owner.do("by chat id", into(direct_chat_id("alice", "bob"), 1))
    assert owner.error("by chat id") == "NOT_A_MEMBER"
    owner.do("others", Write(direct_chat_id("alice", "bob"), "mallory", text(), key(2), 0, peer_user_id="bob"))
    assert owner.error("others") == "NOT_A_MEMBER"
    assert owner.log.events == {}


def test_a_self_chat_opens_with_what_is_put_into_it() -> None:
    owner = Owner()
    chat_id = self_chat_id("alice")
    settings = content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=chat_id, archived=True))
    owner.do("t", into(chat_id, 1, settings))
    assert owner.result("t").seq == 2
    opening = owner.log.events[chat_id][0].content.chat_created
    assert opening.kind == content_pb2.CHAT_KIND_SELF
    assert [(member.user_id, member.joined_seq) for member in opening.members] == [("alice", 1)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (edit(1), "TARGET_NOT_FOUND"),
        (delete(1), "TARGET_NOT_FOUND"),
        (content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=1, emoji="👍")), "TARGET_NOT_FOUND"),
        (text(reply_to_seq=1), "TARGET_NOT_FOUND"),
        (add("bob"), "NOT_A_MEMBER"),
        (content_pb2.Content(join_requested=content_pb2.JoinRequestedContent()), "LINK_INVALID"),
    ],
)
def test_what_is_refused_opens_no_chat(content: content_pb2.Content, error: str) -> None:
    owner = Owner()
    owner.do("self", into(self_chat_id("alice"), 1, content))
    write = Write(direct_chat_id("alice", "bob"), "alice", content, key(2), 0, peer_user_id="bob")
    owner.do("direct", write)
    assert [owner.error("self"), owner.error("direct")] == [error, error]
    assert owner.log.events == {}


def test_settings_open_no_direct_chat() -> None:
    owner = Owner()
    hide = content_pb2.Content(hide=content_pb2.HideContent(chat_id=self_chat_id("alice"), seqs=[1]))
    owner.do("t", Write(direct_chat_id("alice", "bob"), "alice", hide, key(2), 0, peer_user_id="bob"))
    assert owner.error("t") == "UNSUPPORTED_CONTENT"
    assert owner.log.events == {}


def _taken(owner: Owner) -> set[str]:
    return {ticket for ticket, outcome in owner.outcomes.items() if isinstance(outcome, chat_pb2.SendResult)}


def test_what_others_put_a_user_into_takes_nothing_from_the_user() -> None:
    """Strangers fill alice's groups up; she is written to, writes, makes and joins groups as before, up to her own limit."""
    owner = Owner(Limits(groups_by_others_max=2, groups_by_contacts_max=0, chats_per_user_max=2))
    for number in (1, 2, 3):
        owner.do(f"stranger's {number}", new_group(number, "eve", "alice"))
    owner.do("added", into(new_group(4, "bob").chat_id, 5, add("alice"), sender="bob"))
    owner.do("friend's message", to("alice", 6, sender="bob"))
    owner.do("her message", to("carol", 7))
    for number in (11, 12, 13):
        owner.do(f"hers {number}", new_group(number))
    assert _taken(owner) == {"stranger's 1", "stranger's 2", "friend's message", "her message", "hers 11", "hers 12"}
    assert owner.error("stranger's 3") == owner.error("hers 13") == "LIMIT_EXCEEDED"
    owner.do("again", new_group(12))
    assert owner.result("again").duplicate, "what is committed stays so"
    told = owner.outcomes["stranger's 3"]
    assert isinstance(told, chat_pb2.Error)
    assert not any(character.isdigit() for character in told.message), "how many groups another is in is nobody's business"


def test_whose_direct_chat_a_user_has_opened_may_add_them_though_strangers_have_used_up_what_others_may() -> None:
    owner = Owner(Limits(groups_by_others_max=2, groups_by_contacts_max=2, chats_per_user_max=2))
    for number in (1, 2):
        owner.do(f"stranger's {number}", new_group(number, "eve", "alice"))
    owner.opened = {"alice"}  # the chat with bob
    owner.do("friend's 3", new_group(3, "bob", "alice"))
    owner.do("friend's group", new_group(4, "bob"))
    owner.do("friend's 4", into(new_group(4, "bob").chat_id, 5, add("alice"), sender="bob"))
    owner.do("friend's 5", new_group(6, "bob", "alice"))
    assert _taken(owner) == {"stranger's 1", "stranger's 2", "friend's 3", "friend's group", "friend's 4"}
    for number in (11, 12, 13):
        owner.do(f"hers {number}", new_group(number))
    assert _taken(owner) >= {"hers 11", "hers 12"}, "nor do friends take what is hers"
    assert owner.error("hers 13") == "LIMIT_EXCEEDED"
    told = owner.outcomes["friend's 5"]
    assert isinstance(told, chat_pb2.Error)
    assert not any(character.isdigit() for character in told.message)


def test_past_memberships_count_for_nothing() -> None:
    owner = Owner(Limits(groups_by_others_max=1, chats_per_user_max=1))
    for number in range(5):
        owner.do(f"made {number}", new_group(number, "eve", "alice"))
        leave = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="alice"))
        owner.do(f"left {number}", into(new_group(number, "eve").chat_id, 10 + number, leave, sender="alice"))
        gone = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="eve"))
        owner.do(f"gone {number}", into(new_group(number, "eve").chat_id, 20 + number, gone, sender="eve"))
    assert len(_taken(owner)) == 15


def test_who_reaches_out_too_often_is_told_to_wait() -> None:
    rates = Rate(2, 1_000)
    owner = Owner(Limits(additions_rate=rates, groups_rate=rates, joins_rate=rates, direct_chats_rate=rates))
    for number, name in enumerate(("bob", "carol", "dave")):
        owner.do(f"to {name}", to(name, number))
        owner.do(f"group {number}", new_group(number))
    assert owner.error("to dave") == owner.error("group 2") == "RATE_LIMITED"
    told = owner.outcomes["to dave"]
    assert isinstance(told, chat_pb2.Error)
    assert told.retry_after_ms == 1_001
    group = new_group(0).chat_id
    owner.do("two", into(group, 11, add("bob", "carol")))
    owner.do("one more", into(group, 12, add("dave")))
    owner.do("two again", into(group, 11, add("bob", "carol")))
    assert owner.error("one more") == "RATE_LIMITED"
    assert owner.result("two again").duplicate, "a repetition costs nothing"
    owner.do("known", to("bob", 13))
    assert owner.result("known").seq == 3, "those who write to each other are not concerned"
    owner.pass_time(1_001)
    owner.do("to dave, later", to("dave", 14))
    assert owner.result("to dave, later").seq == 2


def test_g7_groups_are_counted_for_nobody_who_would_be_refused_anyway() -> None:
    owner = Owner(Limits(groups_rate=Rate(1, 1_000), additions_rate=Rate(4, 1_000)))
    group = new_group(1).chat_id
    counted: list[tuple[str, ...]] = []
    count_groups = owner.log.count_groups

    def noted(user_ids: Sequence[str]) -> dict[str, int]:
        counted.append(tuple(user_ids))
        return count_groups(user_ids)

    owner.log.count_groups = noted  # type: ignore[method-assign]
    owner.do("group", new_group(1, "alice", "bob"))
    owner.do("added", into(group, 2, add("carol")))
    assert counted == [("alice", "bob"), ("carol",)]
    owner.do("no admin", into(group, 3, add("dave"), sender="bob"))
    owner.do("no member", into(group, 4, add("dave"), sender="zoe"))
    owner.do("no chat", Write(self_chat_id("zoe"), "zoe", add("dave"), key(5), 0))
    owner.do("too soon", new_group(6, "alice", "dave"))
    owner.do("two", into(group, 7, add("erin", "frank")))
    owner.do("too many", into(group, 8, add("dave")))
    errors = ("no admin", "no member", "no chat", "too soon", "too many")
    assert [owner.error(ticket) for ticket in errors] == [
        "FORBIDDEN", "NOT_A_MEMBER", "NOT_A_MEMBER", "RATE_LIMITED", "RATE_LIMITED",
    ]  # fmt: skip
    assert counted == [("alice", "bob"), ("carol",), ("erin", "frank")]


def test_g3_who_may_add_nobody_any_more_gets_the_result_of_what_they_added_before() -> None:
    """What was committed is looked for first, in the log too; only then is it asked whether the sender may do it now."""
    limits = Limits(recent_events_per_chat=1, additions_rate=Rate(1, 1_000))
    owner = Owner(limits)
    group = new_group(1).chat_id
    owner.do("group", new_group(1))
    addition = into(group, 2, add("bob"), seen_seq=1)
    owner.do("added", addition)
    owner.do("said", into(group, 3))
    owner.do("too soon", into(group, 4, add("carol"), seen_seq=1))
    owner.do("added again", addition)
    assert owner.error("too soon") == "RATE_LIMITED"
    owner.do("given", into(group, 5, give("bob", content_pb2.MEMBER_ROLE_OWNER)))
    owner.do("taken", into(group, 6, give("alice", content_pb2.MEMBER_ROLE_MEMBER), sender="bob"))
    owner.do("no admin", into(group, 7, add("carol"), seen_seq=1))
    assert owner.error("no admin") == "FORBIDDEN"
    heir = Owner(limits, owner.log)
    heir.do("added again", addition)
    for result in (owner.result("added again"), heir.result("added again")):
        assert (result.seq, result.duplicate) == (2, True)


def test_g3_groups_are_counted_after_no_earlier_try_was_found_in_the_log() -> None:
    owner = Owner(Limits(recent_events_per_chat=1))
    group = new_group(1).chat_id
    owner.do("group", new_group(1))
    for number in range(2, 5):
        owner.do(f"t{number}", into(group, number))
    owner.submit("add", into(group, 9, add("bob"), seen_seq=1))
    [of_events] = owner.sequencer.take_lookups()
    assert (of_events.ranges, of_events.user_ids) == (((1, 3),), ())
    owner.answer(of_events)
    [of_groups] = owner.sequencer.take_lookups()
    assert (of_groups.ranges, of_groups.user_ids) == ((), ("bob",))
    owner.answer(of_groups)
    owner.settle()
    assert owner.result("add").seq == 5


def test_g3_a_count_that_could_not_be_read_leaves_nothing_to_the_next_write() -> None:
    """It must look for its own earlier tries."""
    owner = Owner(Limits(recent_events_per_chat=1))
    group = new_group(1).chat_id
    owner.do("group", new_group(1))
    for number in range(2, 5):
        owner.do(f"t{number}", into(group, number))
    owner.submit("add", into(group, 9, add("bob"), seen_seq=2))
    [of_events] = owner.sequencer.take_lookups()
    owner.answer(of_events)
    [of_groups] = owner.sequencer.take_lookups()
    owner.sequencer.read_failed(of_groups.chat)
    owner.take_answers()
    assert owner.error("add") == "UNAVAILABLE"
    owner.do("t2 again", into(group, 2, seen_seq=1))
    assert (owner.result("t2 again").seq, owner.result("t2 again").duplicate) == (2, True)


@pytest.mark.parametrize("step_ms", [7_200_000, -7_200_000])
def test_a_step_of_the_wall_clock_fills_no_bucket_and_stops_nobody(step_ms: int) -> None:
    owner = Owner(Limits(direct_chats_rate=Rate(1, 10_000)))
    owner.now_ms = 1_700_000_000_000
    owner.do("to bob", to("bob", 0))
    owner.now_ms += step_ms
    owner.do("to carol", to("carol", 1))
    assert owner.error("to carol") == "RATE_LIMITED"
    owner.pass_time(10_001)
    owner.do("to carol, later", to("carol", 2))
    assert owner.result("to carol, later").seq == 2
    owner.now_ms -= step_ms
    owner.do("to dave", to("dave", 3))
    assert owner.error("to dave") == "RATE_LIMITED"


# Reactions that change nothing.


def react(target_seq: int, emoji: str) -> content_pb2.Content:
    return content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=target_seq, emoji=emoji))


@pytest.mark.parametrize("recent", [128, 1], ids=["in memory", "looked up"])
def test_a_reaction_that_changes_nothing_is_no_event(recent: int) -> None:
    owner = Owner(Limits(recent_events_per_chat=recent))
    chat_id = direct_chat_id("alice", "bob")
    owner.do("message", to("bob", 0, seen_seq=None))
    outcomes = []
    for number, emoji in enumerate(["", "👍", "👍", "🎉", "👍", "", "", "👍"]):
        owner.do(f"r{number}", into(chat_id, 100 + number, react(2, emoji), sender="bob"))
        outcome = owner.outcomes[f"r{number}"]
        outcomes.append(outcome.seq if isinstance(outcome, chat_pb2.SendResult) else owner.error(f"r{number}"))
        owner.do(f"other {number}", into(chat_id, 200 + number, text(), sender="alice"))
    nothing = "NOTHING_TO_CHANGE"
    assert outcomes == [nothing, 4, nothing, 7, 9, 11, nothing, 14]
    owner.do("of another", into(chat_id, 300, react(2, "👍"), sender="alice"))
    assert owner.result("of another").seq
    owner.do("again", into(chat_id, 101, react(2, "👍"), sender="bob"))
    assert owner.result("again").duplicate, "a repetition gets its first result"


def test_an_edit_to_the_same_text_is_no_event() -> None:
    owner = Owner()
    chat_id = direct_chat_id("alice", "bob")
    owner.do("message", to("bob", 0, seen_seq=None))
    owner.do("other", to("bob", 1, seen_seq=None))
    outcomes = []
    for number, words in enumerate(["hi", "ho", "ho", "hi", "hi"]):
        words_of = content_pb2.Content(edit=content_pb2.EditContent(target_seq=2, text=words))
        owner.do(f"e{number}", into(chat_id, 100 + number, words_of))
        outcome = owner.outcomes[f"e{number}"]
        outcomes.append(outcome.seq if isinstance(outcome, chat_pb2.SendResult) else owner.error(f"e{number}"))
    nothing = "NOTHING_TO_CHANGE"
    assert outcomes == [nothing, 4, nothing, 5, nothing]
    owner.do("again", into(chat_id, 103, edit(2)))
    assert owner.result("again").duplicate, "a repetition gets its first result"


# Erasing.


def test_a_deleted_message_cannot_be_edited_while_the_deletion_is_on_its_way() -> None:
    """The edit's target is read from the log, which still holds the text; the edit's own text would outlive the deletion."""
    owner = Owner(Limits(recent_events_per_chat=1))
    chat_id = direct_chat_id("alice", "bob")
    for number in range(4):
        owner.do(f"t{number}", to("bob", number, seen_seq=None))
    owner.submit("delete", into(chat_id, 10, delete(2)))
    owner.submit("edit", into(chat_id, 11, edit(2)))
    [of_delete] = owner.sequencer.take_lookups()
    owner.answer(of_delete)
    [of_edit] = owner.sequencer.take_lookups()
    stale = [event_meta(chat_id, event.seq, event.event) for event in owner.log.read_after(chat_id, 1, 2)]
    owner.commit()
    owner.sequencer.looked_up(of_edit, stale, {}, owner.now)
    owner.settle()
    assert owner.result("delete").seq == 6
    assert owner.error("edit") == "TARGET_NOT_FOUND"


def test_an_entry_says_what_it_amends_and_erases() -> None:
    owner = Owner()
    chat_id = direct_chat_id("alice", "bob")
    owner.do("t", to("bob", 1))
    owner.submit("edit", into(chat_id, 2, edit(2)))
    owner.submit("delete", into(chat_id, 3, delete(2)))
    owner.submit("edit again", into(chat_id, 4, edit(2)))
    group = owner.take_group()
    assert [(entry.amends_seq, entry.erases_seq) for entry in group.entries] == [(2, 0), (0, 2)]
    owner.commit(group)
    assert owner.error("edit again") == "TARGET_NOT_FOUND"


# Reads that fail, places that run out.


def test_writes_wait_for_the_chat_in_their_order() -> None:
    owner = Owner()
    owner.submit("t0", to("bob", 1))
    owner.submit("t1", to("bob", 2))
    [chat] = owner.sequencer.take_loads()
    assert owner.sequencer.take_loads() == []
    owner.sequencer.read_failed(chat)
    owner.take_answers()
    assert [owner.error("t0"), owner.error("t1")] == ["UNAVAILABLE", "UNAVAILABLE"]
    owner.do("again", to("bob", 1))
    assert owner.result("again").seq == 2


def test_a_read_that_fails_after_its_chat_was_forgotten_answers_nobody_twice() -> None:
    owner = Owner(Limits(recent_events_per_chat=1))
    chat_id = direct_chat_id("alice", "bob")
    for number in range(3):
        owner.do(f"t{number}", to("bob", number, seen_seq=None))
    owner.submit("on its way", into(chat_id, 10))
    owner.submit("waits", into(chat_id, 11, edit(2)))
    [lookup] = owner.sequencer.take_lookups()
    owner.fail()
    assert [owner.error("on its way"), owner.error("waits")] == ["UNAVAILABLE", "UNAVAILABLE"]
    owner.submit("again", into(chat_id, 10))
    owner.sequencer.read_failed(lookup.chat)
    owner.take_answers()
    owner.settle()
    assert owner.result("again").seq == 5


def test_a_failed_lookup_leaves_what_is_on_its_way_alone() -> None:
    owner = Owner(Limits(recent_events_per_chat=1))
    chat_id = direct_chat_id("alice", "bob")
    for number in range(3):
        owner.do(f"t{number}", to("bob", number, seen_seq=None))
    owner.submit("on its way", into(chat_id, 10))
    owner.submit("waits", into(chat_id, 11, edit(2)))
    [lookup] = owner.sequencer.take_lookups()
    owner.sequencer.read_failed(lookup.chat)
    owner.take_answers()
    assert owner.error("waits") == "UNAVAILABLE"
    owner.settle()
    assert owner.result("on its way").seq == 5


def test_g7_a_chat_takes_only_so_many_writes_at_a_time() -> None:
    owner = Owner(Limits(writes_waiting_per_chat_max=3))
    for number in range(3):
        owner.submit(f"t{number}", to("bob", number))
    owner.submit("before loading", to("bob", 4))
    owner.read()
    owner.submit("before committing", to("bob", 5))
    assert [owner.error("before loading"), owner.error("before committing")] == ["UNAVAILABLE", "UNAVAILABLE"]
    owner.settle()
    owner.do("after", to("bob", 5))
    assert owner.result("after").seq == 5


def test_g7_what_waits_behind_an_append_counts_as_waiting_and_keeps_no_content() -> None:
    """The store is away, and devices send again and again, or send what is refused: each is answered after the append."""
    owner = Owner(Limits(writes_waiting_per_chat_max=5))
    owner.do("first", to("bob", 1))
    chat_id = direct_chat_id("alice", "bob")
    owner.submit("on its way", into(chat_id, 2, text("x" * 1_000), seen_seq=2))
    for number in range(2):
        owner.submit(f"again {number}", into(chat_id, 2, text("x" * 1_000), seen_seq=2))
        owner.submit(f"refused {number}", into(chat_id, 3 + number, edit(2), sender="bob", seen_seq=2))
    owner.read()
    chat = owner.sequencer.chat(chat_id)
    assert chat is not None
    (pending,) = chat.in_flight.values()
    behind = [write for _, write, _ in (*pending.tickets[1:], *pending.refusals)]
    assert len(behind) == 4
    assert {write.content.ByteSize() for write in behind} == {0}
    owner.submit("one more", into(chat_id, 2, text("x" * 1_000), seen_seq=2))
    assert owner.error("one more") == "UNAVAILABLE"
    group = owner.take_group()
    owner.commit(group)
    assert [owner.result(f"again {number}").duplicate for number in range(2)] == [True, True]
    assert [owner.error(f"refused {number}") for number in range(2)] == ["TARGET_NOT_FOUND"] * 2
    assert chat.behind == 0
    owner.do("later", into(chat_id, 9, seen_seq=2))
    assert owner.result("later").seq == 4


def test_g5_names_of_no_chat_take_no_place() -> None:
    owner = Owner()
    for number in range(5):
        owner.do(f"t{number}", into(group_chat_id("nobody", key(number)), number))
    owner.sequencer.activate(group_chat_id("nobody", key(9)))
    owner.read()
    for number in range(5):
        assert not owner.sequencer.activate(group_chat_id("nobody", key(number))), "it would have to be loaded again"


def test_g5_the_longest_idle_chat_makes_room() -> None:
    owner = Owner(Limits(chats_active_max=2))
    owner.do("one", to("bob", 1))
    owner.do("two", to("carol", 2))
    owner.do("one again", to("bob", 3))
    owner.do("three", to("dave", 4))
    loaded = [owner.sequencer.chat(direct_chat_id("alice", peer)) is not None for peer in ("bob", "carol", "dave")]
    assert loaded == [True, False, True]


def test_g5_a_busy_chat_is_not_dropped_for_room() -> None:
    owner = Owner(Limits(chats_active_max=1))
    owner.submit("one", to("bob", 1))
    owner.read()
    owner.submit("two", to("carol", 2))
    owner.read()
    owner.settle()
    assert [owner.result("one").seq, owner.result("two").seq] == [2, 2]
    owner.do("three", to("dave", 3))
    active: list[ActiveChat | None] = [owner.sequencer.chat(direct_chat_id("alice", peer)) for peer in ("bob", "carol")]
    assert active == [None, None]


def test_an_idle_chat_goes_on_where_the_log_ends() -> None:
    owner = Owner(Limits(chats_active_max=1))
    owner.do("one", to("bob", 1))
    owner.do("two", to("carol", 2))
    owner.do("three", to("bob", 3))
    assert owner.result("three").seq == 3


def test_a_malformed_write_is_answered_at_once() -> None:
    owner = Owner()
    owner.submit("t", into(self_chat_id("alice"), 1, content_pb2.Content()))
    assert owner.error("t") == "INVALID_ARGUMENT"
    assert owner.sequencer.take_loads() == []
