"""What stands in etcd and is not ours counts for nothing, and costs nothing that is."""

import json

import pytest

from chatgrpc.adapters.etcd.view import KeySpace, LiveView, node_value
from chatgrpc.adapters.etcd.wire_pb2 import Event, KeyValue
from chatgrpc.core.tending import ShardOwner
from chatgrpc.ports.cluster import NodeInfo

INFO = NodeInfo("one", "a:1", "b:2")
OURS = [
    KeyValue(key=b"p/epoch_base", value=b"1000", create_revision=10),
    KeyValue(key=b"p/nodes/one", value=node_value(INFO), create_revision=11, lease_id=5),
    KeyValue(key=b"p/shards/7", value=b"one", create_revision=12, lease_id=5),
]
FOREIGN = [
    (b"p/nodes/two", b"garbage"),
    (b"p/nodes/two", b""),
    (b"p/nodes/two", b"[1, 2]"),
    (b"p/nodes/two", b"[" * 100_000),
    (b"p/nodes/two", b"{}"),
    (b"p/nodes/two", node_value(INFO)),
    (b"p/nodes/two", json.dumps({"node_id": "two", "public_address": 5, "relay_address": None}).encode()),
    (b"p/nodes/\xff", b"\xff"),
    (b"p/shards/abc", b"one"),
    (b"p/shards/", b"one"),
    (b"p/shards/-1", b"one"),
    (b"p/shards/1024", b"one"),
    (b"p/shards/007", b"one"),
    (b"p/shards/8", b"\xff\xfe"),
    (b"p/epoch_base", b"yesterday"),
    (b"p/", b""),
    (b"p/something/else", b"x"),
]


def _is_ours(view: LiveView) -> bool:
    seen = view.snapshot()
    return (dict(seen.nodes), dict(seen.owners)) == ({"one": INFO}, {7: ShardOwner("one", 1002)})


@pytest.mark.parametrize(("key", "value"), FOREIGN)
def test_a_key_that_is_not_ours_counts_for_nothing_however_it_is_met(key: bytes, value: bytes) -> None:
    foreign = KeyValue(key=key, value=value, create_revision=20, lease_id=6)
    view = LiveView(KeySpace("p/"))
    view.reset([*OURS, foreign] if key != b"p/epoch_base" else OURS)
    assert _is_ours(view)
    view.apply([Event(kv=foreign)])
    assert _is_ours(view)
    if key != b"p/epoch_base":
        view.apply([Event(type=Event.TYPE_DELETE, kv=KeyValue(key=key))])
        assert _is_ours(view)


def test_a_node_of_which_garbage_is_said_is_not_there_any_more() -> None:
    view = LiveView(KeySpace("p/"))
    view.reset(OURS)
    view.apply([Event(kv=KeyValue(key=b"p/nodes/one", value=b"garbage", create_revision=11))])
    assert dict(view.snapshot().nodes) == {}


@pytest.mark.parametrize(
    ("key", "value"), [(b"p/nodes/two", node_value(NodeInfo("two", "a:3", "b:4"))), (b"p/shards/8", b"one")]
)
def test_what_no_lease_ends_was_written_by_no_node(key: bytes, value: bytes) -> None:
    """A node of which this is all that is left would get its share of the shards, for good, and take none of them."""
    view = LiveView(KeySpace("p/"))
    view.reset([*OURS, KeyValue(key=key, value=value, create_revision=20)])
    assert _is_ours(view)
    view.apply([Event(kv=KeyValue(key=key, value=value, create_revision=20, lease_id=6))])
    assert not _is_ours(view)
