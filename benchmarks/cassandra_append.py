"""How many rows of the log reach Cassandra a second, and what of the node's processor each costs.

Rows of many chats, so many at a time, as owners write them:

- `coalesced`: what the store does, rows gathered by turn of the event loop into batches;
- `one by one`: a request a row.

Starts a Cassandra of its own, of one node, which shares the machine and does not wait for its disk: what is compared is the
client's work. So the rows a second say little about a cluster, whose Cassandra must wait.

    python -m benchmarks.cassandra_append [--cassandra HOST:PORT]
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence

from chatgrpc.adapters.cassandra import CassandraSettings, CassandraStore
from chatgrpc.core.epochs import Row
from chatgrpc.core.row_store import StoreWrite, WriteRow
from chatgrpc.ports.errors import StoreError
from tests.support.services import CassandraCluster

ROWS = 20_000
CHATS = 500
ROWS_AT_ONCE = 1_000
"""Under way together."""
ROWS_PER_TURN = 100
"""Asked for in one turn of the event loop, as a tick of the edge does."""
EVENT_BYTES = 300

Begin = Callable[[Sequence[WriteRow], Callable[[int, StoreError | None], None]], None]
"""Begins to write; the callback gets how many rows landed, and how."""


def coalesced(store: CassandraStore) -> Begin:
    """The store's way."""

    def begin(writes: Sequence[WriteRow], landed: Callable[[int, StoreError | None], None]) -> None:
        def written(part: Sequence[StoreWrite], error: StoreError | None) -> None:
            landed(len(part), error)

        store.rows.write(writes, written)

    return begin


def one_by_one(store: CassandraStore) -> Begin:
    """The plain way."""
    rows = store.rows

    def begin(writes: Sequence[WriteRow], landed: Callable[[int, StoreError | None], None]) -> None:
        for write in writes:
            rows._client.begin_write(rows._bound_row(write), lambda error: landed(1, error))

    return begin


async def append(begin: Begin, epoch: int) -> tuple[float, float]:
    """Writes all rows; returns the seconds it took, and those of this process's processor time."""
    event = bytes(EVENT_BYTES)
    writes = [WriteRow(f"g.{n % CHATS:022}", 0, Row(n // CHATS + 1, epoch, event)) for n in range(ROWS)]
    left, under_way = ROWS, 0
    moved = asyncio.Event()

    def landed(count: int, error: StoreError | None) -> None:
        nonlocal left, under_way
        assert error is None, error
        left -= count
        under_way -= count
        moved.set()

    began, began_cpu = time.perf_counter(), time.process_time()
    for start in range(0, ROWS, ROWS_PER_TURN):
        while under_way > ROWS_AT_ONCE - ROWS_PER_TURN:
            moved.clear()
            await moved.wait()
        under_way += ROWS_PER_TURN
        begin(writes[start : start + ROWS_PER_TURN], landed)
        await asyncio.sleep(0)
    while left:
        moved.clear()
        await moved.wait()
    return time.perf_counter() - began, time.process_time() - began_cpu


async def measure(host: str, port: int) -> None:
    """Prints a line for each way, after a round of each that warms Cassandra up."""
    store = await CassandraStore.open(CassandraSettings([(host, port)], "append_benchmark", replication_factor=1))
    print("how          rows/s  client CPU µs/row")
    ways = {"one by one": one_by_one(store), "coalesced": coalesced(store)}
    for begin in ways.values():
        await append(begin, epoch=1)
    for name, begin in ways.items():
        took_s, cpu_s = await append(begin, epoch=2)
        print(f"{name:10} {ROWS / took_s:8.0f} {cpu_s / ROWS * 1e6:18.1f}", flush=True)
    await store.close()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cassandra", metavar="HOST:PORT", help="one that runs already; a keyspace of its own is made in it")
    address = parser.parse_args().cassandra
    if address is not None:
        host, _, port = address.rpartition(":")
        asyncio.run(measure(host, int(port)))
        return
    cluster = CassandraCluster(name="cassandra-append", durable=False)
    try:
        cluster.start()
        asyncio.run(measure(cluster.hosts[0], cluster.port))
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
