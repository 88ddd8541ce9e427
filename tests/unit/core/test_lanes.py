"""Lanes: each write once and in order, whatever the links do; each outcome once."""

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.lanes import EdgeLanes, Forward, Forwarded, HeadBook, Lane, OwnerLanes
from chatgrpc.core.refusal import owner_silent, store_silent
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2

LANE = Lane("edge", "session", "chat")
OTHER = Lane("edge", "session", "other chat")


def write(text: str, chat_id: str = "chat") -> Write:
    content = content_pb2.Content(text=content_pb2.TextContent(text=text))
    return Write(chat_id, "alice", content, text.encode().ljust(16), 0)


def outcome(seq: int) -> chat_pb2.SendResult:
    return chat_pb2.SendResult(chat_id="chat", seq=seq)


def numbers(forwards: list[Forward]) -> list[int]:
    return [forward.number for forward in forwards]


def edge(*texts: str, at_ms: int = 0) -> EdgeLanes:
    lanes = EdgeLanes(resend_after_ms=100, give_up_after_ms=1_000)
    for text in texts:
        lanes.submit(LANE, text, write(text), at_ms)
    return lanes


# The edge.


def test_writes_are_numbered_and_go_out_once() -> None:
    lanes = edge("a", "b")
    first, second = lanes.take_forwards(0)
    assert (first.number, first.base, first.write.client_message_id) == (1, 1, b"a".ljust(16))
    assert (second.number, second.base) == (2, 1)
    assert lanes.take_forwards(99) == []


def test_a_silent_lane_goes_out_again_as_a_whole_from_the_oldest_on() -> None:
    lanes = edge("a", "b", "c")
    lanes.take_forwards(0)
    lanes.answered(Forwarded(LANE, 1, outcome(5)), 50)
    assert numbers(lanes.take_forwards(149)) == [], "the answer was a sign of life"
    again = lanes.take_forwards(150)
    assert [(forward.number, forward.base) for forward in again] == [(2, 2), (3, 2)]
    assert numbers(lanes.take_forwards(349)) == [], "twice as late each time"
    assert numbers(lanes.take_forwards(350)) == [2, 3]
    lanes.answered(Forwarded(LANE, 2, outcome(6)), 400)
    assert numbers(lanes.take_forwards(499)) == []
    assert numbers(lanes.take_forwards(500)) == [3], "the answer was a sign of life"


def test_an_owner_that_is_late_gets_a_write_a_few_times_and_not_forty() -> None:
    lanes = EdgeLanes(resend_after_ms=250, give_up_after_ms=10_000)
    lanes.submit(LANE, "a", write("a"), 0)
    assert sum(len(lanes.take_forwards(now_ms)) for now_ms in range(10_000)) == 6


def test_a_new_write_is_no_sign_of_life() -> None:
    lanes = edge("a")
    lanes.take_forwards(0)
    lanes.submit(LANE, "b", write("b"), 90)
    assert numbers(lanes.take_forwards(90)) == [2]
    assert numbers(lanes.take_forwards(100)) == [1, 2]


def test_what_waits_to_be_sent_is_not_sent_twice_when_it_is_to_go_out_again() -> None:
    lanes = edge("a", "b")
    lanes.resend(lambda chat_id: True, 10)
    assert numbers(lanes.take_forwards(10)) == [1, 2]


def test_a_new_owner_gets_what_waits_in_its_chats_and_nothing_of_others() -> None:
    lanes = edge("a")
    lanes.submit(OTHER, "o", write("o", "other chat"), 0)
    lanes.take_forwards(0)
    lanes.resend(lambda chat_id: chat_id == "chat", 10)
    assert [forward.lane for forward in lanes.take_forwards(10)] == [LANE]
    assert [forward.lane for forward in lanes.take_forwards(100)] == [OTHER], "the other one still has its own time"
    assert [forward.lane for forward in lanes.take_forwards(110)] == [LANE]


def test_an_outcome_is_given_once_with_its_ticket() -> None:
    lanes = edge("a", "b")
    [(ticket, of_write, got)] = lanes.answered(Forwarded(LANE, 2, outcome(6)), 0)
    assert (ticket, of_write.client_message_id, got) == ("b", b"b".ljust(16), outcome(6))
    assert lanes.answered(Forwarded(LANE, 2, outcome(6)), 0) == [], "a repetition"
    assert lanes.answered(Forwarded(LANE, 3, outcome(7)), 0) == [], "nobody asked"
    assert lanes.answered(Forwarded(OTHER, 1, outcome(7)), 0) == [], "nor there"
    assert not lanes.is_idle
    lanes.answered(Forwarded(LANE, 1, outcome(5)), 0)
    assert lanes.is_idle


def test_what_stands_behind_a_write_that_is_to_come_again_is_to_come_again_too() -> None:
    """The chat may have another owner by now, who would take it without the one before it."""
    lanes = edge("a", "b", "c", "d")
    lanes.take_forwards(0)
    lanes.resend(lambda chat_id: True, 10)
    answers = lanes.answered(Forwarded(LANE, 2, store_silent()), 10)
    assert [(ticket, got.code) for ticket, _, got in answers if isinstance(got, chat_pb2.Error)] == [
        ("b", chat_pb2.ERROR_CODE_UNAVAILABLE),
        ("c", chat_pb2.ERROR_CODE_AFTER_FAILED_SEND),
        ("d", chat_pb2.ERROR_CODE_AFTER_FAILED_SEND),
    ]
    assert [forward.number for forward in lanes.take_forwards(10)] == [1]
    lanes.submit(LANE, "b again", write("b"), 11)
    assert [(forward.number, forward.base) for forward in lanes.take_forwards(11)] == [(5, 1)]
    lanes.answered(Forwarded(LANE, 1, outcome(5)), 12)
    lanes.answered(Forwarded(LANE, 5, outcome(6)), 12)
    assert lanes.is_idle


def test_what_stands_behind_a_write_that_is_refused_for_good_goes_on() -> None:
    lanes = edge("a", "b")
    refusal = chat_pb2.Error(code=chat_pb2.ERROR_CODE_NOT_A_MEMBER)
    assert [ticket for ticket, _, _ in lanes.answered(Forwarded(LANE, 1, refusal), 0)] == ["a"]
    assert [ticket for ticket, _, _ in lanes.answered(Forwarded(LANE, 2, outcome(5)), 0)] == ["b"]


def test_a_lane_that_waits_too_long_fails_as_a_whole_and_goes_on_with_higher_numbers() -> None:
    lanes = edge("a", at_ms=0)
    lanes.submit(LANE, "b", write("b"), 900)
    assert lanes.give_up(999) == []
    failed = lanes.give_up(1_000)
    assert [ticket for ticket, _, _ in failed] == ["a", "b"], "b too: it must not overtake a"
    assert {got.message for _, _, got in failed if isinstance(got, chat_pb2.Error)} == {owner_silent().message}
    assert lanes.is_idle
    assert lanes.take_forwards(1_000) == [], "nothing of it is sent any more"
    assert lanes.answered(Forwarded(LANE, 1, outcome(5)), 1_001) == [], "the device knows another outcome"
    lanes.submit(LANE, "a again", write("a"), 1_002)
    (again,) = lanes.take_forwards(1_002)
    assert (again.number, again.base) == (3, 3)


def test_each_lane_has_its_own_patience() -> None:
    lanes = edge("a")
    lanes.submit(OTHER, "o", write("o", "other chat"), 500)
    assert [ticket for ticket, _, _ in lanes.give_up(1_200)] == ["a"]
    assert [ticket for ticket, _, _ in lanes.give_up(1_500)] == ["o"]


def test_a_closed_session_waits_for_nothing() -> None:
    lanes = edge("a")
    stranger = Lane("edge", "another session", "chat")
    lanes.submit(stranger, "s", write("s"), 0)
    lanes.close("session")
    assert [forward.lane for forward in lanes.take_forwards(0)] == [stranger]
    assert lanes.answered(Forwarded(LANE, 1, outcome(5)), 0) == []
    lanes.close("session")
    lanes.close("one that never was")
    assert [ticket for ticket, _, _ in lanes.give_up(1_000)] == ["s"]


# The owner.


def forward(number: int, base: int = 1, lane: Lane = LANE) -> Forward:
    return Forward(lane, number, base, write(str(number)))


def test_the_owner_takes_a_lane_in_order_and_each_write_once() -> None:
    lanes = OwnerLanes(1, 10)
    assert lanes.receive(forward(2)) is False, "1 is missing"
    assert lanes.receive(forward(1)) is True
    lanes.accepted(forward(1))
    assert lanes.receive(forward(1)) is False, "it is being worked on"
    assert lanes.receive(forward(2)) is True


def test_what_was_not_accepted_may_come_again() -> None:
    lanes = OwnerLanes(1, 10)
    assert lanes.receive(forward(1)) is True
    assert lanes.receive(forward(1)) is True, "the shard did not take it the first time"


def test_an_owner_takes_what_is_for_it_and_nothing_that_was_sent_to_one_before() -> None:
    """That one, on the same node, may have refused it, and its edge may believe it."""
    lanes = OwnerLanes(7, 10)
    for epoch in (6, 8):
        assert lanes.receive(replace(forward(1), epoch=epoch)) is False
    assert lanes.receive(replace(forward(1), epoch=7)) is True
    assert lanes.receive(forward(1)) is True, "of an edge that does not say for whom it is"
    lanes.accepted(forward(1))
    assert lanes.answered(LANE, 1, outcome(5)).epoch == 7
    assert lanes.receive(forward(1)) == Forwarded(LANE, 1, outcome(5), 7)


def test_an_outcome_is_kept_until_the_edge_is_known_to_have_it() -> None:
    lanes = OwnerLanes(1, 10)
    for number in (1, 2):
        assert lanes.receive(forward(number)) is True
        lanes.accepted(forward(number))
    assert lanes.answered(LANE, 1, outcome(5)) == Forwarded(LANE, 1, outcome(5), 1)
    assert lanes.receive(forward(1)) == Forwarded(LANE, 1, outcome(5), 1)
    assert lanes.receive(forward(2, base=2)) is False
    assert lanes.receive(forward(1)) is False, "base 2 said that nobody waits for 1"
    lanes.answered(LANE, 1, outcome(5))
    assert lanes.receive(forward(1)) is False


def test_an_owner_that_does_not_know_the_lane_begins_at_its_base() -> None:
    lanes = OwnerLanes(1, 10)
    assert lanes.receive(forward(6, base=5)) is False
    assert lanes.receive(forward(5, base=5)) is True


def test_numbers_that_the_edge_gave_up_are_passed_over() -> None:
    lanes = OwnerLanes(1, 10)
    assert lanes.receive(forward(1)) is True
    lanes.accepted(forward(1))
    assert lanes.receive(forward(4, base=4)) is True, "2 and 3 never came, and never will"
    lanes.accepted(forward(4, base=4))
    assert lanes.receive(forward(2)) is False, "or too late"


def test_the_longest_silent_lanes_are_forgotten() -> None:
    lanes = OwnerLanes(1, 2)
    for session_id in ("a", "b", "a", "c"):
        of_session = Lane("edge", session_id, "chat")
        if lanes.receive(forward(1, lane=of_session)) is True:
            lanes.accepted(forward(1, lane=of_session))
            lanes.answered(of_session, 1, outcome(1))
    assert isinstance(lanes.receive(forward(1, lane=Lane("edge", "a", "chat"))), Forwarded)
    assert lanes.receive(forward(1, lane=Lane("edge", "b", "chat"))) is True, "taken again: the log knows it"
    lanes.answered(Lane("edge", "nobody", "chat"), 1, outcome(1))


def test_a_lane_whose_write_is_not_decided_is_not_forgotten() -> None:
    """Else a copy of a write that is about to be refused, while the store is slow, would be judged anew."""
    lanes = OwnerLanes(1, 2)
    undecided = [Lane("edge", f"undecided {number}", "chat") for number in range(20)]
    for lane in undecided:
        assert lanes.receive(forward(1, lane=lane)) is True
        lanes.accepted(forward(1, lane=lane))
    assert [lanes.receive(forward(1, lane=lane)) for lane in undecided] == [False] * 20
    for lane in undecided:
        lanes.answered(lane, 1, outcome(1))
    for number in range(10):
        lanes.receive(forward(1, lane=Lane("edge", f"later {number}", "chat")))
    assert len(lanes._lanes) == 2
    assert lanes.receive(forward(1, lane=undecided[0])) is True, "decided, and silent for long"


# Both, over links that do what they like.


class Sloppy:
    """Two sessions of an edge, owners that come and go, and links that lose, repeat and reorder."""

    def __init__(self, seed: int, loss: float) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now_ms = 0
        self.edge = EdgeLanes(resend_after_ms=20, give_up_after_ms=10_000)
        self.owner = OwnerLanes(1, self.rng.choice((1, 10)))
        self.lanes = [LANE, OTHER, Lane("edge", "another", "chat")]
        self.submitted: dict[Lane, list[str]] = {lane: [] for lane in self.lanes}
        self.accepted: dict[Lane, list[int]] = {lane: [] for lane in self.lanes}
        self.unanswered: list[Forward] = []
        self.outcomes: dict[str, str] = {}
        self.under_way: list[Callable[[], None]] = []

    def carry(self, arrive: Callable[[], None]) -> None:
        for _ in range(self.rng.choice((1, 1, 2))):
            if self.rng.random() >= self.loss:
                self.under_way.append(arrive)

    def submit(self) -> None:
        lane = self.rng.choice(self.lanes)
        ticket = f"{lane.session_id} {lane.chat_id} {len(self.submitted[lane])}"
        self.submitted[lane].append(ticket)
        self.edge.submit(lane, ticket, write(ticket), self.now_ms)

    def step(self) -> None:
        self.now_ms += self.rng.randint(0, 10)
        for sent in self.edge.take_forwards(self.now_ms):
            self.carry(lambda sent=sent: self.take(sent))  # type: ignore[misc]
        if self.under_way:
            self.under_way.pop(self.rng.randrange(len(self.under_way)))()
        if self.unanswered and self.rng.random() < 0.5:
            done = self.unanswered.pop(self.rng.randrange(len(self.unanswered)))
            self.say(self.owner.answered(done.lane, done.number, chat_pb2.SendResult(message_id=done.write.client_message_id)))

    def take(self, sent: Forward) -> None:
        verdict = self.owner.receive(sent)
        if isinstance(verdict, Forwarded):
            self.say(verdict)
        elif verdict and self.rng.random() < 0.9:
            self.owner.accepted(sent)
            self.accepted[sent.lane].append(sent.number)
            self.unanswered.append(sent)

    def say(self, forwarded: Forwarded) -> None:
        self.carry(lambda: self.hear(forwarded))

    def hear(self, forwarded: Forwarded) -> None:
        for ticket, of_write, got in self.edge.answered(forwarded, self.now_ms):
            assert isinstance(ticket, str)
            assert isinstance(got, chat_pb2.SendResult)
            assert ticket not in self.outcomes, "answered twice"
            assert got.message_id == of_write.client_message_id, "another one's answer"
            self.outcomes[ticket] = "sent"

    def replace_owner(self) -> None:
        self.check_order()
        self.owner = OwnerLanes(1, 10)
        self.unanswered.clear()
        for of_lane in self.accepted.values():
            of_lane.clear()
        self.edge.resend(lambda chat_id: True, self.now_ms)

    def check_order(self) -> None:
        """Within an epoch each number comes at most once and none before a lower one; unless the owner forgot the lane."""
        if self.owner._lanes_max == 1:
            return
        for numbers_taken in self.accepted.values():
            assert numbers_taken == sorted(set(numbers_taken)), numbers_taken


@given(st.integers(0, 10_000), st.sampled_from((0.0, 0.2, 0.6)), st.lists(st.sampled_from("sssttttttto"), max_size=120))
def test_whatever_the_links_do_each_write_is_taken_in_order_and_answered_once(seed: int, loss: float, turns: list[str]) -> None:
    world = Sloppy(seed, loss)
    for turn in turns:
        match turn:
            case "s":
                world.submit()
            case "t":
                world.step()
            case "o":
                world.replace_owner()
    world.loss = 0.0
    for _ in range(4_000):
        if world.edge.is_idle:
            break
        world.step()
    world.check_order()
    assert world.edge.is_idle
    assert set(world.outcomes) == {ticket for tickets in world.submitted.values() for ticket in tickets}
    assert world.edge.give_up(10**9) == []


# Heads.


def test_a_head_is_named_until_it_is_confirmed() -> None:
    book = HeadBook()
    assert book.beat() == {}
    book.note("c", 5)
    book.note("c", 4)
    book.note("d", 1)
    assert book.beat() == {"c": 5, "d": 1}
    book.confirmed({"c": 4})
    assert book.beat() == {"c": 5, "d": 1}, "it has not heard of 5"
    book.confirmed({"c": 5, "e": 9})
    assert book.beat() == {"d": 1}
    book.note("c", 6)
    assert book.beat() == {"d": 1, "c": 6}
