"""The cluster as its keys in etcd say, and how a node and a shard are written in them."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, Final

import structlog

from chatgrpc.adapters.etcd.wire_pb2 import Event, KeyValue
from chatgrpc.core.ids import SHARD_COUNT
from chatgrpc.core.tending import ShardOwner
from chatgrpc.ports.cluster import ClusterView, NodeInfo

_NODES: Final = b"nodes/"
_SHARDS: Final = b"shards/"
_EPOCH_BASE: Final = b"epoch_base"
_KEYSPACE: Final = b"keyspace"
_NODE_FIELDS: Final = {field.name: field.type for field in fields(NodeInfo)}

_log = structlog.get_logger(__name__)


class KeySpace:
    """Keys below the prefix of one cluster."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.end = self.prefix[:-1] + bytes([self.prefix[-1] + 1])
        """The first key past them."""

    def node_key(self, node_id: str) -> bytes:
        """Where a node says what it is."""
        return self.prefix + _NODES + node_id.encode()

    def shard_key(self, shard: int) -> bytes:
        """Where the owner of a shard stands."""
        return self.prefix + _SHARDS + str(shard).encode()

    @property
    def base_key(self) -> bytes:
        """What epochs are counted from."""
        return self.prefix + _EPOCH_BASE

    @property
    def keyspace_key(self) -> bytes:
        """Which keyspace the nodes of this etcd use. No view reads it, nor do nodes of the release before."""
        return self.prefix + _KEYSPACE


class LiveView:
    """What one has heard so far, in the order in which it happened."""

    def __init__(self, keys: KeySpace) -> None:
        self._prefix = keys.prefix
        self._nodes: dict[str, NodeInfo] = {}
        self._revisions: dict[int, tuple[str, int]] = {}  # by shard: its owner's node id, and since which revision
        self._owners: dict[int, ShardOwner] = {}  # the same, as others see it: made anew only where something changed
        self._epoch_base = 0

    def reset(self, kvs: Iterable[KeyValue]) -> None:
        """All that stands now."""
        self._nodes.clear()
        self._revisions.clear()
        self._owners.clear()
        for kv in kvs:
            self._put(kv)

    def apply(self, events: Iterable[Event]) -> None:
        """What happened since."""
        for event in events:
            if event.type == Event.TYPE_DELETE:
                self._delete(event.kv.key)
            else:
                self._put(event.kv)

    def snapshot(self) -> ClusterView:
        """A view that does not change any more."""
        return ClusterView(self._nodes.copy(), self._owners.copy())

    def _put(self, kv: KeyValue) -> None:
        """A key that is none of ours, or says what none of ours would, counts for nothing; whoever put it there is told of."""
        try:
            self._take(kv)
        except (ValueError, TypeError, RecursionError) as error:
            _log.warning("etcd_key_foreign", key=repr(kv.key), error=type(error).__name__)
            self._delete(kv.key)

    def _take(self, kv: KeyValue) -> None:
        kind, name = self._split(kv.key)
        if kind in {_NODES, _SHARDS} and not kv.lease_id:
            raise ValueError("no node that lives has written it: it would never go")
        if kind == _NODES:
            self._nodes[name] = _node(name, kv.value)
        elif kind == _SHARDS:
            shard = _shard(name)
            self._revisions[shard] = (kv.value.decode(), kv.create_revision)
            self._note_owner(shard)
        elif kind == _EPOCH_BASE:
            self._epoch_base = epoch_base(kv)
            for shard in self._revisions:
                self._note_owner(shard)

    def _delete(self, key: bytes) -> None:
        with contextlib.suppress(ValueError):
            kind, name = self._split(key)
            if kind == _NODES:
                self._nodes.pop(name, None)
            elif kind == _SHARDS:
                self._revisions.pop(_shard(name), None)
                self._owners.pop(_shard(name), None)

    def _note_owner(self, shard: int) -> None:
        node_id, revision = self._revisions[shard]
        self._owners[shard] = ShardOwner(node_id, self._epoch_base + revision)

    def _split(self, key: bytes) -> tuple[bytes, str]:
        kind, slash, name = key.removeprefix(self._prefix).partition(b"/")
        return kind + slash, name.decode()


def _shard(name: str) -> int:
    """A shard's number as we write it; another spelling of it is another's."""
    shard = int(name)
    if str(shard) != name or not 0 <= shard < SHARD_COUNT:
        raise ValueError("no shard")
    return shard


def epoch_base(kv: KeyValue) -> int:
    """What is added to a revision to make it an epoch, so that the first is the time that stands at the key."""
    return int(kv.value) - kv.create_revision


def node_value(info: NodeInfo) -> bytes:
    """What stands at a node's key."""
    return json.dumps(asdict(info), sort_keys=True).encode()


def _node(node_id: str, value: bytes) -> NodeInfo:
    """A newer node may say more than this one understands."""
    said = json.loads(value)
    if not isinstance(said, dict):
        raise TypeError("no node")
    known: dict[str, Any] = {name: what for name, what in said.items() if name in _NODE_FIELDS}
    if any(type(what) is not _NODE_FIELDS[name] for name, what in known.items()):
        raise TypeError("no node")
    info = NodeInfo(**known)
    if info.node_id != node_id:
        raise ValueError("a node's at another's key")
    return info
