"""A cluster is brought from the previous release to this one node by node: both work side by side, and nothing is lost."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.cluster.support_people import People, until
from tests.support.cluster import ClusterNode, RunningCluster
from tests.support.conversation import Conversation
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600), pytest.mark.slow]

PREVIOUS = "d990188"
"""The commit of the release before this one."""
_SOURCES = ("src", "clients/python/src")
"""Folders of it: the commands of the client come into its `chatgrpc` too."""
REPOSITORY = Path(__file__).parents[2]
PATIENCE = {"CHATGRPC_CLUSTER__LEASE_TTL_S": "20", "CHATGRPC_LOG__FORMAT": "json"}
OF_TODAY = {"CHATGRPC_CLUSTER__RELAY_ACCEPTS_UNPROVEN": "true"}
"""What docs/operations.md says to set while nodes of the previous release are replaced, where links have no TLS."""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources of the previous release."""
    archive = subprocess.run(["git", "archive", PREVIOUS, *_SOURCES], cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"commit {PREVIOUS} is not in this clone")
    folder = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "--extract", "--directory", folder], input=archive.stdout, check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    shared_etcd: EtcdCluster, shared_cassandra: CassandraCluster, previous: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningCluster]:
    """Two nodes of the previous release."""
    redis = RedisServer("redis-previous")
    folder = tmp_path_factory.mktemp("previous-cluster")
    cluster = RunningCluster(folder, shared_etcd, redis, shared_cassandra, "previous", PATIENCE, proxied=False)
    try:
        redis.start()
        program = (sys.executable, "-c", "from chatgrpc.cli.main import main; main()")
        folders = [str(previous / sources) for sources in _SOURCES]
        search = os.pathsep.join(filter(None, (*folders, os.environ.get("PYTHONPATH"))))
        for _ in range(2):
            node = await cluster.prepare(program=program, environment={"PYTHONPATH": search})
            await node.start()  # the first makes the keyspace
        await cluster.settled()
        yield cluster
    finally:
        await cluster.close()
        redis.close()


async def test_nodes_of_the_previous_release_are_replaced_one_by_one_and_nothing_is_lost(cluster: RunningCluster) -> None:
    people = People(cluster, "v")
    old = list(cluster.nodes)
    conversation = Conversation(people, pairs=2, seed=1)
    async with conversation.going_on():
        await goes_on(conversation)
        new = await cluster.prepare(environment=OF_TODAY)
        await new.start()
        await cluster.settled()
        await goes_on(conversation)
        await chat_both_ways(people, old[0], new)
        for node in old:
            assert await cluster.remove(node) == 0
            replacement = await cluster.prepare(node.port, environment=OF_TODAY)
            await replacement.start()
            await cluster.settled()
            await goes_on(conversation)
    await conversation.check()
    await people.close()
    for node in (*cluster.nodes, *cluster.removed):
        assert "Traceback" not in node.process.log_path.read_text(), node.name


async def goes_on(conversation: Conversation) -> None:
    """Messages are acknowledged from now on."""
    wanted = conversation.acknowledged + 40

    async def acknowledged() -> bool:
        return conversation.acknowledged >= wanted

    await until(acknowledged)


async def chat_both_ways(people: People, old: ClusterNode, new: ClusterNode) -> None:
    """In chats that either of them owns."""
    for owner in (old, new):
        at_old, at_new = [await people.online_at(node, f"{name}{owner.port}") for node, name in ((old, "old"), (new, "new"))]
        chat_id = await people.group_owned_by(owner, f"old{owner.port}", f"new{owner.port}")
        for number in range(5):
            for sender, reader in ((at_old, at_new), (at_new, at_old)):
                sent = await sender.send(chat_id, f"{number}")
                await reader.until_held(chat_id, sent.seq)
