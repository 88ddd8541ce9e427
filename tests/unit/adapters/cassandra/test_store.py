"""Opening and closing a store, alone and with others, and what stands in its way."""

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cassandra import InvalidRequest
from cassandra.cluster import Session

from chatgrpc.adapters.cassandra import CassandraSettings, CassandraStore, KeyspaceOwner, SchemaError, client, schema
from chatgrpc.adapters.cassandra.owner import USE_KEPT_S, use_of
from chatgrpc.adapters.cassandra.schema import packaged_migrations
from chatgrpc.core.epochs import Row
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoreWrite, WriteBoundary, WriteMark, WriteRow
from chatgrpc.ports.accounts import Connected, Profile, TooManyDevicesError
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import CannotBeStoredError, ChatDamagedError, StoreUnavailableError
from chatgrpc.ports.receipts import Mark
from tests.contract.cassandra_stores import open_store, settings
from tests.contract.rows.writes import BYTES_MAX, Rows, log, row, views
from tests.contract.stores.entries import view
from tests.support.services import CassandraCluster

LAST = packaged_migrations()[-1].version
"""The schema's version."""


async def execute(store: CassandraStore, text: str) -> list[tuple[object, ...]]:
    return await asyncio.to_thread(store._client.execute, text)


def heartbeats() -> set[int]:
    """Threads that watch over connections, one for each store that is open."""
    return {id(thread) for thread in threading.enumerate() if thread.name == "Connection heartbeat"}


def test_the_lock_of_the_schema_outlasts_the_longest_statement() -> None:
    assert schema.LOCK_TTL_S > client.PATIENCE_S + client.DDL_TIMEOUT_S


class TestOpen:
    async def test_by_many_at_once_makes_one_keyspace(self, shared_cassandra: CassandraCluster) -> None:
        stores = await asyncio.gather(*(open_store(shared_cassandra, "crowd") for _ in range(4)))
        versions = await execute(stores[0], "SELECT version FROM {keyspace}.schema_migrations")
        assert sorted(versions) == [(step.version,) for step in packaged_migrations()]
        for number, store in enumerate(stores):
            await store.profiles.put(Profile(f"user{number}", "Someone"))
        assert [await stores[0].profiles.get(f"user{number}") for number in range(4)] == [
            Profile(f"user{number}", "Someone") for number in range(4)
        ]
        await asyncio.gather(*(store.close() for store in stores))

    async def test_again_keeps_what_was_stored(self, shared_cassandra: CassandraCluster) -> None:
        user = secrets.token_hex(8)
        first = await open_store(shared_cassandra, "unit")
        await first.profiles.put(Profile(user, "Alice"))
        await first.close()
        second = await open_store(shared_cassandra, "unit")
        assert await second.profiles.get(user) == Profile(user, "Alice")
        await second.close()

    async def test_waits_for_whoever_changes_the_schema_and_died(self, shared_cassandra: CassandraCluster) -> None:
        store = await open_store(shared_cassandra, "locked")
        await execute(store, f"DELETE FROM {{keyspace}}.schema_migrations WHERE version = {LAST}")
        # As a node leaves it that dies in the middle, a little later.
        await execute(
            store, "INSERT INTO {keyspace}.schema_migrations (version, holder) VALUES (0, 'dead') IF NOT EXISTS USING TTL 2"
        )
        again = await open_store(shared_cassandra, "locked")
        assert sorted(await execute(again, "SELECT version FROM {keyspace}.schema_migrations")) == [
            (step.version,) for step in packaged_migrations()
        ]
        await asyncio.gather(store.close(), again.close())

    async def test_that_is_cancelled_leaves_nothing_behind(
        self, shared_cassandra: CassandraCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others = heartbeats()
        store = await open_store(shared_cassandra, "locked")
        lock = "INSERT INTO {keyspace}.schema_migrations (version, holder) VALUES (0, 'busy') IF NOT EXISTS USING TTL 60"
        await execute(store, lock)
        await execute(store, f"DELETE FROM {{keyspace}}.schema_migrations WHERE version = {LAST}")
        waits, wait = threading.Event(), client.CassandraClient.wait

        def told(self: client.CassandraClient) -> None:
            waits.set()
            wait(self)

        monkeypatch.setattr(client.CassandraClient, "wait", told)
        opening = asyncio.create_task(open_store(shared_cassandra, "locked"))
        assert await asyncio.to_thread(waits.wait, 60)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await execute(store, f"INSERT INTO {{keyspace}}.schema_migrations (version, name) VALUES ({LAST}, 'made again')")
        await execute(store, "DELETE FROM {keyspace}.schema_migrations WHERE version = 0")
        await store.close()
        async with asyncio.timeout(30):  # a thread that went on waiting would do so for longer
            await asyncio.get_running_loop().shutdown_default_executor()
        assert heartbeats() == others

    async def test_asks_again_whoever_does_not_know_yet_of_a_table(
        self, shared_cassandra: CassandraCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused: set[str] = set()

        def late(call: Callable[..., Any]) -> Callable[..., Any]:
            def once_refused(session: Session, text: str, *args: Any, **kwargs: Any) -> Any:
                if text not in refused:
                    refused.add(text)
                    raise InvalidRequest("table does not exist")
                return call(session, text, *args, **kwargs)

            return once_refused

        monkeypatch.setattr(client, "_POLL_INTERVAL_S", 0.001)
        monkeypatch.setattr(Session, "execute", late(Session.execute))
        monkeypatch.setattr(Session, "prepare", late(Session.prepare))
        hosts = [("127.0.0.1", shared_cassandra.port)]
        store = await CassandraStore.open(
            CassandraSettings(hosts, f"late_{secrets.token_hex(4)}", replication_factor=1), KeyspaceOwner("late")
        )
        await store.profiles.put(Profile("user", "Someone"))
        await store.close()
        assert len(refused) > 50

    async def test_refuses_what_a_newer_chatgrpc_wrote(self, shared_cassandra: CassandraCluster) -> None:
        store = await open_store(shared_cassandra, "newer")
        await execute(store, "INSERT INTO {keyspace}.schema_migrations (version, name) VALUES (999, 'from the future')")
        with pytest.raises(SchemaError, match="999"):
            await open_store(shared_cassandra, "newer")
        await store.close()

    async def test_refuses_another_programs_keyspace(self, shared_cassandra: CassandraCluster) -> None:
        store = await open_store(shared_cassandra, "unit")
        await execute(
            store, "CREATE KEYSPACE foreign_one WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}"
        )
        await execute(store, "CREATE TABLE foreign_one.users (name text PRIMARY KEY)")
        with pytest.raises(SchemaError, match="foreign_one"):
            await open_store(shared_cassandra, "foreign_one")
        await store.close()

    async def test_with_too_few_nodes_says_so(
        self, shared_cassandra: CassandraCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chatgrpc.adapters.cassandra.client.PATIENCE_S", 0.5)  # others may come up meanwhile
        three = CassandraSettings([("127.0.0.1", shared_cassandra.port)], "three", replication_factor=3)
        with pytest.raises(StoreUnavailableError, match="replication factor"):
            await CassandraStore.open(three)

    async def test_where_nobody_listens_says_so(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{address[1]}"):
            await CassandraStore.open(CassandraSettings([address]))

    async def test_of_a_host_without_an_address_says_so(self) -> None:
        with pytest.raises(StoreUnavailableError, match=r"nowhere\.invalid"):
            await CassandraStore.open(CassandraSettings([("nowhere.invalid", 9042)]))

    async def test_without_the_tls_that_was_asked_for_says_so(self, shared_cassandra: CassandraCluster, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        hosts = [("127.0.0.1", shared_cassandra.port)]
        with pytest.raises(StoreUnavailableError, match=r"ca\.pem"):
            await CassandraStore.open(CassandraSettings(hosts, ca_file=tmp_path / "ca.pem"))


@pytest.mark.parametrize("keyspace", ["", "Chat", "1chat", "chat-grpc", "chat; DROP KEYSPACE x", "c" * 49])
def test_what_cannot_be_a_keyspace_is_refused(keyspace: str) -> None:
    with pytest.raises(ValueError, match="keyspace"):
        CassandraSettings([("127.0.0.1", 9042)], keyspace)


def test_settings_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(CassandraSettings([("127.0.0.1", 9042)], username="chat", password="hunter2"))


class TestClose:
    async def test_finishes_what_was_asked_before(self, shared_cassandra: CassandraCluster) -> None:
        chat = f"g.{secrets.token_hex(11)}"
        store = await open_store(shared_cassandra, "unit")
        rows = Rows(store.rows, store.committed)
        asked = asyncio.create_task(rows.write(*log(chat, range(1, 3_001)), *(views(f"{chat}{n}", 1) for n in range(200))))
        await asyncio.sleep(0)
        await asyncio.gather(store.close(), store.close())
        await asked
        again = await open_store(shared_cassandra, "unit")
        assert len((await again.rows.read_bucket(ReadBucket(chat, 0, 0))).rows) == 3_000
        await again.close()

    async def test_refuses_what_is_asked_after(self, shared_cassandra: CassandraCluster) -> None:
        store = await open_store(shared_cassandra, "unit")
        await store.close()
        rows = Rows(store.rows, store.committed)
        errors = await rows.try_to_write(row("g.chat", 1), views("g.chat", 1))
        assert [type(error) for error in errors] == [StoreUnavailableError] * 2
        for call in (
            store.rows.read_head(ReadHead("g.chat")),
            store.rows.read_bucket(ReadBucket("g.chat", 0, 0)),
            store.rows.write_marks([WriteMark("g.chat", 1)]),
            store.committed.read_after("g.chat", 0, 1, 1, BYTES_MAX),
            store.committed.intervals_of_user("alice", "", 1),
            store.receipts.save([Mark("g.chat", "alice", 1, 1, 1)]),
            store.receipts.of_user_chats("alice", 0),
            store.cursors.save([Cursor("alice", "phone", "g.chat", 1)]),
            store.profiles.put(Profile("alice")),
            store.devices.connect("alice", "phone", "", 1, 1),
        ):
            with pytest.raises(StoreUnavailableError, match="closed"):
                await call
        await store.close()


async def test_devices_that_register_at_several_nodes_at_once_never_pass_the_limit(
    shared_cassandra: CassandraCluster,
) -> None:
    nodes = await asyncio.gather(*(open_store(shared_cassandra, "unit") for _ in range(3)))
    user = secrets.token_hex(8)
    outcomes = await asyncio.gather(
        *(node.devices.connect(user, f"device{n}", "", 100, 4) for n, node in enumerate(nodes * 3)), return_exceptions=True
    )
    registered = {outcome.device.device_id for outcome in outcomes if isinstance(outcome, Connected)}
    assert len(registered) <= 4
    assert {type(outcome) for outcome in outcomes} <= {Connected, TooManyDevicesError, StoreUnavailableError}
    assert {device.device_id for device in await nodes[0].devices.list(user)} == registered
    # Whoever was turned away because all were at it at once, comes again.
    for number in range(9):
        if f"device{number}" not in registered and len(registered) < 4:
            registered.add((await nodes[1].devices.connect(user, f"device{number}", "", 200, 4)).device.device_id)
    with pytest.raises(TooManyDevicesError):
        await nodes[2].devices.connect(user, "one more", "", 300, 4)
    await asyncio.gather(*(node.close() for node in nodes))


async def test_a_row_that_lands_while_a_reader_waits_for_it_is_read(shared_cassandra: CassandraCluster) -> None:
    store = await open_store(shared_cassandra, "unit")
    rows, chat = Rows(store.rows, store.committed), f"g.{secrets.token_hex(11)}"
    await rows.write(*log(chat, [1, 3]))
    reading = asyncio.create_task(store.committed.read_after(chat, 0, 3, 10, BYTES_MAX))
    await asyncio.sleep(0.05)
    assert not reading.done()
    await rows.write(row(chat, 2))
    assert [stored.seq for stored in await reading] == [1, 2, 3]
    await store.close()


async def test_what_cassandra_can_never_do_does_not_pass_for_a_store_that_is_away(shared_cassandra: CassandraCluster) -> None:
    store = await open_store(shared_cassandra, "unit")
    for chat_id in ("", "g" * 70_000):
        with pytest.raises(ChatDamagedError):
            await store.rows.read_head(ReadHead(chat_id))
    rows, chat = Rows(store.rows, store.committed), f"g.{secrets.token_hex(11)}"
    (error,) = await rows.try_to_write(views(chat, 1, amends_seq=2**64 - 1))
    assert isinstance(error, CannotBeStoredError)
    await rows.write(views(chat, 2, amends_seq=1))
    await store.close()


async def test_a_row_that_cannot_be_sent_is_told_by_itself_and_takes_no_other_along(shared_cassandra: CassandraCluster) -> None:
    """Whoever asked for it counts on being told of each write."""
    store = await open_store(shared_cassandra, "unit")
    rows, chat = Rows(store.rows, store.committed), f"g.{secrets.token_hex(11)}"
    never: list[StoreWrite] = [
        WriteRow(chat, 0, Row(2**64 - 1, 1, b"")),
        WriteBoundary(chat, 0, 1, 2**64 - 1),
        WriteRow("g" * 70_000, 0, Row(1, 1, b"")),
    ]
    errors = await rows.try_to_write(row(chat, 1), *never, row(chat, 2))
    assert sorted(type(error).__name__ for error in errors) == ["CannotBeStoredError"] * 3 + ["NoneType"] * 2
    assert {row.seq for row in (await store.rows.read_bucket(ReadBucket(chat, 0, 0))).rows} == {1, 2}
    await store.close()


async def test_a_membership_without_a_chats_id_hides_no_marks(shared_cassandra: CassandraCluster) -> None:
    store = await open_store(shared_cassandra, "unit")
    rows, chat, user = Rows(store.rows, store.committed), f"g.{secrets.token_hex(11)}", secrets.token_hex(8)
    await rows.write(views(chat, 1, view(b"", **{user: (1, 0)})))
    await execute(
        store, f"INSERT INTO {{keyspace}}.members (user_id, chat_id, joined_seq, left_seq) VALUES ('{user}', '', 1, 0)"
    )
    mark = Mark(chat, user, 1, 1, 1)
    await store.receipts.save([mark])
    assert await store.receipts.of_user_chats(user, 0) == [mark]
    await store.close()


class TestOwner:
    """A keyspace is one cluster's."""

    async def test_a_keyspace_is_taken_once_by_whoever_comes_first(self, shared_cassandra: CassandraCluster) -> None:
        ours = KeyspaceOwner("ours")
        stores = await asyncio.gather(*(_open_owned(shared_cassandra, "owned", ours) for _ in range(3)))
        with pytest.raises(SchemaError, match="belongs to the cluster 'ours', and this node is of 'theirs'"):
            await _open_owned(shared_cassandra, "owned", KeyspaceOwner("theirs"))
        for other in (KeyspaceOwner("ours", bucket_seqs=5_000), KeyspaceOwner("ours", shard_count=512)):
            with pytest.raises(SchemaError, match="was made with 10000 seqs a bucket and 1024 shards"):
                await _open_owned(shared_cassandra, "owned", other)
        await asyncio.gather(*(store.close() for store in stores))

    async def test_a_keyspace_of_an_earlier_version_is_taken_as_it_is(self, shared_cassandra: CassandraCluster) -> None:
        earlier = await open_store(shared_cassandra, "earlier")
        await earlier.profiles.put(Profile("alice", "Alice"))
        taken = await _open_owned(shared_cassandra, "earlier", KeyspaceOwner("ours"))
        assert await taken.profiles.get("alice") == Profile("alice", "Alice")
        again = await open_store(shared_cassandra, "earlier")
        await asyncio.gather(*(store.close() for store in (earlier, taken, again)))

    async def test_an_etcd_that_counts_from_earlier_is_refused(self, shared_cassandra: CassandraCluster) -> None:
        store = await _open_owned(shared_cassandra, "based", KeyspaceOwner("ours"))
        await asyncio.gather(*(store.use.claim_base(1_000) for _ in range(3)))
        await store.use.claim_base(2_000)
        with pytest.raises(SchemaError, match="from 2000, and this one counts from 1000"):
            await store.use.claim_base(1_000)
        await store.use.claim_base(2_000)
        await store.close()

    async def test_another_etcd_is_refused_while_nodes_use_the_keyspace(self, shared_cassandra: CassandraCluster) -> None:
        """It may be a new one that another cluster of this name was given by mistake."""
        store = await _open_owned(shared_cassandra, "used", KeyspaceOwner("ours"))
        await store.use.claim_base(1_000)
        for node_id in ("node-2", "node-1", "node-1"):
            await store.use.note_use(node_id, 1_000)
        with pytest.raises(SchemaError, match=r"by another etcd, .*: node-1, node-2\. .*--cluster-etcd"):
            await store.use.claim_base(2_000)
        await store.use.claim_base(1_000)  # they may be started again
        ((kept_s,), _) = await execute(store, "SELECT TTL(cluster) FROM {keyspace}.owner WHERE only < 0 ALLOW FILTERING")
        assert isinstance(kept_s, int)
        assert 0 < kept_s <= USE_KEPT_S
        for node_id in ("node-1", "node-2"):  # as it goes by itself
            await execute(store, f"DELETE FROM {{keyspace}}.owner WHERE only = {use_of(node_id, 0)[0]}")
        await store.use.claim_base(2_000)
        await store.use.note_use("node-1", 2_000)
        await store.use.claim_base(2_000)
        await store.close()

    async def test_a_keyspace_is_told_from_all_others(self, shared_cassandra: CassandraCluster) -> None:
        names = ("told", "apart", "told")
        stores = [await _open_owned(shared_cassandra, name, KeyspaceOwner("ours")) for name in names]
        told, apart, again = [await store.use.identity() for store in stores]
        assert told == again != apart
        await stores[0].use.claim_base(1_000)
        await stores[0].use.note_use("node-1", 1_000)
        assert await stores[0].use.identity() == told
        await execute(stores[0], "DROP KEYSPACE {keyspace}")
        await asyncio.gather(*(store.close() for store in stores))
        anew = await _open_owned(shared_cassandra, "told", KeyspaceOwner("ours"))
        assert await anew.use.identity() != told
        await anew.close()


async def _open_owned(cassandra: CassandraCluster, keyspace: str, owner: KeyspaceOwner) -> CassandraStore:
    return await CassandraStore.open(settings(cassandra, keyspace), owner)
