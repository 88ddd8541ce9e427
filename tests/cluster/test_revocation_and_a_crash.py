"""A device whose revocation only a node that died knew of is cut off all the same."""

from pathlib import Path

import pytest

from chatgrpc.v1.device_service_pb2 import RevokeDeviceRequest
from tests.cluster.support_people import People, code_of
from tests.support.cluster import running_cluster
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

_SOON_S = 60.0
"""The lease of the dead node ends within 6 s, and others look then; a busy machine takes longer. Five minutes are stated."""


@pytest.mark.slow
async def test_a_stream_ends_though_the_node_that_took_its_revocation_died_before_it_said_so(
    shared_etcd: EtcdCluster, cluster_redis: RedisServer, shared_cassandra: CassandraCluster, tmp_path: Path
) -> None:
    async with running_cluster(
        tmp_path, shared_etcd, cluster_redis, shared_cassandra, "revoking-dying", nodes=2, proxied=True
    ) as cluster:
        people = People(cluster, "r")
        here, there = people.nodes
        phone = await people.online_at(here, "alice")
        async with people.caller_at(there, "alice") as caller:
            for node in cluster.nodes:
                assert node.link is not None
                node.link.cut()  # else it may be quicker than the kill
            await caller.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
            there.kill()
        assert phone.is_open, "nobody can have told its node"
        assert code_of(await phone.until_ended(_SOON_S)) == "DEVICE_REVOKED"
        await people.close()
