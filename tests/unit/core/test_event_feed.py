"""The feed of one device, one schedule at a time; random ones stand in test_event_feed_guarantees.py."""

import pytest

from chatgrpc.core.entries import Membership, StoredChat, StoredEvent
from chatgrpc.core.event_feed import EventFeed, FeedRead, LoadChat, ReadLog, ReadMembership, Start
from chatgrpc.core.events import event_chunk
from chatgrpc.core.ids import self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.visibility import Interval
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2

CHAT, OTHER = "g.one", "g.other"
ALWAYS = (Interval(1),)


class Device:
    """Alice's feed, and what came out of it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.out: list[bytes] = []
        self.feed = EventFeed(limits or Limits(), self.out)

    def open(self, *memberships: Membership, at_head: bool = False, acked: dict[str, int] | None = None, **held: int) -> None:
        positions = {f"g.{name}": seq for name, seq in held.items()}
        self.feed.open("alice", memberships, Start(positions, acked or {}, at_head))

    def deliver(self, *seqs: int, chat_id: str = CHAT, last: bool = False) -> None:
        for seq in seqs:
            self.feed.deliver(chat_id, seq, event_chunk(event(chat_id, seq)), last)

    def read_log(self) -> ReadLog:
        reading = self.feed.next_read()
        assert isinstance(reading, ReadLog)
        return reading

    def answer(self, reading: ReadLog) -> None:
        seqs = range(reading.after_seq + 1, reading.up_to_seq + 1)[: reading.limit]
        self.feed.log_read([StoredEvent(seq, event(reading.chat_id, seq)) for seq in seqs])

    def load_chat(self, *member_user_ids: str) -> session_pb2.ChatOpened:
        self.find_state(*member_user_ids, as_of_seq=100)
        return self.take()[-1].chat_opened

    def find_state(self, *member_user_ids: str, as_of_seq: int) -> None:
        """The chat's state is read, and is this one."""
        reading = self.feed.next_read()
        assert isinstance(reading, LoadChat)
        chat = chat_pb2.Chat(chat_id=reading.chat_id, title="Title", as_of_seq=as_of_seq)
        for user_id in member_user_ids:
            chat.members.add(user_id=user_id)
        self.feed.chat_loaded(StoredChat(chat.SerializeToString(), 1, b""))

    def resume(self) -> None:
        for chat_id, _ in self.feed.take_set_aside():
            self.feed.resume(chat_id)

    def read_membership(self, membership: Membership | None, chat_id: str = CHAT) -> None:
        assert self.feed.next_read() == ReadMembership(chat_id)
        self.feed.membership_read(chat_id, membership)

    def take(self) -> list[session_pb2.ServerFrame]:
        frames = list(session_pb2.ConnectResponse.FromString(b"".join(self.out)).frames)
        self.out.clear()
        return frames

    def seqs(self) -> list[int]:
        return [frame.event.seq for frame in self.take()]


def event(chat_id: str, seq: int) -> bytes:
    content = content_pb2.Content(text=content_pb2.TextContent(text="hi"))
    return chat_pb2.ChatEvent(chat_id=chat_id, seq=seq, content=content).SerializeToString()


# Where a device begins.


def test_a_device_that_has_everything_gets_the_next_event_at_once() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    assert device.feed.is_synced
    assert not device.feed.is_behind
    device.deliver(6, 7)
    assert device.seqs() == [6, 7]


def test_g4_replay_goes_over_into_live() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=2)
    assert not device.feed.is_synced
    reading = device.read_log()
    assert (reading.after_seq, reading.up_to_seq) == (2, 5)
    device.deliver(6)
    assert device.seqs() == []
    device.answer(reading)
    assert device.feed.is_synced, "it has all up to the moment of its opening"
    device.answer(device.read_log())
    device.deliver(7)
    assert device.seqs() == [3, 4, 5, 6]
    assert device.feed.next_read() is not None
    device.feed.log_read([StoredEvent(7, event(CHAT, 7))])
    assert device.feed.next_read() is None
    device.deliver(8)
    assert device.seqs() == [7, 8]


def test_a_device_is_synced_when_all_of_the_openings_moment_was_pushed() -> None:
    device = Device(Limits(unacknowledged_events_max=4))
    device.open(Membership(CHAT, ALWAYS, 9), one=2)
    device.answer(device.read_log())
    assert device.seqs() == [3, 4, 5, 6]
    assert not device.feed.is_synced
    device.feed.ack(CHAT, 6)
    device.deliver(*range(10, 20))
    device.answer(device.read_log())
    assert device.seqs() == [7, 8, 9, 10]
    assert device.feed.is_synced, "though the chat still lags"


def test_only_one_read_is_under_way() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), Membership(OTHER, ALWAYS, 5), one=2, other=2)
    device.read_log()
    assert device.feed.next_read() is None


def test_a_chat_that_the_device_does_not_hold_is_opened() -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(3),), 9), acked={CHAT: 6})
    opened = device.load_chat("alice", "bob")
    assert (opened.next_seq, opened.head_seq, opened.first_visible_seq) == (7, 9, 3)
    assert opened.chat.title == "Title"
    device.answer(device.read_log())
    assert device.seqs() == [7, 8, 9]


def test_a_new_device_begins_with_the_next_event() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 9), at_head=True)
    opened = device.load_chat("alice")
    assert (opened.next_seq, opened.head_seq) == (10, 9)
    assert device.feed.next_read() is None
    assert device.feed.is_synced


def test_a_new_device_gets_its_self_chat_whole() -> None:
    device = Device()
    device.open(Membership(self_chat_id("alice"), ALWAYS, 2), at_head=True)
    assert device.load_chat("alice").next_seq == 1


def test_a_device_that_holds_more_than_the_log_is_told_where_it_ends() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=8)
    assert device.load_chat("alice").next_seq == 6
    assert device.feed.next_read() is None
    device.deliver(6)
    assert device.seqs() == [6]


def test_the_part_of_a_chat_that_the_user_may_not_see_is_passed_over() -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(1, 3), Interval(7)), 8), one=1)
    device.answer(device.read_log())
    assert device.seqs() == [2, 3]
    opened = device.load_chat("alice")
    assert opened.next_seq == 7
    device.answer(device.read_log())
    assert device.seqs() == [7, 8]


def test_a_past_chat_is_sent_to_its_last_visible_event() -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(1, 3),), 90), one=1)
    reading = device.read_log()
    assert reading.up_to_seq == 3
    device.answer(reading)
    assert device.feed.next_read() is None
    assert device.feed.ack(CHAT, 3) == 3
    assert device.feed.heads_behind() == [], "where the chat is now is none of a past member's business"


@pytest.mark.parametrize("at_head", [True, False])
def test_a_past_chat_that_the_device_has_or_does_not_want_is_left_out(at_head: bool) -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(1, 3),), 90), at_head=at_head, acked={CHAT: 3})
    assert not device.feed.is_behind
    assert not device.feed.knows(CHAT)
    assert device.feed.is_synced


def test_g6_the_state_of_a_chat_is_not_for_past_members() -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(1, 3),), 90))
    opened = device.load_chat("bob")
    assert opened.chat == chat_pb2.Chat(chat_id=CHAT)
    assert (opened.next_seq, opened.head_seq) == (1, 3)


def test_g6_nor_for_one_whose_leaving_is_still_on_its_way() -> None:
    """The store is ahead of the deliveries: the state that was read is one without the user, whose membership is read again."""
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 3))
    device.find_state("bob", as_of_seq=4)
    assert device.take() == []
    assert device.feed.next_read() is None
    device.resume()
    device.read_membership(Membership(CHAT, (Interval(1, 4),), 4))
    assert device.load_chat("bob").chat == chat_pb2.Chat(chat_id=CHAT)


# Joining, leaving, and coming back.


def test_a_state_that_is_older_than_the_membership_is_not_shown_and_read_again() -> None:
    """Views are stored one after the other: who is let in by the event 4 may find the state of before it."""
    device = Device()
    device.open()
    device.deliver(4)
    device.read_membership(Membership(CHAT, (Interval(4),), 4))
    device.find_state("bob", as_of_seq=3)
    assert device.take() == []
    assert device.feed.next_read() is None, "it waits before it reads again"
    device.resume()
    device.read_membership(Membership(CHAT, (Interval(4),), 4))
    assert [member.user_id for member in device.load_chat("bob", "alice").chat.members] == ["bob", "alice"]
    device.answer(device.read_log())
    assert device.seqs() == [4]


def test_nor_is_one_of_an_earlier_time_in_the_chat() -> None:
    device = Device()
    device.open()
    device.deliver(9)
    device.read_membership(Membership(CHAT, (Interval(1, 5), Interval(9)), 9))
    device.find_state("alice", "bob", as_of_seq=4)
    assert device.take() == []


def test_who_is_let_in_again_before_the_state_was_read_is_told_it() -> None:
    """Let in at 4, removed at 5, let in at 6: the seqs are contiguous, and what was shown in between was a past member's."""
    device = Device()
    device.open()
    device.deliver(4)
    device.read_membership(Membership(CHAT, (Interval(4),), 4))
    device.deliver(5, last=True)
    assert device.load_chat("bob").chat == chat_pb2.Chat(chat_id=CHAT)
    device.answer(device.read_log())
    device.deliver(6)
    device.read_membership(Membership(CHAT, (Interval(4, 5), Interval(6)), 6))
    assert device.load_chat("bob", "alice").chat.title == "Title"
    device.answer(device.read_log())
    assert device.seqs() == [6]


def test_also_if_the_device_names_the_chat_in_its_hello() -> None:
    device = Device()
    device.open(Membership(CHAT, (Interval(4, 5), Interval(6)), 7), one=5)
    assert device.load_chat("bob", "alice").next_seq == 6
    device = Device()
    device.open(Membership(CHAT, (Interval(4, 5), Interval(6)), 7), one=6)
    device.answer(device.read_log())
    assert device.seqs() == [7], "it was told before the event 6"


def test_a_chat_that_the_user_is_let_into_is_opened() -> None:
    device = Device()
    device.open()
    device.deliver(4, 5)
    device.read_membership(Membership(CHAT, (Interval(4),), 4))
    assert device.load_chat("alice").next_seq == 4
    device.answer(device.read_log())
    device.deliver(6)
    assert device.seqs() == [4, 5]
    device.answer(device.read_log())
    assert device.feed.next_read() is None
    device.deliver(7)
    assert device.seqs() == [6, 7]


def test_the_last_event_of_a_chat_can_be_acknowledged() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.deliver(6)
    device.deliver(7, last=True)
    assert not device.feed.knows(CHAT)
    assert device.seqs() == [6, 7]
    assert device.feed.ack(CHAT, 6) == 6
    assert device.feed.ack(CHAT, 7) == 7
    assert device.feed.ack(CHAT, 7) == 0
    assert device.feed.head_seq(CHAT) == 0, "it is gone from the feed"


@pytest.mark.parametrize("acked_seq", [5, 6])
def test_who_comes_back_goes_on_behind_the_gap(acked_seq: int) -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.deliver(6, last=True)
    assert device.seqs() == [6]
    device.feed.ack(CHAT, acked_seq)
    device.deliver(9, 10)
    device.read_membership(Membership(CHAT, (Interval(1, 6), Interval(9)), 10))
    assert device.load_chat("alice").next_seq == 9
    device.answer(device.read_log())
    device.deliver(11)
    assert device.feed.next_read() is not None
    assert device.seqs() == [9, 10]


def test_who_comes_back_while_the_chat_still_lags_is_not_forgotten() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=4)
    reading = device.read_log()
    device.deliver(6, last=True)
    device.deliver(7)
    device.answer(reading)
    device.read_membership(Membership(CHAT, (Interval(1, 6), Interval(7)), 7))
    device.answer(device.read_log())
    assert device.seqs() == [5, 6]
    device.answer(device.read_log())
    assert device.seqs() == [7]


def test_g6_a_membership_that_is_older_than_the_leaving_is_read_again() -> None:
    device = Device()
    device.open()
    device.deliver(4)
    assert device.feed.next_read() == ReadMembership(CHAT)
    device.deliver(5, last=True)
    device.feed.membership_read(CHAT, Membership(CHAT, (Interval(4),), 4))
    assert not device.feed.knows(CHAT)
    device.read_membership(Membership(CHAT, (Interval(4, 5),), 5))
    device.load_chat("bob")
    device.answer(device.read_log())
    assert device.seqs() == [4, 5]
    assert device.feed.next_read() is None


def test_a_membership_that_is_older_than_the_return_is_read_again() -> None:
    device = Device()
    device.open()
    device.deliver(4)
    assert device.feed.next_read() == ReadMembership(CHAT)
    device.deliver(5, last=True)
    device.deliver(6)
    device.feed.membership_read(CHAT, Membership(CHAT, (Interval(4, 5),), 5))
    device.read_membership(Membership(CHAT, (Interval(4, 5), Interval(6)), 6))
    assert device.feed.knows(CHAT)


def test_a_membership_is_not_read_again_for_every_event_that_comes_meanwhile() -> None:
    """Otherwise a busy chat would never be opened."""
    device = Device()
    device.open()
    device.deliver(4)
    assert device.feed.next_read() == ReadMembership(CHAT)
    device.deliver(5, 6, 7)
    device.feed.membership_read(CHAT, Membership(CHAT, (Interval(4),), 5))
    assert device.load_chat("alice").head_seq == 7
    device.answer(device.read_log())
    assert device.seqs() == [4, 5, 6, 7]


def test_a_chat_without_membership_is_passed_over() -> None:
    device = Device()
    device.open()
    device.deliver(4)
    device.read_membership(None)
    assert not device.feed.is_behind


def test_what_came_before_the_opening_is_not_lost() -> None:
    device = Device()
    device.deliver(6)
    device.deliver(3, chat_id=OTHER)
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.read_membership(Membership(OTHER, (Interval(3),), 3), OTHER)
    device.read_membership(Membership(CHAT, ALWAYS, 6))
    device.load_chat("alice")
    device.answer(device.read_log())
    device.answer(device.read_log())
    assert device.seqs() == [3, 6]


# Gaps and repetitions.


def test_g4_a_lost_delivery_is_repaired_before_the_next_is_pushed() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.deliver(6)
    device.deliver(8)
    assert device.seqs() == [6]
    device.read_membership(Membership(CHAT, ALWAYS, 8))
    device.answer(device.read_log())
    assert device.feed.next_read() is None
    device.deliver(9)
    assert device.seqs() == [7, 8, 9]


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "among many heads"])
@pytest.mark.parametrize("was_there", [False, True], ids=["for the first time", "again"])
def test_g4_a_push_that_was_lost_while_the_user_is_let_in_is_found(others: int, was_there: bool) -> None:
    """Its head may be stated while the membership is read, as it was before."""
    device = Device()
    device.open(*([Membership(CHAT, (Interval(1, 3),), 3)] if was_there else []), one=3)
    device.deliver(5)
    intervals = (Interval(1, 3), Interval(5)) if was_there else (Interval(5),)
    assert device.feed.next_read() == ReadMembership(CHAT)
    device.feed.note_heads({CHAT: 6} | {f"g.another{number}": 9 for number in range(others)})
    device.feed.membership_read(CHAT, Membership(CHAT, intervals, 5))
    device.read_membership(Membership(CHAT, intervals, 6))
    device.load_chat("alice")
    device.answer(device.read_log())
    assert device.seqs() == [5, 6]
    assert device.feed.next_read() is None


def test_g6_a_lost_leave_and_return_are_noticed() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.deliver(12)
    device.read_membership(Membership(CHAT, (Interval(1, 7), Interval(11)), 12))
    device.answer(device.read_log())
    device.load_chat("alice")
    device.answer(device.read_log())
    assert device.seqs() == [11, 12], "and 6 and 7 before the chat was opened anew"


def test_a_repeated_delivery_is_passed_over() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=5)
    device.deliver(6, 6, 5, 1)
    assert device.seqs() == [6]
    assert not device.feed.is_behind


# The window.


def test_g5_a_full_window_sends_the_chat_to_the_log() -> None:
    device = Device(Limits(unacknowledged_events_max=4))
    device.open(Membership(CHAT, ALWAYS, 0), one=0)
    device.deliver(*range(1, 21))
    assert device.seqs() == [1, 2, 3, 4]
    assert device.feed.next_read() is None, "there is no room for a page"
    device.feed.ack(CHAT, 1)
    assert device.feed.next_read() is None, "nor for one worth reading"
    device.feed.ack(CHAT, 2)
    reading = device.read_log()
    assert (reading.after_seq, reading.up_to_seq, reading.limit) == (4, 20, 2)


def test_g5_the_window_counts_bytes_too() -> None:
    size = len(event_chunk(event(CHAT, 1)))
    device = Device(Limits(unacknowledged_bytes_max=3 * size))
    device.open(Membership(CHAT, ALWAYS, 0), one=0)
    device.deliver(1, 2, 3, 4)
    assert device.seqs() == [1, 2, 3]
    device.feed.ack(CHAT, 2)
    assert device.read_log().bytes_max == 2 * size


def test_g5_a_page_does_not_pass_the_window_either() -> None:
    device = Device(Limits(unacknowledged_events_max=4))
    device.open(Membership(CHAT, ALWAYS, 9), Membership(OTHER, ALWAYS, 1), one=0, other=1)
    device.load_chat("alice")
    reading = device.read_log()
    device.deliver(2, 3, chat_id=OTHER)
    device.answer(reading)
    assert device.seqs() == [2, 3, 1, 2]


def test_the_window_is_shared_and_a_chat_gives_its_part_back() -> None:
    device = Device(Limits(unacknowledged_events_max=2))
    device.open(Membership(CHAT, ALWAYS, 0), Membership(OTHER, ALWAYS, 0), one=0, other=0)
    device.deliver(1)
    device.deliver(1, chat_id=OTHER)
    device.deliver(2, chat_id=OTHER)
    assert device.seqs() == [1, 1]
    device.feed.ack(CHAT, 1)
    device.answer(device.read_log())
    assert device.seqs() == [2]


def test_heads_that_are_not_acknowledged_are_named_up_to_a_limit() -> None:
    device = Device(Limits(heartbeat_heads_max=1))
    device.open(Membership(CHAT, ALWAYS, 5), Membership(OTHER, ALWAYS, 5), one=5, other=5)
    assert device.feed.heads_behind() == []
    device.deliver(6)
    device.deliver(6, chat_id=OTHER)
    assert device.feed.heads_behind() == [(CHAT, 6)]
    device.feed.ack(CHAT, 6)
    assert device.feed.heads_behind() == [(OTHER, 6)]


def test_a_page_that_comes_back_empty_is_not_asked_for_again() -> None:
    device = Device()
    device.open(Membership(CHAT, ALWAYS, 5), one=2)
    device.read_log()
    device.feed.log_read([])
    read: FeedRead | None = device.feed.next_read()
    assert read is None
    device.deliver(6)
    assert device.feed.next_read() == ReadMembership(CHAT), "the next delivery is a gap"


def test_g4_a_chat_whose_membership_is_being_read_is_in_doubt_too_and_read_again_as_of_the_head() -> None:
    """What is under way may have been asked before the push that was lost."""
    device = Device()
    device.open()
    assert device.feed.chats_in_doubt() == []
    device.deliver(1)
    assert device.feed.next_read() == ReadMembership(CHAT)
    assert device.feed.chats_in_doubt() == [CHAT]
    device.feed.note_head(CHAT, 3)
    device.feed.membership_read(CHAT, Membership(CHAT, (Interval(1),), 2))
    device.read_membership(Membership(CHAT, (Interval(1),), 3))
    assert device.feed.chats_in_doubt() == [CHAT]
    assert device.feed.head_seq(CHAT) == 3
