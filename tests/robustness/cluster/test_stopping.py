"""A node that is told to stop does, in bounded time, even if all that it could wait for stands still."""

import asyncio
import time
from pathlib import Path

import pytest

from chatgrpc.closing import UNFINISHED_STATUS
from tests.robustness.cluster.support_faults import RECOVERY_MAX_S
from tests.support.cluster import ClusterNode, RunningCluster, running_cluster
from tests.support.load import Load
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.process import ServiceProcess
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

DRAIN_TIMEOUT_S = 5
"""With ten seconds to spare it is over long before the patience of `ServiceProcess.stop`, which then kills."""


def everything_but(node: ClusterNode, cluster: RunningCluster) -> list[ServiceProcess]:
    """All processes that the node talks to, besides devices."""
    members = [member.process for member in cluster.etcd.members]
    replicas = [replica.process for replica in cluster.cassandra.nodes]
    others = [other.process for other in cluster.nodes if other is not node]
    return [cluster.redis.process, *members, *replicas, *others]


@pytest.mark.long
async def test_a_node_stops_in_time_while_every_service_and_every_other_node_stands_still(
    etcd_of_three: EtcdCluster, mortal_redis: RedisServer, cassandra_of_three: CassandraCluster, tmp_path: Path
) -> None:
    environment = {"CHATGRPC_LOG__FORMAT": "json", "CHATGRPC_SERVER__DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S)}
    async with running_cluster(
        tmp_path / "data", etcd_of_three, mortal_redis, cassandra_of_three, "stopping", nodes=2, environment=environment
    ) as cluster:
        load = Load(lambda: cluster.addresses, cluster.token, "stopping", seed=1)
        async with load.going_on():
            # With all under way; and when leases, connections and whatever else wears out is gone.
            for node, stood_still_s in zip(cluster.nodes, (0.0, 12.0), strict=True):
                await load.recovered(time.monotonic(), RECOVERY_MAX_S)
                frozen = everything_but(node, cluster)
                for process in frozen:
                    process.pause()
                await asyncio.sleep(stood_still_s)
                status = await node.stop()
                for process in frozen:
                    process.resume()
                log = node.process.log_path.read_text()
                assert status in {0, UNFINISHED_STATUS}, log[-3000:]
                assert ("left_unfinished" in log) == (status == UNFINISHED_STATUS)
                await cluster.mend()
        assert not await load.problems()
