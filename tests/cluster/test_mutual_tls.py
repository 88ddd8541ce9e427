"""Nodes that show each other certificates: they chat as others do, and a stranger is told nothing (X2)."""

from pathlib import Path

import pytest

from chatgrpc.relay import NodeUnreachableError, Tls, describe_node
from tests.cluster.support_people import People
from tests.support.authority import Authority, Pair
from tests.support.cluster import running_cluster
from tests.support.services import CassandraCluster, EtcdCluster, RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="session")]


async def test_nodes_that_know_each_other_by_certificates_chat_and_a_stranger_learns_nothing(
    tmp_path: Path, shared_etcd: EtcdCluster, shared_redis: RedisServer, shared_cassandra: CassandraCluster
) -> None:
    authority = Authority("the cluster's")
    shown = authority.sign("node")
    settings = {
        f"CHATGRPC_CLUSTER__TLS_{name}_FILE": str(_written(tmp_path / f"{name}.pem", pem))
        for name, pem in (("CA", authority.ca_pem), ("CERT", shown.cert_pem), ("KEY", shown.key_pem))
    }
    async with running_cluster(
        tmp_path / "data", shared_etcd, shared_redis, shared_cassandra, "secured", nodes=2, environment=settings
    ) as cluster:
        people = People(cluster, "tls")
        alice, bob = [await people.online_at(node, name) for node, name in zip(cluster.nodes, ("alice", "bob"), strict=True)]
        for sender, receiver in ((alice, bob), (bob, alice)):
            for owner in cluster.nodes:  # so that writes, outcomes and events all cross the link
                chat_id = await people.group_owned_by(owner, "alice", "bob")
                await receiver.until_held(chat_id, 1)
                sent = await sender.send(chat_id, "hello")
                await receiver.until_held(chat_id, sent.seq)
        view = await cluster.view()
        for info in view.nodes.values():
            said = await describe_node(info.relay_address, _tls(authority, authority.sign("an operator")), timeout_s=10)
            assert [link.connected for link in said.links] == [True]
            stranger = Authority("a stranger's").sign("stranger")
            for tls in (None, _tls(authority, stranger)):
                with pytest.raises(NodeUnreachableError):
                    await describe_node(info.relay_address, tls, timeout_s=2)
        await people.close()


def _written(file: Path, pem: bytes) -> Path:
    file.write_bytes(pem)
    return file


def _tls(authority: Authority, shown: Pair) -> Tls:
    return Tls(authority.ca_pem, shown.cert_pem, shown.key_pem)
