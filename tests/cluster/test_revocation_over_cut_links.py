"""A device that is revoked while its node cannot be reached is cut off when it can be again."""

import asyncio
from pathlib import Path

import pytest

from chatgrpc.v1.device_service_pb2 import RevokeDeviceRequest
from tests.cluster.support_people import People, code_of
from tests.support.cluster import running_cluster
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

_CUT_S = 15.0
"""Longer than it is said in any case; less than the lease, so that no node is taken for gone."""


@pytest.mark.slow
async def test_a_device_on_the_far_side_of_a_cut_link_is_cut_off_once_the_link_is_back(
    shared_etcd: EtcdCluster, cluster_redis: RedisServer, shared_cassandra: CassandraCluster, tmp_path: Path
) -> None:
    patience = {"CHATGRPC_CLUSTER__LEASE_TTL_S": "20"}
    async with running_cluster(
        tmp_path, shared_etcd, cluster_redis, shared_cassandra, "revoking", nodes=2, environment=patience, proxied=True
    ) as cluster:
        people = People(cluster, "r")
        here, there = people.nodes
        phone = await people.online_at(here, "alice")
        for node in cluster.nodes:
            assert node.link is not None
            node.link.cut()
        async with people.caller_at(there, "alice") as caller:
            await caller.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
        await asyncio.sleep(_CUT_S)
        assert phone.is_open, "nobody can have told its node"
        for node in cluster.nodes:
            assert node.link is not None
            node.link.mend()
        assert code_of(await phone.until_ended()) == "DEVICE_REVOKED"
        await people.close()
