"""Whatever another node says, as far as the codec lets it through: nothing raises, and chats that it is not about go on."""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpc.core.ids import direct_chat_id, self_chat_id
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
from chatgrpc.ports.lease_clock import now
from chatgrpc.relay.codec import Decoder, Encoder, parse_batch
from chatgrpc.v1 import chat_pb2, content_pb2
from tests.unit.cluster.small_cluster import group_creation, seqs, small_cluster, text, until

NODES = st.sampled_from(["node-1", "node-2", "gone", ""])
USERS = st.sampled_from(["alice", "bob", "", "nobody\u0000"])
CHATS = st.sampled_from([direct_chat_id("alice", "bob"), self_chat_id("alice"), "", "\u0000", *(f"p.{n}" for n in range(6))])
SESSIONS = st.sampled_from(["session", "other", ""])
NUMBERS = st.sampled_from([0, 1, 2, 3, 64, 2**31, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
CODES = st.sampled_from([0, 1, 2, 104, -1, 9_999, 2**31 - 1, -(2**31)])
KINDS = st.sampled_from([0, 1, 2, 104, 9_999, 2**31, 2**32 - 1])
HEADS = st.dictionaries(CHATS, NUMBERS, max_size=3)
MANY_USERS = st.lists(USERS, max_size=3).map(tuple)
ARMS = [field.name for field in content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields]


@st.composite
def contents(draw: st.DrawFn) -> content_pb2.Content:
    """Of any kind, mostly too empty to be right."""
    content = content_pb2.Content(reply_to_seq=draw(NUMBERS))
    arm = draw(st.sampled_from(["", "text", "chat_created", "members_added", *ARMS]))
    if arm:
        getattr(content, arm).SetInParent()
    if arm == "text":
        content.text.text = draw(USERS)
    if arm == "chat_created":
        content.chat_created.kind = content_pb2.CHAT_KIND_GROUP
        content.chat_created.members.add(user_id=draw(USERS), role=content_pb2.MEMBER_ROLE_OWNER)
    if arm == "members_added":
        content.members_added.user_ids.extend(draw(MANY_USERS))
    return content


@st.composite
def forwards(draw: st.DrawFn) -> Forward:
    lane = Lane(draw(NODES), draw(SESSIONS), draw(CHATS))
    write = Write(
        lane.chat_id,
        draw(USERS),
        draw(contents()),
        draw(st.sampled_from([b"", bytes(16), bytes(15) + b"1", bytes(99)])),
        draw(st.none() | NUMBERS),
        draw(SESSIONS),
        draw(USERS),
        draw(SESSIONS),
        answers_request=draw(st.booleans()),
    )
    return Forward(lane, draw(NUMBERS), draw(NUMBERS), write, draw(NUMBERS))


def outcomes() -> st.SearchStrategy[chat_pb2.SendResult | chat_pb2.Error]:
    errors = st.builds(chat_pb2.Error, code=CODES, retry_after_ms=st.sampled_from([0, 1, 2**31 - 1]))
    return errors | st.builds(chat_pb2.SendResult, chat_id=CHATS, seq=NUMBERS)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    forwards(),
    st.builds(Forwarded, st.builds(Lane, NODES, SESSIONS, CHATS), NUMBERS, outcomes(), NUMBERS),
    st.builds(Deliver, CHATS, NUMBERS, st.binary(max_size=9), MANY_USERS, USERS, st.booleans(), NUMBERS),
    st.builds(Heads, HEADS),
    st.builds(HeadsHeard, HEADS),
    st.builds(AskHead, CHATS, NUMBERS),
    st.builds(HeadIs, CHATS, NUMBERS, NUMBERS, st.booleans()),
    st.builds(AskMembers, CHATS, NUMBERS),
    st.builds(MembersAre, CHATS, NUMBERS, MANY_USERS),
    st.builds(RaiseMark, CHATS, USERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(ShowReceipt, CHATS, USERS, NUMBERS, NUMBERS, MANY_USERS),
    st.builds(TellTyping, CHATS, USERS, KINDS),
    st.builds(ShowTyping, CHATS, USERS, KINDS, MANY_USERS),
    st.builds(EndStream, USERS, SESSIONS, KINDS, NUMBERS),
    st.builds(EndStreamHeard, USERS, SESSIONS, KINDS),
    st.builds(Load, NUMBERS),
)


@settings(max_examples=30)
@given(st.lists(st.tuples(NODES, st.lists(MESSAGES, min_size=1, max_size=12)), min_size=1, max_size=6))
def test_whatever_a_node_says_nothing_raises_and_other_chats_go_on(said: list[tuple[str, list[Message]]]) -> None:
    asyncio.run(_say(said))


async def _say(said: Sequence[tuple[str, list[Message]]]) -> None:
    async with small_cluster(nodes=2) as cluster:
        one, two = cluster.nodes
        await cluster.connect("alice", one, two)
        sound = [cluster.chat_owned_by(node) for node in (one, two)]
        for chat_id in sound:
            assert seqs([await one.send(group_creation(chat_id, "alice", "bob"))]) == [1]
        for sender_id, messages in said:
            for node in (one, two):
                if node.node_id != sender_id:
                    node.ordering.receive(sender_id, _through_a_link(messages))
        for number in (1, 2):
            for chat_id in sound:
                sender = cluster.nodes[number - 1]
                assert seqs([await sender.send(text(chat_id, "alice", number, number))]) == [number + 1]
        for node in (one, two):
            for chat_id in sound:
                await until(lambda node=node, chat_id=chat_id: node.seqs(chat_id) == [1, 2, 3])  # type: ignore[misc]
                assert await node.head_of(chat_id) == 3
            node.ordering.pass_time(now())
            await node.ticks()
            told = [sample for metric in node.metrics.registry.collect() for sample in metric.samples]
            assert not [sample for sample in told if sample.name == "chatgrpc_defects_total" and sample.value]


def _through_a_link(messages: Sequence[Message]) -> list[Message]:
    """What comes out of it."""
    encoder, batch = Encoder(), relay_pb2.LinkBatch()
    for message in messages:
        encoder.add(batch, message)
    return Decoder().decode(parse_batch(batch.SerializeToString()))
