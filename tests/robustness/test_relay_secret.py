"""Nodes without TLS: who does not know the cluster's secret is not spoken to, whatever node it says it is."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from chatgrpc.cluster.access import RELAY_SECRET_FILE, relay_secret
from chatgrpc.config import ClusterSettings, Settings
from chatgrpc.core.links import Load
from chatgrpc.internal.v1 import relay_pb2
from chatgrpc.ports.cluster import NodeInfo
from chatgrpc.relay import RelayOptions, describe_node
from chatgrpc.relay.link import LinkEndedError, Stream
from chatgrpc.relay.proof import CHALLENGE_BYTES, Proof
from chatgrpc.relay.transport import connect, open_link
from chatgrpc.start_error import StartError
from tests.robustness.support_relay import LinkedNode, event, linked, started, until

SECRET = b"known to all nodes of the cluster"
OTHER = b"known to nodes of another cluster"


def options(node_id: str, secret: bytes | None = SECRET, *, lenient: bool = False) -> RelayOptions:
    return RelayOptions(node_id, secret=secret, accepts_unproven=lenient)


@contextlib.asynccontextmanager
async def thief_at(node: LinkedNode) -> AsyncIterator[Stream]:
    """A stream to the node, of a process that may be anybody's."""
    channel = connect(node.info.relay_address, None)
    try:
        yield Stream(open_link(channel))
    finally:
        await channel.close()


async def refused(stream: Stream) -> str:
    """Why the node ended the stream."""
    with pytest.raises(LinkEndedError) as ended:
        await anything_but_an_end(stream)
    assert isinstance(ended.value.__cause__, grpc.aio.AioRpcError)
    assert ended.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(ended.value)


async def anything_but_an_end(stream: Stream) -> None:
    while await stream.read() is not None:
        pass


async def test_nodes_that_know_the_secret_are_linked() -> None:
    async with linked(options("a"), options("b")) as (a, b):
        a.relay.send("b", event(1))
        b.relay.send("a", event(2))
        await until(lambda: b.seqs_from("a") == [1] and a.seqs_from("b") == [2])


@pytest.mark.parametrize("secret", [None, OTHER], ids=["no secret", "another secret"])
@pytest.mark.parametrize("stranger_id", ["a", "c"], ids=["that dials", "that is dialled"])
async def test_a_node_without_the_secret_is_not_linked_with(secret: bytes | None, stranger_id: str) -> None:
    async with started(options(stranger_id, secret), options("b"), options("d")) as (stranger, node, neighbour):
        with capture_logs() as lines:
            stranger.see(node.info)
            node.see(stranger.info, neighbour.info)
            neighbour.see(node.info)
            await until(lambda: any(line["event"] in {"relay_dial_failed", "relay_refused"} for line in lines))
            await until(lambda: node.relay.linked() == {"d"})
        assert not node.changes[stranger_id]
        assert not stranger.received


async def test_who_says_hello_in_the_name_of_a_live_node_does_not_take_its_link() -> None:
    async with linked(options("a"), options("b")) as (a, b), thief_at(b) as thief:
        await thief.say_hello("a", "b")
        await thief.hear_hello("a")
        await thief.say_hello("a", "b")
        assert "relay_secret" in await refused(thief)
        assert b.changes["a"] == [True]
        a.relay.send("b", event(1))
        await until(lambda: b.seqs_from("a") == [1])


async def heard_from(stream: Stream, challenge: bytes) -> relay_pb2.Hello:
    await stream.say_hello("bad", "node", challenge)
    assert await stream.hear_hello("bad") == "node"
    return stream.heard


@pytest.mark.parametrize(
    "answer",
    [
        lambda heard, proof: b"",
        lambda heard, proof: bytes(32),
        lambda heard, proof: heard.proof,  # what the node itself showed
        lambda heard, proof: heard.challenge,
        lambda heard, proof: proof[:-1],
    ],
    ids=["none", "zeros", "the node's own", "its challenge", "cut short"],
)
async def test_only_the_right_answer_counts(answer: Any) -> None:
    async with started(options("node")) as (node,):
        node.see(NodeInfo("bad", "", "127.0.0.1:1"))
        right = Proof(SECRET, "bad", "node", is_dialler=True)
        async with thief_at(node) as thief:
            heard = await heard_from(thief, right.challenge)
            await thief.say_hello("bad", "node", right.challenge, answer(heard, right.challenged(heard)))
            assert "another cluster.relay_secret" in await refused(thief)
        assert not node.changes["bad"]


async def test_an_answer_that_was_overheard_is_of_no_use_again() -> None:
    async with started(options("node")) as (node,):
        node.see(NodeInfo("bad", "", "127.0.0.1:1"))
        right = Proof(SECRET, "bad", "node", is_dialler=True)
        async with thief_at(node) as first:
            overheard = right.challenged(await heard_from(first, right.challenge))
            right.check(first.heard)
            await first.say_hello("bad", "node", right.challenge, overheard)
            await until(lambda: node.changes["bad"] == [True])
        await until(lambda: node.changes["bad"] == [True, False])
        async with thief_at(node) as second:
            await heard_from(second, right.challenge)
            await second.say_hello("bad", "node", right.challenge, overheard)
            await refused(second)
        assert node.changes["bad"] == [True, False]


async def test_a_challenge_that_is_none_cannot_be_answered() -> None:
    async with started(options("node")) as (node,):
        node.see(NodeInfo("bad", "", "127.0.0.1:1"))
        for challenge in (b"", b"x", bytes(CHALLENGE_BYTES + 1)):
            async with thief_at(node) as thief:
                heard = await heard_from(thief, challenge)
                await thief.say_hello("bad", "node", challenge, heard.proof or b"x")
                await refused(thief)
        assert not node.changes["bad"]


async def test_nodes_of_before_the_secret_are_linked_with_while_they_are_replaced() -> None:
    async with linked(options("a", None), options("b", lenient=True)) as (before, node):
        before.relay.send("b", Load(1))
        await until(lambda: node.received["a"] == [Load(1)])
    async with linked(options("a", lenient=True), options("b", None)) as (node, before):
        before.relay.send("a", Load(1))
        await until(lambda: node.received["b"] == [Load(1)])
    async with started(options("a", OTHER), options("b", lenient=True)) as (stranger, node), thief_at(node) as thief:
        node.see(stranger.info)
        await thief.say_hello("a", "b", bytes(CHALLENGE_BYTES))
        await thief.hear_hello("a")
        await thief.say_hello("a", "b", bytes(CHALLENGE_BYTES), bytes(32))
        assert "another cluster.relay_secret" in await refused(thief)


def settings_in(folder: Path, **cluster: Any) -> Settings:
    return Settings(data_dir=folder / "data", cluster=ClusterSettings(etcd="127.0.0.1:1", **cluster))


def test_nodes_of_one_folder_share_a_secret_that_nobody_else_can_read(tmp_path: Path) -> None:
    secret = relay_secret(settings_in(tmp_path))
    assert secret is not None
    assert len(secret) == 64
    assert relay_secret(settings_in(tmp_path)) == secret
    file = tmp_path / "data" / RELAY_SECRET_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [RELAY_SECRET_FILE]
    os.chmod(file, 0o640)
    with pytest.raises(StartError, match="chmod 600"):
        relay_secret(settings_in(tmp_path))
    os.chmod(file, 0o600)
    file.write_bytes(b"")
    with pytest.raises(StartError, match="holds no secret"):
        relay_secret(settings_in(tmp_path))


def test_a_secret_of_the_settings_wins_and_with_tls_there_is_none(tmp_path: Path) -> None:
    assert relay_secret(settings_in(tmp_path, relay_secret=SecretStr("sixteen letters."))) == b"sixteen letters."
    tls = {"tls_ca_file": Path("c"), "tls_cert_file": Path("c"), "tls_key_file": Path("k")}
    assert relay_secret(settings_in(tmp_path, **tls)) is None
    assert not (tmp_path / "data").exists()


def test_no_secret_is_shown() -> None:
    assert "known" not in repr(options("a"))
    assert "sixteen" not in repr(ClusterSettings(etcd="127.0.0.1:1", relay_secret=SecretStr("sixteen letters.")))


@pytest.mark.parametrize(("shown", "named"), [(SECRET, ["g.sick"]), (b"another", []), (None, [])])
async def test_a_node_names_damaged_chats_to_who_knows_the_secret(shown: bytes | None, named: list[str]) -> None:
    async with started(options("a")) as (a,):
        described = await describe_node(a.info.relay_address, None, timeout_s=5, secret=shown)
        assert [chat.chat_id for chat in described.damaged_chats] == named
        assert (described.node_id, described.damaged_chat_count) == ("a", 1)
