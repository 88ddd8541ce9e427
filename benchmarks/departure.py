"""How long a node's loop stands still when another node is gone: every session looks again. `python -m benchmarks.departure`.

The sessions, the feeds, the rules of doubt and `Resync` are the node's own; heads and memberships are answered at once, so that
what is measured is the node's work and not its stores'.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable
from itertools import islice

from chatgrpc.adapters.memory.row_store import MemoryRowStore
from chatgrpc.cluster.resync import Resync
from chatgrpc.core.clock import Now
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.effects import Admission
from chatgrpc.core.entries import Membership
from chatgrpc.core.ids import SHARD_COUNT, shard_of
from chatgrpc.core.lanes import EdgeLanes
from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, Timings
from chatgrpc.core.tending import ShardOwner
from chatgrpc.core.visibility import Interval
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.v1 import session_pb2

_FAR_MS = 4_000_000_000_000
_NOW = Now(1_000_000, 1_000_000)


class _Memberships(MemoryRowStore):
    """The memory store, which answers of whoever is asked for that they are in so many chats, and counts the questions."""

    def __init__(self, chats: int) -> None:
        super().__init__()
        self.users_read = 0
        self._chats_each = chats

    async def intervals_of_user(
        self, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[tuple[str, tuple[Interval, ...]]]:
        self.users_read += 1
        await asyncio.sleep(0)
        return [(chat_id, (Interval(1),)) for chat_id in islice(_chat_ids(int(user_id), self._chats_each), limit)]


def _chat_ids(user: int, chats: int) -> Iterable[str]:
    return (f"g.{(user * chats + number) // 2:016d}" for number in range(chats))


def _open(connections: Connections, user: int, chats: int) -> None:
    session = Session(f"s{user}", "token", Limits(), Timings(), _NOW.monotonic_ms)
    connection = Connection(user, session)
    connections.add(connection)
    positions = [session_pb2.ChatPosition(chat_id=chat_id, seq=5) for chat_id in _chat_ids(user, chats)]
    hello = session_pb2.Hello(device_id="phone", positions=positions)
    session.receive(session_pb2.ClientFrame(request_id=1, hello=hello), _NOW.monotonic_ms)
    session.user_id = str(user)
    connections.register(connection)
    memberships = [Membership(chat_id, (Interval(1),), 5) for chat_id in _chat_ids(user, chats)]
    session.admitted(Admission(str(user), _FAR_MS, memberships, {}, [], ""), _NOW)
    while session.take_output(_NOW.monotonic_ms):
        pass


async def _longest_stall_s(until: asyncio.Event) -> tuple[float, float]:
    """By the clock, and of that the loop's own work: on a busy machine the rest is others' turn."""
    longest_s = longest_work_s = 0.0
    while not until.is_set():
        before_s, work_s = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, time.perf_counter() - before_s - 0.001)
        longest_work_s = max(longest_work_s, time.thread_time() - work_s)
    return longest_s, longest_work_s


async def _run(sessions: int, chats: int) -> None:
    connections = Connections()
    for user in range(sessions):
        _open(connections, user, chats)
    committed = _Memberships(chats)
    asked = 0

    async def heads(chat_ids: list[str]) -> dict[str, int | None]:
        nonlocal asked
        await asyncio.sleep(0)
        asked += len(chat_ids)
        return dict.fromkeys(chat_ids, 5)

    async def end_revoked(user_id: str) -> None:
        """Nobody was revoked."""

    def ignore(what: object) -> None:
        """Nobody else looks."""

    desk = EdgeDesk("here", EdgeLanes(250, 10_000), shard_of, 250, 200_000)
    resync = Resync(
        connections, desk, committed, heads, shard_of, ignore, ignore, end_revoked, lambda: time.monotonic_ns() // 1_000_000
    )
    resync.see(
        {shard: ShardOwner("gone" if shard % 3 else "stays", shard + 1) for shard in range(SHARD_COUNT)}, {"gone", "stays"}
    )
    done = asyncio.Event()
    stall = asyncio.create_task(_longest_stall_s(done))
    running = asyncio.create_task(resync.run())
    began_s = time.perf_counter()
    resync.see({shard: ShardOwner("stays", 9_999) for shard in range(SHARD_COUNT)}, {"stays"})
    while committed.users_read < sessions:  # noqa: ASYNC110  what is waited for has no event
        await asyncio.sleep(0.05)
    done.set()
    print(f"{sessions} sessions of {chats} chats, two thirds of the shards in doubt: {asked} heads asked for,")
    print(f"{committed.users_read} users read, in {time.perf_counter() - began_s:.0f} s")
    longest_s, work_s = await stall
    print(f"the loop stood still for {longest_s * 1_000:.0f} ms at most, and worked for {work_s * 1_000:.0f} ms at a stretch")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.departure", description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--chats", type=int, default=20, help="of each session")
    options = parser.parse_args()
    asyncio.run(_run(options.sessions, options.chats))


if __name__ == "__main__":
    main()
