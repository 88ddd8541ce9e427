"""What is nested too deep is looked for once on a write's way, and nothing is stored that nobody has looked at."""

import pytest

from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.ids import SHARD_COUNT, shard_of
from chatgrpc.core.lanes import EdgeLanes, Forward, Lane
from chatgrpc.core.limits import Limits
from chatgrpc.core.refusal import RefusedError
from chatgrpc.core.shape import check_shape
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.write import Write
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.relay.codec import Decoder, Encoder, parse_batch
from chatgrpc.v1 import chat_pb2, content_pb2

GROUP = bytes((3 << 3 | 3, 3 << 3 | 4))


def write(*, with_group: bool = False) -> Write:
    content = content_pb2.Content.FromString(GROUP if with_group else b"")
    content.text.text = "hi"
    return Write("g.1", "alice", content, bytes(16), 0)


def desk() -> EdgeDesk:
    desk = EdgeDesk("here", EdgeLanes(250, 10_000), shard_of, 250, 100)
    desk.see({shard: ShardOwner("there", 1) for shard in range(SHARD_COUNT)}, 0)
    return desk


def through_a_link(sent: Write, *, sender_checks_unknown: bool) -> Write:
    batch = relay_pb2.LinkBatch()
    Encoder().add(batch, Forward(Lane("here", "session", sent.chat_id), 1, 1, sent))
    (message,) = Decoder(sender_checks_unknown=sender_checks_unknown).decode(parse_batch(batch.SerializeToString()))
    assert isinstance(message, Forward)
    return message.write


def test_an_edge_refuses_what_holds_a_group_and_marks_what_does_not() -> None:
    edge, fine, deep = desk(), write(), write(with_group=True)
    edge.submit("session", "fine", fine, 0)
    edge.submit("session", "deep", deep, 0)
    output = edge.step(0)
    ((ticket, _, outcome),) = output.answers
    assert ticket == "deep"
    assert isinstance(outcome, chat_pb2.Error)
    ((_, forward),) = output.messages
    assert isinstance(forward, Forward)
    assert (forward.write.unknown_checked, deep.unknown_checked) == (True, False)


@pytest.mark.parametrize("sender_checks_unknown", [True, False])
def test_what_a_node_of_the_version_before_forwards_is_looked_into(sender_checks_unknown: bool) -> None:
    checked = write()
    checked.unknown_checked = True
    arrived = through_a_link(checked, sender_checks_unknown=sender_checks_unknown)
    assert arrived.unknown_checked is sender_checks_unknown


def test_an_owner_refuses_what_nobody_has_looked_into() -> None:
    arrived = through_a_link(write(with_group=True), sender_checks_unknown=False)
    with pytest.raises(RefusedError, match="group"):
        check_shape(arrived.content, Limits(), unknown_checked=arrived.unknown_checked)
