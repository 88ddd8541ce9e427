"""What must be true of the log and of every device, whatever happened in between.

Each check names all that is wrong, so that a broken history says how it is broken; `check_*` of the same name asserts that
nothing is. `tests/unit/support/test_checker.py` breaks histories in every way that matters, and sees that it is found.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from chatgrpc.v1 import chat_pb2
from tests.support.device import Held
from tests.support.outbox import Acknowledged, Outbox

_SHOWN_MAX = 20


def log_problems(log: Sequence[chat_pb2.ChatEvent], clock_falls: bool = False) -> list[str]:
    """One order without a gap (G2), nothing twice (G3), and a clock that never falls, unless the test sets it back."""
    problems = [*_of_log(log), *([] if clock_falls else _of_clock(log))]
    return [f"the log of {log[0].chat_id if log else 'a chat'}: {problem}" for problem in problems]


def outbox_problems(outbox: Outbox, logs: Iterable[Sequence[chat_pb2.ChatEvent]]) -> list[str]:
    """All that a device composed is in the logs once, in its order (M7), at the places that it was told (G1).

    Args:
        outbox: everything in it is acknowledged.
        logs: of all chats that it wrote to, whole.
    """
    by_chat = {log[0].chat_id: log for log in logs if log}
    name = f"{outbox.device.user_id}/{outbox.device.device_id}"
    problems = [*_unanswered(outbox), *_misplaced(outbox, by_chat), *_overtaken(outbox, by_chat)]
    return [f"what {name} sent: {problem}" for problem in problems]


def held_problems(name: str, held: Held, log: Sequence[chat_pb2.ChatEvent]) -> list[str]:
    """A device that has been there from the beginning holds exactly the log, and it came in this order (G2, G4).

    Args:
        name: what the device is called in the problems.
        held: what it holds.
        log: of one chat of its user, whole.
    """
    chat_id = log[0].chat_id
    events = held.events.get(chat_id, {})
    return [f"what {name} holds of {chat_id}: {problem}" for problem in _of_held(events, log)]


def stranger_problems(outboxes: Iterable[Outbox], logs: Iterable[Sequence[chat_pb2.ChatEvent]]) -> list[str]:
    """No text stands in a log that nobody composed."""
    composed = {(box.device.user_id, message.key.client_message_id) for box in outboxes for message in box.composed}
    return [
        f"the log of {event.chat_id}: {event.seq} is a text that nobody composed"
        for log in logs
        for event in log
        if event.content.HasField("text") and (event.sender_user_id, event.client_message_id) not in composed
    ]


def check_log(log: Sequence[chat_pb2.ChatEvent], clock_falls: bool = False) -> None:
    """See `log_problems`."""
    check(log_problems(log, clock_falls))


def check_outbox(outbox: Outbox, logs: Iterable[Sequence[chat_pb2.ChatEvent]]) -> None:
    """See `outbox_problems`."""
    check(outbox_problems(outbox, logs))


def check_held(held: Held, log: Sequence[chat_pb2.ChatEvent]) -> None:
    """See `held_problems`."""
    check(held_problems("the device", held, log))


def check(problems: Sequence[str]) -> None:
    """Asserts that there are none."""
    shown = [*problems[:_SHOWN_MAX], f"… {len(problems)} in all"][: len(problems)]
    assert not problems, "\n".join(shown)


def _of_log(log: Sequence[chat_pb2.ChatEvent]) -> Iterator[str]:
    for expected, event in enumerate(log, start=1):
        if event.seq != expected:
            yield f"{event.seq} stands where {expected} is next"
            break
    keys = Counter((event.sender_user_id, event.client_message_id) for event in log)
    for (user_id, client_message_id), times in keys.items():
        if times > 1:
            seqs = [
                event.seq for event in log if (event.sender_user_id, event.client_message_id) == (user_id, client_message_id)
            ]
            yield f"message {client_message_id.hex()} of {user_id} stands at {seqs}, but must be there once"
    if len({event.message_id for event in log}) < len(log):
        yield "a message id is there twice"


def _of_clock(log: Sequence[chat_pb2.ChatEvent]) -> Iterator[str]:
    times_ms = [event.sent_at_ms for event in log]
    if times_ms != sorted(times_ms):
        yield "its clock falls"


def _unanswered(outbox: Outbox) -> Iterator[str]:
    acknowledged = Counter(each.message.key.client_message_id for each in outbox.acknowledged)
    for message in outbox.composed:
        times = acknowledged.pop(message.key.client_message_id, 0)
        if times != 1:
            yield f"{_said(message.key.client_message_id)} was acknowledged {times} times"
    for client_message_id in acknowledged:
        yield f"{_said(client_message_id)} was acknowledged and never composed"


def _misplaced(outbox: Outbox, by_chat: dict[str, Sequence[chat_pb2.ChatEvent]]) -> Iterator[str]:
    present = {chat_id: {event.client_message_id for event in log} for chat_id, log in by_chat.items()}
    for acknowledged in outbox.acknowledged:
        result = acknowledged.result
        log = by_chat.get(result.chat_id, ())
        said = f"{_said(acknowledged.message.key.client_message_id)}, acknowledged at {result.chat_id} {result.seq},"
        if acknowledged.message.key.client_message_id not in present.get(result.chat_id, ()):
            yield f"{said} is lost"
        elif not 0 < result.seq <= len(log) or not _is_at(acknowledged, log[result.seq - 1], outbox):
            yield f"{said} stands elsewhere, or otherwise than it was sent"


def _is_at(acknowledged: Acknowledged, event: chat_pb2.ChatEvent, outbox: Outbox) -> bool:
    message, result = acknowledged.message, acknowledged.result
    return (
        event.seq == result.seq
        and (event.message_id, event.sent_at_ms) == (result.message_id, result.sent_at_ms)
        and (event.client_message_id, event.content) == (message.key.client_message_id, message.content)
        and (event.sender_user_id, event.sender_device_id) == (outbox.device.user_id, outbox.device.device_id)
    )


def _overtaken(outbox: Outbox, by_chat: dict[str, Sequence[chat_pb2.ChatEvent]]) -> Iterator[str]:
    positions = {message.key.client_message_id: number for number, message in enumerate(outbox.composed)}
    for chat_id, log in by_chat.items():
        order = [positions[event.client_message_id] for event in log if event.client_message_id in positions]
        if order != sorted(order):
            yield f"{chat_id} has it in another order than it was composed in"


def _of_held(events: dict[int, chat_pb2.ChatEvent], log: Sequence[chat_pb2.ChatEvent]) -> Iterator[str]:
    if list(events) != sorted(events):
        yield "it came out of order"
    missing = [event.seq for event in log if event.seq not in events]
    if missing:
        yield f"{missing[:5]} and {len(missing)} in all are missing"
    extra = sorted(events.keys() - {event.seq for event in log})
    if extra:
        yield f"{extra[:5]} and {len(extra)} in all stand in no log"
    for event in log:
        if event.seq in events and events[event.seq] != event:
            yield f"{event.seq} is another event than in the log"


def _said(client_message_id: bytes) -> str:
    return f"message {client_message_id.hex()}"
