"""What must be true of the log and of every device, whatever happened in between."""

from collections.abc import Iterable, Sequence

from chatgrpc.v1 import chat_pb2
from tests.support.device import Held
from tests.support.outbox import Outbox


def check_log(log: Sequence[chat_pb2.ChatEvent]) -> None:
    """One order without a gap (G2), nothing twice (G3), and a clock that never falls."""
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    keys = [(event.sender_user_id, event.client_message_id) for event in log]
    assert len(set(keys)) == len(keys), "a message stands in the log twice"
    assert len({event.message_id for event in log}) == len(log)
    times = [event.sent_at_ms for event in log]
    assert times == sorted(times)


def check_outbox(outbox: Outbox, logs: Iterable[Sequence[chat_pb2.ChatEvent]]) -> None:
    """All that a device composed is in the logs once, in its order (M7), at the places that it was told (G1).

    Args:
        outbox: everything in it is acknowledged.
        logs: of all chats that it wrote to, whole.
    """
    assert len(outbox) == 0
    by_chat = {log[0].chat_id: log for log in logs}
    for acknowledged in outbox.acknowledged:
        message, result = acknowledged.message, acknowledged.result
        event = by_chat[result.chat_id][result.seq - 1]
        assert (event.message_id, event.sent_at_ms) == (result.message_id, result.sent_at_ms)
        assert (event.client_message_id, event.content) == (message.key.client_message_id, message.content)
        assert (event.sender_user_id, event.sender_device_id) == (outbox.device.user_id, outbox.device.device_id)
    positions = {message.key.client_message_id: number for number, message in enumerate(outbox.composed)}
    assert {acknowledged.message.key.client_message_id for acknowledged in outbox.acknowledged} == positions.keys()
    for log in by_chat.values():
        order = [positions[event.client_message_id] for event in log if event.client_message_id in positions]
        assert order == sorted(order), "messages of one device stand in another order than they were composed in"


def check_held(held: Held, log: Sequence[chat_pb2.ChatEvent]) -> None:
    """A device that has been there from the beginning holds exactly the log."""
    chat_id = log[0].chat_id
    events = held.events.get(chat_id, {})
    assert list(events) == [event.seq for event in log]
    assert list(events.values()) == list(log)
