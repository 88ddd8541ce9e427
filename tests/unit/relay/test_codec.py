"""What goes into a link comes out of it, and what no node would send is refused."""

import typing
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpc.core.lanes import Forward, Forwarded, Lane
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    EndStream,
    EndStreamHeard,
    HeadIs,
    Heads,
    HeadsHeard,
    Load,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.write import Write
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.codec import (
    AUDIENCE_USERS_MAX,
    AUDIENCES_MAX,
    Decoder,
    Encoder,
    MalformedBatchError,
    parse_batch,
)
from chatgrpc.v1 import chat_pb2, content_pb2

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
SEQS = st.integers(0, 2**63 - 1)
KINDS = st.integers(0, 2**31 - 1)
USERS = st.lists(WORDS, max_size=4).map(tuple)
HEADS = st.dictionaries(WORDS, SEQS, max_size=4)
CHATS = st.sampled_from(["a", "b", "c"])


def contents() -> st.SearchStrategy[content_pb2.Content]:
    return st.builds(
        lambda text, reply_to_seq: content_pb2.Content(text=content_pb2.TextContent(text=text), reply_to_seq=reply_to_seq),
        WORDS,
        SEQS,
    )


def outcomes() -> st.SearchStrategy[chat_pb2.SendResult | chat_pb2.Error]:
    sent = st.builds(chat_pb2.SendResult, chat_id=WORDS, seq=SEQS, message_id=st.binary(max_size=16), duplicate=st.booleans())
    return sent | st.builds(chat_pb2.Error, message=WORDS, retry_after_ms=KINDS)


@st.composite
def forwards(draw: st.DrawFn) -> Forward:
    lane = Lane(draw(WORDS), draw(WORDS), draw(WORDS))
    write = Write(
        lane.chat_id,
        draw(WORDS),
        draw(contents()),
        draw(st.binary(max_size=16)),
        draw(st.none() | SEQS),
        draw(WORDS),
        draw(WORDS),
        draw(WORDS),
    )
    return Forward(lane, draw(SEQS), draw(SEQS), write, draw(SEQS))


BY_KIND: dict[type[Message], st.SearchStrategy[Message]] = {
    Forward: forwards(),
    Forwarded: st.builds(Forwarded, st.builds(Lane, WORDS, WORDS, WORDS), SEQS, outcomes(), SEQS),
    Deliver: st.builds(Deliver, CHATS, SEQS, st.binary(max_size=40), USERS, WORDS, st.booleans(), SEQS),
    Heads: st.builds(Heads, HEADS),
    HeadsHeard: st.builds(HeadsHeard, HEADS),
    AskHead: st.builds(AskHead, WORDS, SEQS),
    HeadIs: st.builds(HeadIs, WORDS, SEQS, SEQS),
    AskMembers: st.builds(AskMembers, WORDS, SEQS),
    MembersAre: st.builds(MembersAre, WORDS, SEQS, USERS),
    RaiseMark: st.builds(RaiseMark, WORDS, WORDS, SEQS, SEQS, SEQS, SEQS),
    ShowReceipt: st.builds(ShowReceipt, WORDS, WORDS, SEQS, SEQS, USERS),
    TellTyping: st.builds(TellTyping, WORDS, WORDS, KINDS),
    ShowTyping: st.builds(ShowTyping, WORDS, WORDS, KINDS, USERS),
    EndStream: st.builds(EndStream, WORDS, WORDS, KINDS, SEQS),
    EndStreamHeard: st.builds(EndStreamHeard, WORDS, WORDS, KINDS),
    Load: st.builds(Load, SEQS),
}


def through(encoder: Encoder, decoder: Decoder, messages: Iterable[Message]) -> list[Message]:
    """Carries messages from one end to the other as one batch."""
    batch = relay_pb2.LinkBatch()
    for message in messages:
        encoder.add(batch, message)
    return decoder.decode(parse_batch(batch.SerializeToString()))


def test_every_kind_of_message_is_tried() -> None:
    assert set(BY_KIND) == set(typing.get_args(Message))


@pytest.mark.parametrize("kind", BY_KIND, ids=lambda kind: kind.__name__)
def test_a_message_comes_out_as_it_went_in(kind: type[Message]) -> None:
    @given(BY_KIND[kind])
    def comes_out(message: Message) -> None:
        assert through(Encoder(), Decoder(), [message]) == [message]

    comes_out()


@given(st.lists(st.lists(st.one_of(*BY_KIND.values()), max_size=8), max_size=6))
def test_batches_of_any_kinds_come_out_in_order(batches: list[list[Message]]) -> None:
    encoder, decoder = Encoder(), Decoder()
    for messages in batches:
        assert through(encoder, decoder, messages) == messages


@given(st.lists(st.one_of(*BY_KIND.values()), max_size=8), st.lists(st.one_of(*BY_KIND.values()), max_size=8))
def test_two_batches_one_after_the_other_are_a_batch(first: list[Message], second: list[Message]) -> None:
    encoder, batches = Encoder(), (relay_pb2.LinkBatch(), relay_pb2.LinkBatch())
    for batch, messages in zip(batches, (first, second), strict=True):
        for message in messages:
            encoder.add(batch, message)
    joined = b"".join(batch.SerializeToString() for batch in batches)
    assert Decoder().decode(parse_batch(joined)) == first + second


@given(st.lists(st.one_of(*BY_KIND.values()), max_size=8))
def test_no_message_is_longer_than_it_was_counted(messages: list[Message]) -> None:
    encoder, batch = Encoder(), relay_pb2.LinkBatch()
    counted = sum(encoder.add(batch, message) for message in messages)
    frames_overhead = 8 * (len(batch.frames) + 1)
    assert batch.ByteSize() <= counted + frames_overhead


def deliver(chat_id: str, user_ids: tuple[str, ...], seq: int = 1) -> Deliver:
    return Deliver(chat_id, seq, b"event", user_ids, "", False)


def test_an_audience_is_sent_once() -> None:
    encoder, users = Encoder(), tuple(f"user-{number:04}" for number in range(1000))
    first, second = relay_pb2.LinkBatch(), relay_pb2.LinkBatch()
    assert encoder.add(first, deliver("group", users)) > 9_000
    assert encoder.add(second, deliver("group", users, 2)) < 60
    assert first.ByteSize() > 9_000
    assert second.ByteSize() < 60


def test_an_audience_that_changed_is_sent_anew() -> None:
    messages: list[Message] = [
        deliver("group", ("a", "b")),
        deliver("group", ("a", "b", "c"), 2),
        deliver("group", ("a", "b"), 3),
    ]
    assert through(Encoder(), Decoder(), messages) == messages


def test_the_longest_unused_audience_is_forgotten_by_both_ends() -> None:
    encoder, decoder = Encoder(), Decoder()
    one_too_many = [deliver(f"chat-{number}", ("a", "b")) for number in range(AUDIENCES_MAX + 1)]
    assert through(encoder, decoder, one_too_many) == one_too_many
    batch = relay_pb2.LinkBatch()
    encoder.add(batch, one_too_many[-1])
    encoder.add(batch, one_too_many[0])
    assert [frame.WhichOneof("body") for frame in batch.frames] == ["deliver", "audience", "deliver"]
    assert decoder.decode(batch) == [one_too_many[-1], one_too_many[0]]


def test_audiences_are_bounded_in_users_too() -> None:
    encoder, decoder = Encoder(), Decoder()
    users = tuple(str(number) for number in range(AUDIENCE_USERS_MAX // 4))
    messages: list[Message] = [deliver(f"group-{number}", users) for number in range(6)]
    assert through(encoder, decoder, messages) == messages
    everyone = tuple(str(number) for number in range(AUDIENCE_USERS_MAX + 1))
    messages = [deliver("town", everyone), deliver("group-0", users), deliver("group-1", users)]
    assert through(encoder, decoder, messages) == messages


def test_a_frame_of_a_later_version_is_skipped() -> None:
    unknown_body_of_field_200 = bytes.fromhex("c20c0161")
    batch = relay_pb2.LinkBatch()
    encoder = Encoder()
    encoder.add(batch, Load(1))
    frame = bytes([0x0A, len(unknown_body_of_field_200)]) + unknown_body_of_field_200
    later = relay_pb2.LinkBatch()
    encoder.add(later, Load(2))
    data = batch.SerializeToString() + frame + later.SerializeToString()
    assert Decoder().decode(parse_batch(data)) == [Load(1), Load(2)]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_batch_or_malformed(data: bytes) -> None:
    try:
        Decoder().decode(parse_batch(data))
    except MalformedBatchError:
        return


MALFORMED = {
    "a delivery to nobody that was named": [relay_pb2.LinkFrame(deliver=relay_pb2.Deliver(audience=1, seq=1))],
    "an audience a second time": [relay_pb2.LinkFrame(audience=relay_pb2.Audience(number=1))] * 2,
    "an audience without a number": [relay_pb2.LinkFrame(audience=relay_pb2.Audience(chat_id="a"))],
    "an outcome that is none": [relay_pb2.LinkFrame(forwarded=relay_pb2.Forwarded(number=1))],
    "a result that is none": [relay_pb2.LinkFrame(forwarded=relay_pb2.Forwarded(sent=b"\xff"))],
    "a content that is none": [relay_pb2.LinkFrame(forward=relay_pb2.Forward(content=b"\xff"))],
    "more audiences than may be": [
        relay_pb2.LinkFrame(audience=relay_pb2.Audience(number=number + 1)) for number in range(AUDIENCES_MAX + 1)
    ],
    "a delivery to an audience that was forgotten": [
        relay_pb2.LinkFrame(audience=relay_pb2.Audience(number=1)),
        relay_pb2.LinkFrame(audience=relay_pb2.Audience(number=2, forgotten=[1])),
        relay_pb2.LinkFrame(deliver=relay_pb2.Deliver(audience=1, seq=1)),
    ],
}


@pytest.mark.parametrize("frames", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_no_node_would_send_is_malformed(frames: list[relay_pb2.LinkFrame]) -> None:
    with pytest.raises(MalformedBatchError):
        Decoder().decode(parse_batch(relay_pb2.LinkBatch(frames=frames).SerializeToString()))


def test_text_that_is_not_utf_8_is_malformed() -> None:
    frame = relay_pb2.LinkFrame(ask_head=relay_pb2.AskHead(chat_id="ab"))
    data = relay_pb2.LinkBatch(frames=[frame]).SerializeToString().replace(b"ab", b"\xff\xfe")
    with pytest.raises(MalformedBatchError):
        parse_batch(data)
