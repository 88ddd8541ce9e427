"""What the cluster does with etcd's own troubles: compaction, silence, late calls, TLS, passwords."""

import asyncio
import base64
import dataclasses
import json
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chatgrpc.adapters.etcd import EtcdCluster, EtcdSettings, client
from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError
from chatgrpc.adapters.etcd.wire_pb2 import Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest
from chatgrpc.ports.cluster import ClusterUnavailableError
from chatgrpc.ports.lease_clock import lease_clock_s
from tests.contract.cluster_nodes import Node, assert_views_are_in_order, eventually
from tests.support.certificate import write_certificate
from tests.support.link import Link, link_to
from tests.support.ports import free_port
from tests.support.services.etcd import EtcdCluster as EtcdServers

TTL_S = 3


@pytest.fixture(autouse=True)
def _short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without etcd one need not wait for as long as an election may take."""
    monkeypatch.setattr(client, "CALL_TIMEOUT_S", 2.0)


@pytest.fixture
def settings(shared_etcd: EtcdServers) -> EtcdSettings:
    return EtcdSettings(shared_etcd.endpoints, f"test-{uuid.uuid4().hex}/", TTL_S)


@pytest.fixture
async def nodes() -> AsyncIterator[AsyncExitStack]:
    """Closes what `_node` makes."""
    async with AsyncExitStack() as stack:
        yield stack


def _node(nodes: AsyncExitStack, settings: EtcdSettings, *endpoints: str) -> Node:
    cluster = EtcdCluster(dataclasses.replace(settings, endpoints=endpoints) if endpoints else settings)
    nodes.push_async_callback(cluster.close)
    return Node(cluster)


async def _one_on_a_link(settings: EtcdSettings, servers: EtcdServers, nodes: AsyncExitStack) -> tuple[Link, Node, Node]:
    """Two nodes that have joined, whose leases outlast the test, and the link between the first of them and etcd."""
    settings = dataclasses.replace(settings, lease_ttl_s=60)
    link = await nodes.enter_async_context(link_to(servers.members[0].port))
    one, two = _node(nodes, settings, link.address), _node(nodes, settings)
    await one.join()
    await two.join()
    return link, one, two


async def test_a_watch_that_was_cut_goes_on_where_it_was(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    link = await nodes.enter_async_context(link_to(shared_etcd.members[0].port))
    far, near = _node(nodes, settings, link.address), _node(nodes, settings)
    await near.join()
    await far.join()
    await near.cluster.take(1)
    await far.until(lambda: 1 in far.view.owners)
    told = len(far.views)
    link.cut()
    for shard in range(2, 12):
        await near.cluster.take(shard)
    link.mend()
    await far.until(lambda: len(far.view.owners) == 11)
    # Each change by itself, none told twice: so they came from the watch, not from reading all anew.
    sizes = [len(view.owners) for view in far.views[told:]]
    assert sizes == sorted(sizes)
    assert sizes[0] > 1
    assert far.view.owners == near.view.owners
    assert_views_are_in_order(far)


async def test_a_watch_that_was_cut_while_etcd_was_compacted_reads_all_anew(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    link = await nodes.enter_async_context(link_to(shared_etcd.members[0].port))
    far, near = _node(nodes, settings, link.address), _node(nodes, settings)
    await near.join()
    await far.join()
    gone = _node(nodes, settings)
    await gone.join()
    await near.cluster.take(1)
    await far.until(lambda: 1 in far.view.owners and gone.node_id in far.view.nodes)
    link.cut()
    # What happens now is never told as an event: only the whole says that a node and a shard are gone.
    await near.cluster.release(1)
    await gone.cluster.leave()
    owner = await near.cluster.take(2)
    assert owner is not None
    _ask(
        shared_etcd,
        "/v3/kv/compaction",
        {"revision": _revision_of(shared_etcd, f"{settings.prefix}shards/2"), "physical": True},
    )
    link.mend()
    await far.until(lambda: far.view.owners == {2: owner})
    assert gone.node_id not in far.view.nodes
    assert far.losses == 0
    # And it follows on from there.
    third = await near.cluster.take(3)
    await far.until(lambda: far.view.owners == {2: owner, 3: third})


async def test_the_first_to_say_it_says_which_keyspace_is_used(settings: EtcdSettings, nodes: AsyncExitStack) -> None:
    one, two = EtcdCluster(settings), EtcdCluster(settings)
    for cluster in (one, two):
        nodes.push_async_callback(cluster.close)
    assert await one.keyspace() == ""
    assert await one.say_keyspace("ours of 1") == "ours of 1"
    assert await two.say_keyspace("another of 2") == "ours of 1"
    assert await two.keyspace() == "ours of 1"
    with capture_logs() as lines:
        joined = Node(one)
        await joined.join()
        await joined.until(lambda: joined.node_id in joined.view.nodes)
    assert "etcd_key_foreign" not in {line["event"] for line in lines}
    assert one.joined_base == await two.epoch_base()


async def test_a_node_joins_no_other_etcd_than_it_has_asked(settings: EtcdSettings, nodes: AsyncExitStack) -> None:
    """One that was set up anew in between was compared with nothing, and its epochs begin elsewhere."""
    one = EtcdCluster(settings)
    nodes.push_async_callback(one.close)
    node = Node(one)
    asked = await one.epoch_base()
    etcd = EtcdClient(settings)
    nodes.push_async_callback(etcd.close)
    delete = DeleteRangeRequest(key=f"{settings.prefix}epoch_base".encode())
    await etcd.transact(TxnRequest(success=[RequestOp(delete_range=delete)]))
    for _ in range(2):
        with pytest.raises(ClusterUnavailableError, match="set up anew"):
            await node.join()
    assert one.deadline_s == 0
    assert await one.epoch_base() > asked
    await node.join()
    assert one.joined_base == await one.epoch_base()


async def test_a_watch_that_hears_nothing_is_watched_elsewhere(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    port = shared_etcd.members[0].port
    first = await nodes.enter_async_context(link_to(port))
    second = await nodes.enter_async_context(link_to(port))
    far, near = _node(nodes, settings, first.address, second.address), _node(nodes, settings)
    await near.join()
    await far.join()
    first.silence()
    owner = await near.cluster.take(5)
    await far.until(lambda: far.view.owners == {5: owner})
    assert await far.cluster.take(6) is not None
    assert far.losses == 0


async def test_an_endpoint_that_is_dead_is_passed_over(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    one = _node(nodes, settings, f"127.0.0.1:{free_port()}", *shared_etcd.endpoints)
    await one.join()
    assert await one.cluster.take(1) is not None


async def test_silence_longer_than_the_lease_is_a_loss(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    link = await nodes.enter_async_context(link_to(shared_etcd.members[0].port))
    one, two = _node(nodes, settings, link.address), _node(nodes, settings)
    await one.join()
    await two.join()
    await one.cluster.take(7)
    link.silence()
    last_s = one.cluster.deadline_s
    await one.until(lambda: one.losses == 1)
    assert lease_clock_s() >= last_s
    await eventually(lambda: _takes(two, 7))
    # What was held back arrives now, and brings nothing back.
    link.mend()
    assert one.cluster.deadline_s == 0
    await asyncio.sleep(0.5)
    assert (one.cluster.deadline_s, one.losses) == (0, 1)
    assert two.view.owners[7].node_id == two.node_id


async def test_an_event_loop_that_is_busy_for_twice_its_lease_keeps_it(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    one = _node(nodes, dataclasses.replace(settings, lease_ttl_s=5))
    await one.join()
    mine = await one.cluster.take(7)
    lease_id = _lease_of(shared_etcd, f"{settings.prefix}shards/7")
    busy_until_s = time.monotonic() + 10
    while time.monotonic() < busy_until_s:
        """Lets no other task run, and holds Python's lock as busy code does."""
    assert one.cluster.deadline_s > lease_clock_s()
    assert _lease_of(shared_etcd, f"{settings.prefix}shards/7") == lease_id
    assert await one.cluster.take(7) == mine
    assert one.losses == 0


async def test_a_lease_that_etcd_ended_is_a_loss_at_the_next_sign_of_life(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    one = _node(nodes, settings)
    await one.join()
    await one.cluster.take(7)
    _ask(shared_etcd, "/v3/lease/revoke", {"ID": _lease_of(shared_etcd, f"{settings.prefix}shards/7")})
    await one.until(lambda: one.losses == 1)
    assert one.cluster.deadline_s == 0
    await one.join()
    assert await one.cluster.take(7) is not None


async def test_a_write_under_a_lease_that_etcd_ended_is_a_loss_at_once(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    one = _node(nodes, dataclasses.replace(settings, lease_ttl_s=600))
    await one.join()
    await one.cluster.take(7)
    _ask(shared_etcd, "/v3/lease/revoke", {"ID": _lease_of(shared_etcd, f"{settings.prefix}shards/7")})
    with pytest.raises(ClusterUnavailableError):
        await one.cluster.take(8)
    assert (one.losses, one.cluster.deadline_s) == (1, 0)


@pytest.mark.parametrize("fault", [Link.silence, Link.cut])
async def test_a_release_that_was_given_up_does_not_take_the_next_epoch_along(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack, fault: Callable[[Link], None]
) -> None:
    settings = dataclasses.replace(settings, lease_ttl_s=60)
    link = await nodes.enter_async_context(link_to(shared_etcd.members[0].port))
    one = _node(nodes, settings, link.address)
    await one.join()
    first = await one.cluster.take(7)
    assert first is not None
    revision = _revision_of(shared_etcd, f"{settings.prefix}shards/7")
    fault(link)
    with pytest.raises(ClusterUnavailableError):
        await one.cluster.release(7)
    link.mend()
    second = await one.cluster.take(7)
    assert second is not None
    assert second.epoch > first.epoch
    # The deletion that was held back, once more and as late as can be.
    await _delete_as_created(settings, shared_etcd, 7, revision)
    assert await one.cluster.take(7) == second


async def test_epochs_of_an_etcd_that_is_set_up_anew_are_greater_than_all_before(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    """The new one counts its revisions from 1 again, and the log holds rows of the epochs that the old one gave."""
    one = _node(nodes, settings)
    await one.join()
    before = await one.cluster.take(7)
    assert before is not None
    old_revision = _revision_of(shared_etcd, f"{settings.prefix}shards/7")
    anew = EtcdServers(name="etcd-anew")
    nodes.callback(anew.close)
    anew.start()
    two = _node(nodes, settings, anew.endpoints[0])
    await two.join()
    after = await two.cluster.take(7)
    assert after is not None
    assert _revision_of(anew, f"{settings.prefix}shards/7") < old_revision
    assert after.epoch > before.epoch
    await two.until(lambda: two.view.owners == {7: after})
    await two.cluster.leave()


async def test_a_take_that_was_given_up_is_found_to_be_ours(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    link, one, two = await _one_on_a_link(settings, shared_etcd, nodes)
    link.silence()
    with pytest.raises(ClusterUnavailableError):
        await one.cluster.take(7)
    link.mend()
    owner = await one.cluster.take(7)
    assert owner is not None
    assert await two.cluster.take(7) is None
    await two.until(lambda: two.view.owners == {7: owner})


async def test_a_leave_that_was_cancelled_is_made_up_for_by_the_next(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    """A process that ends cancels whoever gives up a lease that was lost, and leaves once more itself."""
    link, one, two = await _one_on_a_link(settings, shared_etcd, nodes)
    await one.cluster.take(7)
    link.silence()
    leaving = asyncio.create_task(one.cluster.leave())
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    link.mend()
    await one.cluster.leave()
    assert await two.cluster.take(7) is not None


async def test_who_joins_again_stands_under_the_new_lease_though_the_old_one_has_not_ended(
    settings: EtcdSettings, nodes: AsyncExitStack
) -> None:
    before, again = _node(nodes, settings), _node(nodes, settings)
    again.info = before.info
    await before.join()
    await again.join()
    await before.cluster.leave()
    owner = await again.cluster.take(1)
    await again.until(lambda: again.view.owners.get(1) == owner)
    assert again.view.nodes == {again.node_id: again.info}


async def test_clusters_in_one_etcd_do_not_see_each_other(settings: EtcdSettings, nodes: AsyncExitStack) -> None:
    one, other = _node(nodes, settings), _node(nodes, dataclasses.replace(settings, prefix=settings.prefix[:-1] + "2/"))
    await one.join()
    await other.join()
    assert await one.cluster.take(7) is not None
    assert await other.cluster.take(7) is not None
    await other.until(lambda: 7 in other.view.owners)
    assert list(other.view.nodes) == [other.node_id]


async def test_what_a_newer_node_says_is_understood_as_far_as_it_can_be(
    settings: EtcdSettings, shared_etcd: EtcdServers, nodes: AsyncExitStack
) -> None:
    one = _node(nodes, settings)
    await one.join()
    newer = {"node_id": "newer", "public_address": "p", "relay_address": "r", "draining": True, "zone": "b"}
    etcd = EtcdClient(settings)
    lease_id = int(_ask(shared_etcd, "/v3/lease/grant", {"TTL": 60})["ID"])
    put = PutRequest(key=f"{settings.prefix}nodes/newer".encode(), value=json.dumps(newer).encode(), lease_id=lease_id)
    await etcd.transact(TxnRequest(success=[RequestOp(put=put)]))
    await etcd.close()
    await one.until(lambda: "newer" in one.view.nodes)
    assert one.view.nodes["newer"].draining


@pytest.fixture
def etcd_with_password() -> Iterator[EtcdServers]:
    servers = EtcdServers(name="etcd-password")
    try:
        servers.start()
        _ask(servers, "/v3/auth/user/add", {"name": "root", "password": "right"})
        _ask(servers, "/v3/auth/role/add", {"name": "root"})
        _ask(servers, "/v3/auth/user/grant", {"user": "root", "role": "root"})
        _ask(servers, "/v3/auth/enable", {})
        yield servers
    finally:
        servers.close()


async def test_a_password_opens_etcd_and_works_after_etcd_forgot_who_gave_it(
    etcd_with_password: EtcdServers, nodes: AsyncExitStack
) -> None:
    settings = EtcdSettings(etcd_with_password.endpoints, username="root", password="right", lease_ttl_s=30)
    one, two = _node(nodes, settings), _node(nodes, settings)
    await one.join()
    await two.join()
    assert await one.cluster.take(1) is not None
    member = etcd_with_password.members[0]
    member.kill()
    member.start()
    third = await one.cluster.take(3)
    assert third is not None
    await two.until(lambda: two.view.owners.get(3) == third)
    assert (one.losses, two.losses) == (0, 0)


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_a_wrong_password_or_none_is_an_error_that_does_not_tell_it(
    etcd_with_password: EtcdServers, nodes: AsyncExitStack, password: str
) -> None:
    settings = EtcdSettings(etcd_with_password.endpoints, username="root" if password else "", password=password)
    one = _node(nodes, settings)
    with pytest.raises(ClusterUnavailableError) as raised:
        await one.join()
    assert "wrong" not in str(raised.value)
    assert "right" not in repr(settings)


async def test_over_tls_both_sides_show_who_they_are(tmp_path: Path, nodes: AsyncExitStack) -> None:
    certificate = write_certificate(tmp_path)
    servers = EtcdServers(name="etcd-tls", certificate=certificate)
    try:
        servers.start()
        cert_pem, key_pem = (path.read_bytes() for path in certificate)
        trusting = EtcdSettings(servers.endpoints, ca_pem=cert_pem, cert_pem=cert_pem, key_pem=key_pem)
        one = _node(nodes, trusting)
        await one.join()
        assert await one.cluster.take(1) is not None
        strangers = (dataclasses.replace(trusting, cert_pem=None, key_pem=None), EtcdSettings(servers.endpoints))
        tried = await asyncio.gather(*(_node(nodes, each).join() for each in strangers), return_exceptions=True)
        assert [type(outcome) for outcome in tried] == [ClusterUnavailableError] * 2
        await one.cluster.leave()
    finally:
        servers.close()


async def test_the_errors_of_etcd_are_told_by_code(settings: EtcdSettings) -> None:
    etcd = EtcdClient(settings)
    await etcd.revoke(123456789)
    put = PutRequest(key=b"x", value=b"", lease_id=123456789)
    with pytest.raises(EtcdError, match="lease not found"):
        await etcd.transact(TxnRequest(success=[RequestOp(put=put)]))
    await etcd.close()


def _ask(servers: EtcdServers, path: str, body: dict[str, object]) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{servers.endpoints[0]}{path}", json.dumps(body).encode(), timeout=10) as answer:
        read: dict[str, Any] = json.load(answer)
    return read


def _lease_of(servers: EtcdServers, key: str) -> object:
    return _read(servers, key)["lease"]


def _revision_of(servers: EtcdServers, key: str) -> int:
    """At which it was created."""
    return int(_read(servers, key)["create_revision"])


def _read(servers: EtcdServers, key: str) -> dict[str, Any]:
    (found,) = _ask(servers, "/v3/kv/range", {"key": base64.b64encode(key.encode()).decode()})["kvs"]
    read: dict[str, Any] = found
    return read


async def _delete_as_created(settings: EtcdSettings, servers: EtcdServers, shard: int, revision: int) -> None:
    etcd = EtcdClient(dataclasses.replace(settings, endpoints=servers.endpoints))
    key = f"{settings.prefix}shards/{shard}".encode()
    as_created = Compare(target=Compare.TARGET_CREATE, key=key, create_revision=revision)
    delete = RequestOp(delete_range=DeleteRangeRequest(key=key))
    assert not (await etcd.transact(TxnRequest(compare=[as_created], success=[delete]))).succeeded
    await etcd.close()


async def _takes(node: Node, shard: int) -> bool:
    return await node.cluster.take(shard) is not None


async def test_keys_that_are_not_ours_do_not_end_the_watch(settings: EtcdSettings, nodes: AsyncExitStack) -> None:
    """Somebody else's keys below the prefix: the view goes on to change, and a node that joins later is seen."""
    one = _node(nodes, settings)
    await one.join()
    foreign = EtcdClient(settings)
    try:
        for name, value in ((b"shards/abc", b"x"), (b"nodes/x", b"{"), (b"shards/\xff", b"\xff")):
            put = RequestOp(put=PutRequest(key=settings.prefix.encode() + name, value=value))
            await foreign.transact(TxnRequest(success=[put]))
        two = _node(nodes, settings)
        await two.join()

        async def sees_both() -> bool:
            return len(one.view.nodes) == 2

        await eventually(sees_both)
    finally:
        await foreign.close()


async def test_a_shard_at_whose_key_something_stands_for_ever_is_taken(settings: EtcdSettings, nodes: AsyncExitStack) -> None:
    """As somebody puts it there who looks around; what stood there before by a node may be that node's yet."""
    one = _node(nodes, settings)
    await one.join()
    held = await one.cluster.take(4)
    assert held is not None
    foreign = EtcdClient(settings)
    try:
        for shard, value in ((3, b"ghost"), (4, b"ghost"), (5, b"\xff")):
            put = RequestOp(put=PutRequest(key=settings.prefix.encode() + b"shards/%d" % shard, value=value))
            await foreign.transact(TxnRequest(success=[put]))
        two = _node(nodes, settings)
        await two.join()
        for shard in (3, 5):
            taken = await two.cluster.take(shard)
            assert taken is not None
            assert taken.epoch > held.epoch
        assert await two.cluster.take(4) is None
    finally:
        await foreign.close()
