"""One node's place in the cluster, in etcd.

Keys, below the cluster's prefix: `nodes/<node id>` says what a node says of itself, `shards/<shard>` who owns a shard. Both
stand under the node's lease. A shard's epoch is the revision at which its key was created, which etcd never gives twice,
counted from that of the key `epoch_base`, where the time stands at which the first node joined this etcd, in milliseconds since
the Unix epoch. For an etcd that was lost and set up anew counts revisions from 1, and epochs must still be greater than all
that stand in the store. (They are, as long as an etcd makes fewer than a thousand revisions a second after that, and no clock
is set back by as long as it lived.) The key `keyspace` says which keyspace of Cassandra the nodes use, for one with another
would own shards with other logs.

Every write is conditional on a revision, for a call may be done twice, and late: a node is written over what was read, a shard
is created where there is none, and deleted only as it was created at a known revision.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import grpc
import structlog

from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError, EtcdSettings
from chatgrpc.adapters.etcd.lease import KeptLease
from chatgrpc.adapters.etcd.renewals import EtcdRenewals
from chatgrpc.adapters.etcd.view import KeySpace, LiveView, epoch_base, node_value
from chatgrpc.adapters.etcd.watch import PrefixWatch
from chatgrpc.adapters.etcd.wire_pb2 import (
    Compare,
    DeleteRangeRequest,
    Event,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from chatgrpc.core.lease import Lease
from chatgrpc.core.tending import ShardOwner
from chatgrpc.ports.cluster import ClusterUnavailableError, ClusterView, NodeInfo
from chatgrpc.ports.lease_clock import lease_clock_ms

_LEAVE_TIMEOUT_S: Final = 2.0
"""How long giving up the lease may take. It ends by itself anyway, so nobody waits for etcd to elect a leader."""

_log = structlog.get_logger(__name__)


class EtcdCluster:
    """`ports.cluster.Cluster`."""

    def __init__(self, settings: EtcdSettings) -> None:
        """Connects nothing yet."""
        self._settings = settings
        self._keys = KeySpace(settings.prefix)
        self._client = EtcdClient(settings)
        self._lease: KeptLease | None = None
        self._lost: KeptLease | None = None
        """A lease that is over for this node, and that etcd may keep for a while yet."""
        self._watch: PrefixWatch | None = None
        self._info: NodeInfo | None = None
        self._held: dict[int, int] = {}
        """Shard to the revision at which it was taken."""
        self._releasing: dict[int, int] = {}
        """Shard to the revision at which it was taken whose deletion was asked for, and may yet be done."""
        self._epoch_base = 0
        self._asked_base = 0
        """What was last said of it before joining; 0 = nothing."""

    async def join(self, info: NodeInfo, on_change: Callable[[ClusterView], None], on_lost: Callable[[], None]) -> Lease:
        """See the port."""
        assert self._lease is None, "a node joins once, and again after it left or lost its lease"

        view = LiveView(self._keys)
        joined = False

        def lost() -> None:
            self._lost = self._lease
            self._forget()
            if joined:
                on_lost()

        def reset(kvs: Iterable[KeyValue]) -> None:
            view.reset(kvs)
            on_change(view.snapshot())

        def apply(events: Iterable[Event]) -> None:
            view.apply(events)
            on_change(view.snapshot())

        watch = PrefixWatch(self._client, self._keys.prefix, reset, apply)
        try:
            self._lease = await KeptLease.grant(self._client, EtcdRenewals(self._settings), self._settings.lease_ttl_s, lost)
            # After the lease was granted, which another etcd does not know: so the base is that of the etcd that holds it.
            self._epoch_base = await self._found_or_read_base()
            if self._asked_base not in (0, self._epoch_base):
                raise EtcdError("it was set up anew just now")
            self._info, self._watch = info, watch
            await self._publish(info)
            await watch.start()
            lease, _ = self._joined()
            joined = True
            return lease.lease
        except EtcdError as error:
            raise _mapped(error) from error
        finally:
            if not joined:
                await self.leave()

    async def epoch_base(self) -> int:
        """What this etcd's epochs are counted from; the first node to ask makes it so. This node joins by no other etcd, until
        it has asked again.

        Raises:
            ClusterUnavailableError: etcd does not answer.
        """
        try:
            self._asked_base = await self._found_or_read_base()
        except EtcdError as error:
            raise _mapped(error) from error
        return self._asked_base

    async def keyspace(self) -> str:
        """Which keyspace this cluster's nodes use, as the first of them has said; empty if none has.

        Raises:
            ClusterUnavailableError: etcd does not answer.
        """
        try:
            found = (await self._client.range(self._keys.keyspace_key)).kvs
        except EtcdError as error:
            raise _mapped(error) from error
        return found[0].value.decode(errors="replace") if found else ""

    async def say_keyspace(self, identity: str) -> str:
        """Says which keyspace this cluster's nodes use, if none has said it yet; returns what stands then.

        Raises:
            ClusterUnavailableError: etcd does not answer.
        """
        try:
            await self._create(self._keys.keyspace_key, identity.encode())
        except EtcdError as error:
            raise _mapped(error) from error
        return await self.keyspace()

    @property
    def joined_base(self) -> int:
        """What the epochs are counted from under which this node takes shards; 0 before it has joined."""
        return self._epoch_base

    @property
    def deadline_s(self) -> float:
        """See the port."""
        return self._lease.lease.deadline_ms / 1_000 if self._lease is not None else 0.0

    async def update(self, info: NodeInfo) -> None:
        """See the port."""
        self._joined()
        try:
            await self._publish(info)
        except EtcdError as error:
            raise _mapped(error) from error

    async def take(self, shard: int) -> ShardOwner | None:
        """See the port."""
        lease, info = self._joined()
        key = self._keys.shard_key(shard)
        if shard in self._releasing:
            # Its deletion may come yet: it must be over before the shard can be ours again, under another epoch.
            await self.release(shard)
        put = PutRequest(key=key, value=info.node_id.encode(), lease_id=lease.lease_id)
        request = TxnRequest(
            compare=[Compare(target=Compare.TARGET_CREATE, key=key, create_revision=0)],
            success=[RequestOp(put=put)],
            failure=[RequestOp(range=RangeRequest(key=key))],
        )
        try:
            done = await self._client.transact(request)
            if not done.succeeded and await self._removed_foreign(done.responses[0].range.kvs[0]):
                done = await self._client.transact(request)
        except EtcdError as error:
            self._note(lease, error)
            raise _mapped(error) from error
        if done.succeeded:
            revision = done.header.revision
        else:
            (found,) = done.responses[0].range.kvs
            if found.lease_id != lease.lease_id:
                return None
            revision = found.create_revision
        self._held[shard] = revision
        return ShardOwner(info.node_id, self._epoch_base + revision)

    async def _removed_foreign(self, found: KeyValue) -> bool:
        """Removes a shard's key that no node has ever written, since it was made without a lease; it would stand for ever.

        One that was written over is left alone: whoever made it may hold the shard.
        """
        if found.lease_id or found.create_revision != found.mod_revision:
            return False
        as_found = Compare(target=Compare.TARGET_MOD, key=found.key, mod_revision=found.mod_revision)
        delete = RequestOp(delete_range=DeleteRangeRequest(key=found.key))
        return (await self._client.transact(TxnRequest(compare=[as_found], success=[delete]))).succeeded

    async def release(self, shard: int) -> None:
        """See the port."""
        lease, _ = self._joined()
        key = self._keys.shard_key(shard)
        try:
            if shard in self._held:
                self._releasing[shard] = self._held.pop(shard)
            elif shard not in self._releasing:
                # Taken by a call that was given up, if it is ours at all.
                found = (await self._client.range(key)).kvs
                if not found or found[0].lease_id != lease.lease_id:
                    return
                self._releasing[shard] = found[0].create_revision
            as_created = Compare(target=Compare.TARGET_CREATE, key=key, create_revision=self._releasing[shard])
            delete = RequestOp(delete_range=DeleteRangeRequest(key=key))
            await self._client.transact(TxnRequest(compare=[as_created], success=[delete]))
        except EtcdError as error:
            self._note(lease, error)
            raise _mapped(error) from error
        self._releasing.pop(shard, None)

    async def leave(self) -> None:
        """See the port; without etcd, the others learn it when the lease's time to live is over."""
        lease = self._lost = self._lease or self._lost  # whoever is cancelled in here, and leaves again, gives it up then
        self._forget()
        if lease is not None:
            try:
                async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                    await lease.end()
            except (EtcdError, TimeoutError) as error:
                _log.warning("left_without_etcd", error=str(error) or "etcd does not answer")
            self._lost = None

    async def close(self) -> None:
        """Leaves, and closes the connections."""
        await self.leave()
        await self._client.close()

    def _forget(self) -> None:
        self._lease = None
        if self._watch is not None:
            self._watch.stop()
        self._held.clear()
        self._releasing.clear()

    def _joined(self) -> tuple[KeptLease, NodeInfo]:
        if self._lease is not None and not self._lease.lease.holds(lease_clock_ms()):
            self._lease.lose()
        if self._lease is None or self._info is None:
            raise ClusterUnavailableError("the node has not joined, or has lost its lease")
        return self._lease, self._info

    async def _found_or_read_base(self) -> int:
        """What epochs are counted from; whoever joins first says it, for good."""
        key = self._keys.base_key
        await self._create(key, str(time.time_ns() // 1_000_000).encode())
        (found,) = (await self._client.range(key)).kvs
        try:
            return epoch_base(found)
        except ValueError:
            raise EtcdError(f"the key {key.decode()} holds no number: is the prefix another program's too?") from None

    async def _create(self, key: bytes, value: bytes) -> None:
        """Makes a key that stays, where there is none."""
        request = TxnRequest(
            compare=[Compare(target=Compare.TARGET_CREATE, key=key, create_revision=0)],
            success=[RequestOp(put=PutRequest(key=key, value=value))],
        )
        await self._client.transact(request)

    async def _publish(self, info: NodeInfo) -> None:
        """Writes what the node says of itself over what stands there: read again after each try, since one may be done late."""
        lease, _ = self._joined()
        key = self._keys.node_key(info.node_id)
        value = node_value(info)
        expected = 0
        while True:
            put = PutRequest(key=key, value=value, lease_id=lease.lease_id)
            request = TxnRequest(
                compare=[Compare(target=Compare.TARGET_MOD, key=key, mod_revision=expected)],
                success=[RequestOp(put=put)],
                failure=[RequestOp(range=RangeRequest(key=key))],
            )
            try:
                done = await self._client.transact(request)
            except EtcdError as error:
                self._note(lease, error)
                raise
            if done.succeeded:
                break
            found = done.responses[0].range.kvs
            expected = found[0].mod_revision if found else 0
            if found and found[0].value == value and found[0].lease_id == lease.lease_id:
                break
        self._info = info

    def _note(self, lease: KeptLease, error: EtcdError) -> None:
        """A write under a lease that etcd does not know says that the lease has ended."""
        if error.code is grpc.StatusCode.NOT_FOUND:
            lease.lose()


def _mapped(error: EtcdError) -> ClusterUnavailableError:
    return ClusterUnavailableError(str(error))
