"""Keyspace and etcd belong together whenever a node joins, and who was too late to see that they do not finds it soon."""

import asyncio

import pytest
from structlog.testing import capture_logs

from chatgrpc.adapters.cassandra import SchemaError
from chatgrpc.cluster.claim import Claim
from chatgrpc.config import ClusterSettings
from chatgrpc.ports.cluster import ClusterUnavailableError
from chatgrpc.ports.errors import StoreUnavailableError
from chatgrpc.start_error import StartError
from tests.unit.cluster.small_cluster import until

SETTINGS = ClusterSettings(etcd="etcd:2379", cassandra="cassandra:9042")
NEVER_S = 1e6
OLDER, NEWER = 1_000, 2_000


class MemoryKeyspace:
    """What `KeyspaceUse` promises."""

    def __init__(self, identity: str = "ours of 1") -> None:
        self.name = identity
        self.etcd_base = 0
        self.uses: dict[str, int] = {}
        self.failures: list[Exception] = []
        """What the next questions are answered with."""
        self.hangs = False

    async def identity(self) -> str:
        await self._answer()
        return self.name

    async def base(self) -> int:
        await self._answer()
        return self.etcd_base

    async def claim_base(self, etcd_base: int) -> None:
        await self._answer()
        if self.etcd_base < etcd_base and set(self.uses.values()) - {etcd_base}:
            raise SchemaError("by another etcd")
        self.etcd_base = max(self.etcd_base, etcd_base)
        if self.etcd_base != etcd_base:
            raise SchemaError(f"from {self.etcd_base}")

    async def note_use(self, node_id: str, etcd_base: int) -> None:
        await self._answer()
        self.uses[node_id] = etcd_base

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.sleep(NEVER_S)
        if self.failures:
            raise self.failures.pop(0)


class MemoryEtcd:
    """What `EtcdCluster` promises of what lasts there."""

    def __init__(self, base: int) -> None:
        self.base = self.joined_base = base
        self.said = ""
        self.is_away = self.hangs = False

    async def keyspace(self) -> str:
        await self._answer()
        return self.said

    async def say_keyspace(self, identity: str) -> str:
        await self._answer()
        self.said = self.said or identity
        return self.said

    async def epoch_base(self) -> int:
        await self._answer()
        return self.base

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.sleep(NEVER_S)
        if self.is_away:
            raise ClusterUnavailableError("it is away")


async def test_what_belongs_together_is_noted_on_both_sides() -> None:
    keyspace, etcd = MemoryKeyspace(), MemoryEtcd(OLDER)
    for node_id in ("one", "two", "one"):
        await Claim(node_id, SETTINGS, keyspace, etcd).make()
    assert (etcd.said, keyspace.etcd_base, keyspace.uses) == ("ours of 1", OLDER, {"one": OLDER, "two": OLDER})


async def test_a_node_that_was_cut_off_is_refused_when_the_keyspace_went_to_another_etcd() -> None:
    keyspace, older, newer = MemoryKeyspace(), MemoryEtcd(OLDER), MemoryEtcd(NEWER)
    one, two = Claim("one", SETTINGS, keyspace, older), Claim("two", SETTINGS, keyspace, newer)
    await one.make()
    with pytest.raises(StartError, match=r"Cassandra \(cassandra:9042\): by another etcd"):
        await two.make()
    keyspace.uses.clear()  # as they go by themselves
    await two.make()
    with pytest.raises(StartError, match="from 2000"):
        await one.make()
    assert keyspace.uses == {"two": NEWER}, "who may not join does not say that it uses the keyspace"


async def test_an_etcd_that_was_set_up_anew_under_a_running_node_learns_again_which_keyspace_is_used() -> None:
    keyspace, etcd = MemoryKeyspace(), MemoryEtcd(OLDER)
    claim = Claim("one", SETTINGS, keyspace, etcd)
    await claim.make()
    etcd.base, etcd.said = NEWER, ""
    keyspace.uses.clear()
    await claim.make()
    assert (etcd.said, keyspace.etcd_base) == ("ours of 1", NEWER)
    another = MemoryKeyspace("theirs of 2")
    with pytest.raises(StartError, match="use the keyspace ours of 1, and this node would use theirs of 2"):
        await Claim("two", SETTINGS, another, etcd).make()
    assert another.etcd_base == 0, "nothing is noted in a keyspace that is not this etcd's"


async def test_who_is_late_is_named() -> None:
    keyspace, etcd = MemoryKeyspace(), MemoryEtcd(OLDER)
    claim = Claim("one", SETTINGS, keyspace, etcd, answer_timeout_s=0.01)
    keyspace.hangs = True
    with pytest.raises(StartError, match=r"^Cassandra \(cassandra:9042\): it does not answer"):
        await claim.make()
    keyspace.hangs, etcd.hangs = False, True
    with pytest.raises(StartError, match=r"^Cannot join the cluster by etcd \(etcd:2379\): it does not answer"):
        await claim.make()
    etcd.hangs, etcd.is_away = False, True
    with pytest.raises(StartError, match=r"^Cannot join the cluster by etcd \(etcd:2379\): it is away"):
        await claim.make()
    etcd.is_away = False
    keyspace.failures = [StoreUnavailableError("too few replicas")] * 1_000
    with pytest.raises(StartError, match=r"^Cassandra \(cassandra:9042\): too few replicas"):
        await claim.make()


async def test_what_cassandra_cannot_do_just_now_is_tried_again() -> None:
    keyspace, etcd = MemoryKeyspace(), MemoryEtcd(OLDER)
    keyspace.failures = [StoreUnavailableError("too busy")]
    await Claim("one", SETTINGS, keyspace, etcd).make()
    assert keyspace.uses == {"one": OLDER}


async def test_a_keyspace_that_nobody_owns_any_more_is_told_and_the_node_goes_on() -> None:
    """As when somebody emptied it, or made it anew, under nodes that run."""
    keyspace, etcd = MemoryKeyspace(), MemoryEtcd(OLDER)
    claim = Claim("one", SETTINGS, keyspace, etcd, interval_s=0.001)
    await claim.make()
    keyspace.uses.clear()
    keyspace.failures = [SchemaError("its owner is not there")]
    let_go = asyncio.Event()
    with capture_logs() as lines:
        keeping = asyncio.create_task(claim.keep(lambda: True, let_go.set))
        try:
            await until(lambda: "one" in keyspace.uses)
        finally:
            keeping.cancel()
    assert [(line["event"], line["error"]) for line in lines] == [("keyspace_unusable", "its owner is not there")]
    assert not let_go.is_set()


async def test_a_node_lets_go_when_it_finds_that_the_keyspace_went_to_another_etcd() -> None:
    """Two that claim it in the same moment do not see each other: each had looked before the other said anything."""
    keyspace, older = MemoryKeyspace(), MemoryEtcd(OLDER)
    claim = Claim("one", SETTINGS, keyspace, older, interval_s=0.001)
    await claim.make()
    joined, let_go = True, asyncio.Event()
    asked = 0

    def is_joined() -> bool:
        nonlocal asked
        asked += 1
        return joined

    keeping = asyncio.create_task(claim.keep(is_joined, let_go.set))
    try:
        for node_id in ("two", "three"):  # it says so again and again, and nothing is wrong
            keyspace.uses = {node_id: OLDER}
            await until(lambda: "one" in keyspace.uses)
        assert not let_go.is_set()
        keyspace.etcd_base = NEWER
        await let_go.wait()
        joined = False
        keyspace.uses.clear()
        let_go.clear()
        before = asked
        await until(lambda: asked > before + 2)
        assert not let_go.is_set(), "without a lease it has nothing to let go"
        assert keyspace.uses == {}
    finally:
        keeping.cancel()
