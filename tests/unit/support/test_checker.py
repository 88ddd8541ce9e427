"""The checker finds every way in which a history can be broken, and nothing wrong with a whole one."""

import copy
from collections.abc import Callable, Sequence

import pytest

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.support.checker import check, held_problems, log_problems, outbox_problems, stranger_problems
from tests.support.device import Device, Held
from tests.support.outbox import Acknowledged, Outbox

CHAT_ID = direct_chat_id("alice", "bob")
MESSAGES = 6


class History:
    """A chat in which alice said something six times: what her outbox knows, the log, and what bob's phone holds."""

    def __init__(self) -> None:
        device = Device("nowhere", "no token", "phone")
        device.user_id = "alice"
        self.outbox = Outbox(device)
        self.log: list[chat_pb2.ChatEvent] = [
            chat_pb2.ChatEvent(chat_id=CHAT_ID, seq=1, message_id=b"1", sent_at_ms=1, client_message_id=b"creation of chat")
        ]
        for number in range(2, MESSAGES + 2):
            device.held.cursors[CHAT_ID] = number - 1
            message = self.outbox.compose("bob", f"message {number}")
            event = chat_pb2.ChatEvent(
                chat_id=CHAT_ID,
                seq=number,
                message_id=f"{number}".encode(),
                client_message_id=message.key.client_message_id,
                sender_user_id="alice",
                sender_device_id="phone",
                sent_at_ms=number,
                content=message.content,
            )
            self.log.append(event)
            result = chat_pb2.SendResult(chat_id=CHAT_ID, seq=number, message_id=event.message_id, sent_at_ms=number)
            self.outbox.acknowledged.append(Acknowledged(message, result))
        self.outbox._waiting.clear()
        self.held = Held(events={CHAT_ID: {event.seq: copy.deepcopy(event) for event in self.log}})

    def renumber(self) -> None:
        """The log without holes, whatever was done to it; as if that were what happened."""
        for seq, event in enumerate(self.log, start=1):
            event.seq = seq

    @property
    def problems(self) -> Sequence[str]:
        """All that any check finds."""
        return [
            *log_problems(self.log),
            *outbox_problems(self.outbox, [self.log]),
            *held_problems("bob/phone", self.held, self.log),
            *stranger_problems([self.outbox], [self.log]),
        ]


def a_lost_message(history: History) -> None:
    """Acknowledged, delivered, and gone from the log."""
    del history.log[3]
    history.renumber()


def a_lost_last_message(history: History) -> None:
    """Acknowledged, and neither in the log nor delivered."""
    del history.log[-1]
    del history.held.events[CHAT_ID][len(history.log) + 1]


def a_hole(history: History) -> None:
    del history.log[3]


def a_repeated_message(history: History) -> None:
    """Committed twice."""
    again = copy.deepcopy(history.log[3])
    again.seq, again.message_id, again.sent_at_ms = len(history.log) + 1, b"again", len(history.log) + 1
    history.log.append(again)
    history.held.events[CHAT_ID][again.seq] = copy.deepcopy(again)


def a_repeated_seq(history: History) -> None:
    history.log.insert(3, copy.deepcopy(history.log[3]))


def two_messages_in_the_other_order(history: History) -> None:
    """Both are there, and acknowledged where they stand."""
    first, second = history.log[2], history.log[3]
    second.client_message_id = history.outbox.composed[0].key.client_message_id
    second.content.CopyFrom(history.outbox.composed[0].content)
    first.client_message_id = history.outbox.composed[1].key.client_message_id
    first.content.CopyFrom(history.outbox.composed[1].content)
    one, two = history.outbox.acknowledged[:2]
    history.outbox.acknowledged[:2] = [Acknowledged(one.message, two.result), Acknowledged(two.message, one.result)]
    history.held.events[CHAT_ID] = {event.seq: copy.deepcopy(event) for event in history.log}


def another_event_at_a_seq_on_a_device(history: History) -> None:
    history.held.events[CHAT_ID][4].content.text.text = "something else"


def a_message_missing_on_a_device(history: History) -> None:
    del history.held.events[CHAT_ID][4]


def a_message_on_a_device_that_stands_in_no_log(history: History) -> None:
    history.held.events[CHAT_ID][99] = chat_pb2.ChatEvent(chat_id=CHAT_ID, seq=99)


def messages_that_came_out_of_order(history: History) -> None:
    events = history.held.events[CHAT_ID]
    history.held.events[CHAT_ID] = {seq: events[seq] for seq in (1, 2, 4, 3, 5, 6, 7)}


def an_acknowledgement_at_another_place(history: History) -> None:
    history.outbox.acknowledged[2].result.seq += 1


def another_content_than_was_sent(history: History) -> None:
    for event in (history.log[4], history.held.events[CHAT_ID][5]):
        event.content.text.text = "something else"


def a_message_that_was_never_acknowledged(history: History) -> None:
    del history.outbox.acknowledged[2]


def a_message_acknowledged_twice(history: History) -> None:
    history.outbox.acknowledged.append(history.outbox.acknowledged[2])


def a_message_of_nobody(history: History) -> None:
    text = content_pb2.Content(text=content_pb2.TextContent(text="boo"))
    seq = len(history.log) + 1
    event = chat_pb2.ChatEvent(
        chat_id=CHAT_ID, seq=seq, message_id=b"boo", sent_at_ms=seq, client_message_id=b"b" * 16, content=text
    )
    event.sender_user_id = "alice"
    history.log.append(event)
    history.held.events[CHAT_ID][seq] = copy.deepcopy(event)


def a_message_under_anothers_name(history: History) -> None:
    for event in (history.log[4], history.held.events[CHAT_ID][5]):
        event.sender_user_id = "mallory"


def a_clock_that_falls(history: History) -> None:
    for event in (history.log[4], history.held.events[CHAT_ID][5], history.outbox.acknowledged[3].result):
        event.sent_at_ms = 1


@pytest.mark.parametrize(
    ("breaks", "found"),
    [
        (a_lost_message, "is lost"),
        (a_lost_last_message, "is lost"),
        (a_hole, "5 stands where 4 is next"),
        (a_repeated_message, "must be there once"),
        (a_repeated_seq, "4 stands where 5 is next"),
        (two_messages_in_the_other_order, "another order than it was composed in"),
        (another_event_at_a_seq_on_a_device, "4 is another event than in the log"),
        (a_message_missing_on_a_device, "[4] and 1 in all are missing"),
        (a_message_on_a_device_that_stands_in_no_log, "[99] and 1 in all stand in no log"),
        (messages_that_came_out_of_order, "it came out of order"),
        (an_acknowledgement_at_another_place, "stands elsewhere"),
        (another_content_than_was_sent, "otherwise than it was sent"),
        (a_message_that_was_never_acknowledged, "was acknowledged 0 times"),
        (a_message_acknowledged_twice, "was acknowledged 2 times"),
        (a_message_of_nobody, "a text that nobody composed"),
        (a_message_under_anothers_name, "otherwise than it was sent"),
        (a_clock_that_falls, "its clock falls"),
    ],
)
def test_a_broken_history_is_found(breaks: Callable[[History], None], found: str) -> None:
    history = History()
    breaks(history)
    assert any(found in problem for problem in history.problems), history.problems
    with pytest.raises(AssertionError):
        check(history.problems)


def test_a_whole_history_is_left_alone() -> None:
    history = History()
    assert history.problems == []
    check(history.problems)
