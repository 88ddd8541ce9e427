"""What waits for a peer: bounded, dropped by rank, and taken in order."""

import asyncio

from chatgrpc.core.links import AskHead, Deliver, Load, Message, RaiseMark
from chatgrpc.relay.codec import Decoder, parse_batch
from chatgrpc.relay.outbox import BATCH_BYTES, Outbox

MARK = RaiseMark("chat", "user", 1, 1, 0, 0)
EVENT = Deliver("chat", 1, b"x" * 1000, ("user",), "", False)


def event(seq: int, length: int = 1000) -> Deliver:
    return Deliver("chat", seq, b"x" * length, ("user",), "", False)


async def take_all(outbox: Outbox) -> list[list[Message]]:
    """Batches as the peer decodes them."""
    decoder, batches = Decoder(), []
    outbox.close()
    while (batch := await outbox.take()) is not None:
        batches.append(decoder.decode(parse_batch(batch)))
    return batches


async def test_what_waits_is_taken_in_order_and_cut_into_batches() -> None:
    outbox = Outbox(16 * 1024 * 1024)
    events = [event(seq) for seq in range(1000)]
    assert all(outbox.put(each) for each in events)
    batches = await take_all(outbox)
    assert [message for batch in batches for message in batch] == events
    assert len(batches) == 4, "a million bytes in batches of 256 KiB"
    assert max(sum(len(each.chunk) for each in batch if isinstance(each, Deliver)) for batch in batches) <= BATCH_BYTES + 1000


async def test_what_waits_is_counted_until_it_is_taken() -> None:
    outbox = Outbox(1024 * 1024)
    for seq in range(10):
        outbox.put(event(seq))
    assert outbox.messages == 10
    assert 10_000 < outbox.bytes < 11_000
    await outbox.take()
    assert (outbox.messages, outbox.bytes, outbox.sent_messages) == (0, 0, 10)


async def test_above_half_control_is_dropped_and_nothing_else() -> None:
    outbox = Outbox(100_000)
    while outbox.bytes <= 50_000:
        assert outbox.put(MARK)
    assert not outbox.put(MARK)
    assert not outbox.put(Load(1))
    assert outbox.put(EVENT)
    assert outbox.put(AskHead("chat", 1))


async def test_above_the_bound_everything_is_dropped_and_one_batch_later_taken_again() -> None:
    outbox = Outbox(1024 * 1024)
    while outbox.put(EVENT):
        assert outbox.bytes < 1024 * 1024 + 2000
    assert outbox.is_full
    assert not outbox.put(AskHead("chat", 1))
    await outbox.take()
    assert outbox.put(AskHead("chat", 1))


async def test_what_was_dropped_leaves_the_rest_readable() -> None:
    outbox = Outbox(10_000)
    taken: list[Message] = []
    for seq in range(100):
        each = Deliver(f"chat-{seq % 7}", seq, b"x" * 300, ("user",), "", False)
        if outbox.put(each):
            taken.append(each)
    assert 0 < len(taken) < 100
    assert [message for batch in await take_all(outbox) for message in batch] == taken


async def test_a_beat_overtakes_what_waits() -> None:
    outbox = Outbox(1024 * 1024)
    outbox.put(EVENT)
    outbox.put_beat(7)
    outbox.put_echo(8)
    outbox.put_echo(9)
    first = await outbox.take()
    assert first is not None
    beats = [frame.beat for frame in parse_batch(first).frames]
    assert [(beat.at_us, beat.echo) for beat in beats] == [(7, False), (9, True)], "of several echoes the last"
    second = await outbox.take()
    assert second is not None
    assert Decoder().decode(parse_batch(second)) == [EVENT]


async def test_taking_waits_for_the_first_message_and_ends_with_the_outbox() -> None:
    outbox = Outbox(1024)
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    outbox.put(Load(3))
    batch = await taking
    assert batch is not None
    assert Decoder().decode(parse_batch(batch)) == [Load(3)]
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.close()
    assert await taking is None
