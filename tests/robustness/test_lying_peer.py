"""A peer that knows the cluster's secret and says what none of ours would: no node ends over it, and its users go on."""

import asyncio
import itertools
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from chatgrpc.adapters.etcd import EtcdCluster as Coordinator
from chatgrpc.adapters.etcd import EtcdSettings
from chatgrpc.cluster.access import RELAY_SECRET_FILE
from chatgrpc.core.lanes import Forward, Forwarded, Lane
from chatgrpc.core.links import (
    AskHead,
    AskMembers,
    Deliver,
    EndStream,
    EndStreamHeard,
    HeadIs,
    Heads,
    HeadsHeard,
    Load,
    MembersAre,
    Message,
    RaiseMark,
    ShowReceipt,
    ShowTyping,
    TellTyping,
)
from chatgrpc.core.write import Write
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.metrics import Metrics
from chatgrpc.ports.cluster import ClusterView, NodeInfo
from chatgrpc.relay import Relay, RelayOptions
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.cluster.support_people import People
from tests.support.cluster import running_cluster
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

_LAST = 4_711
"""Of the questions that are asked in earnest."""
NUMBERS = (0, 1, 2**63 - 1, 2**64 - 1)
PATIENCE = {"CHATGRPC_CLUSTER__LEASE_TTL_S": "20", "CHATGRPC_LOG__FORMAT": "console"}
HUGE = "x" * 70_000
"""More than a key of Cassandra may have."""


def said(node_id: str, users: tuple[str, ...], chats: tuple[str, ...]) -> Iterator[Message]:
    """Each kind of message, with values that are wrong in one way or other."""
    for user, device in itertools.product((*users, "", "no\x00body", HUGE), ("phone", HUGE)):
        for code in (*session_pb2.DisconnectCode.values(), 7, 9999, 2**32 - 1) if HUGE not in {user, device} else (301, 302):
            if user not in users or device != "phone" or (user == users[0] and code in (0, 7, 9999)):
                yield EndStream(user, device, code, 2**64 - 1)
                yield EndStreamHeard(user, device, code)
    for chat, number in itertools.product((*chats, "\x00", "x" * 1_000), NUMBERS):
        for user in (users[0], "", "x" * 1_000):
            yield Deliver(chat, number, b"", (user,), user, True, number)
            yield ShowReceipt(chat, user, number, number, users)
            yield ShowTyping(chat, user, number % 2**32, users)
            yield RaiseMark(chat, user, number, 0, 2**64 - 1, number)
            yield TellTyping(chat, user, number % 2**32)
            yield MembersAre(chat, number, (user, *users))
        yield Heads({chat: number})
        yield HeadsHeard({chat: number})
        yield AskHead(chat, number)
        yield HeadIs(chat, number, number, damaged=bool(number % 2))
        yield AskMembers(chat, number)
        yield Load(number)
        lane = Lane(node_id, "session", chat)
        yield Forwarded(lane, number, chat_pb2.Error(code=cast("chat_pb2.ErrorCode.ValueType", number % 2**31)))
        yield Forwarded(lane, number, chat_pb2.SendResult(chat_id=chat, seq=number))
        for field in content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields:
            content = content_pb2.Content(reply_to_seq=number)
            getattr(content, field.name).SetInParent()
            for sender in (users[0], "") if number in {1, 2**64 - 1} and chat in {chats[0], chats[1]} else ():
                write = Write(chat, sender, content, secrets.token_bytes(number % 17), number or None, "", users[1], "", False)
                yield Forward(Lane(node_id, secrets.token_hex(4), chat), number or 1, 1, write)
    yield Heads({f"g.{number}": number for number in range(10_000)})


async def test_a_peer_that_lies_ends_no_node(
    shared_etcd: EtcdCluster, cluster_redis: RedisServer, shared_cassandra: CassandraCluster, tmp_path: Path
) -> None:
    async with running_cluster(
        tmp_path, shared_etcd, cluster_redis, shared_cassandra, "lied-to", nodes=2, environment=PATIENCE
    ) as cluster:
        people = People(cluster, "p")
        alice, bob = [await people.online_at(node, name) for node, name in zip(people.nodes, ("alice", "bob"), strict=True)]
        chat_id = (await alice.send(bob.user_id, "hello")).chat_id
        groups = [await people.group_owned_by(node, "alice", "bob") for node in people.nodes]
        pids = [node.process.pid for node in people.nodes]
        node_id = "0" + secrets.token_hex(8)
        options = RelayOptions(node_id, secret=(cluster.data_dir / RELAY_SECRET_FILE).read_bytes())
        answers: list[HeadIs] = []

        def receive(_: str, messages: list[Message]) -> None:
            answers.extend(message for message in messages if isinstance(message, HeadIs) and message.number == _LAST)

        relay = Relay(options, receive, lambda *_: None, relay_pb2.DescribeResponse, Metrics())
        coordinator = Coordinator(EtcdSettings(cluster.etcd.endpoints, prefix=f"{cluster.name}/", lease_ttl_s=20))
        views: list[ClusterView] = []
        port = await relay.start()
        try:
            info = NodeInfo(node_id, "127.0.0.1:1", f"127.0.0.1:{port}", draining=True)
            await coordinator.join(info, views.append, lambda: None)
            relay.see(views[-1].nodes)
            peer_ids = set(views[-1].nodes) - {node_id}
            async with asyncio.timeout(60):
                while relay.linked() != peer_ids:
                    await asyncio.sleep(0.05)
            lies = said(node_id, (alice.user_id, bob.user_id), (chat_id, *groups))
            for count, message in enumerate(lies, 1):
                for peer_id in peer_ids:
                    async with asyncio.timeout(60):
                        while not relay.send(peer_id, message):
                            await asyncio.sleep(0.05)
                if count % 100 == 0:
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(120):  # whoever answers these has read all before them; any of them may be lost
                while {answer.chat_id for answer in answers} != set(groups):
                    for peer_id, group_id in itertools.product(relay.linked(), groups):
                        relay.send(peer_id, AskHead(group_id, _LAST))
                    await asyncio.sleep(1)
            assert [node.process.pid for node in people.nodes] == pids
            for node in people.nodes:
                log = node.process.log_path.read_text()
                assert node.process.running
                assert "defect" not in log, log
        finally:
            await coordinator.close()
            await relay.stop()
        carol, dave = [await people.online_at(node, name) for node, name in zip(people.nodes, ("carol", "dave"), strict=True)]
        for one, other in ((carol, dave), (dave, carol)):
            sent = await one.send(other.user_id, "still there")
            await other.until_held(sent.chat_id, sent.seq)
        for node in people.nodes:
            again = await people.online_at(node, "alice", "tablet")
            for group in (chat_id, *groups):
                sent = await again.send(group, "and here")
                await again.until_held(group, sent.seq)
        await people.close()
