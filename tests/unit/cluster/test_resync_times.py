"""When passes come, as a running node has them: no time is set here, and all of it is virtual."""

import asyncio
import selectors
from collections.abc import Coroutine, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatgrpc.adapters.memory.row_store import MemoryRowStore
from chatgrpc.cluster.resync import Resync
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.lanes import EdgeLanes
from chatgrpc.core.tending import ShardOwner
from tests.unit.cluster.small_cluster import shard_of
from tests.unit.cluster.streams import Streams

STATED_S = 300.0
"""docs/operations.md: within five minutes."""
HOUR_S = 3_600.0
SOON_S = 5.0
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


class _Skipping(selectors.DefaultSelector):
    """Waits for no timer: its clock goes on instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0 if timeout is not None else None)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s


def on_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        runner.run(work)


class Node:
    """One with a stream of Alice, and how it looks again."""

    def __init__(self, seed: int = 0) -> None:
        streams = Streams()
        streams.open("alice")
        self.looked_at_s: list[float] = []
        """When what was taken away from Alice was looked at."""
        self.resync = Resync(
            streams.connections,
            EdgeDesk("here", EdgeLanes(250, 10_000), shard_of, 250, 200_000),
            MemoryRowStore(),
            self._no_heads,
            shard_of,
            self._ignore,
            self._ignore,
            self._look,
            lambda: int(self._now_s() * 1000),
        )
        self.resync._random.seed(seed)
        self._task = asyncio.create_task(self.resync.run())
        self.resync.see({1: ShardOwner("other", 1)}, {"other"})

    def lose_the_other(self) -> None:
        """The node that owned a shard is gone."""
        self.resync.see({}, set())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _look(self, user_id: str) -> None:
        assert user_id == "alice"
        self.looked_at_s.append(self._now_s())

    async def _no_heads(self, chat_ids: Iterable[str]) -> dict[str, int | None]:
        raise AssertionError("Alice is in no chat")

    def _ignore(self, what: object) -> None:
        pass


def test_a_node_looks_at_what_was_revoked_as_often_as_the_docs_say() -> None:
    """A revocation that nobody told the node of ends the stream at the next look."""
    assert "- within five minutes (plus" in OPERATIONS.read_text()

    async def run() -> None:
        nodes = [Node(seed) for seed in range(20)]
        await asyncio.sleep(HOUR_S)
        for node in nodes:
            await node.stop()
            times_s = [0.0, *node.looked_at_s, HOUR_S]
            assert max(after_s - before_s for before_s, after_s in pairwise(times_s)) <= STATED_S + 1

    on_virtual_time(run())


def test_a_node_looks_soon_after_another_one_has_died() -> None:
    async def run() -> None:
        node = Node()
        await asyncio.sleep(SOON_S)
        assert not node.looked_at_s, "nothing has happened"
        node.lose_the_other()
        await asyncio.sleep(SOON_S)
        assert len(node.looked_at_s) == 1
        await node.stop()

    on_virtual_time(run())


@pytest.mark.parametrize("cause", ["a node has died", "nothing but time"])
def test_nodes_do_not_all_look_at_the_same_moment(cause: str) -> None:
    """What befalls one node befalls all, and they share one store."""

    async def run() -> None:
        nodes = [Node(seed) for seed in range(50)]
        await asyncio.sleep(1)
        if cause == "a node has died":
            for node in nodes:
                node.lose_the_other()
        await asyncio.sleep(STATED_S)
        first_s = sorted(node.looked_at_s[0] for node in nodes)
        assert len(set(first_s)) == len(nodes)
        tenth_s = (first_s[-1] - first_s[0]) / 10
        tenths = {int((at_s - first_s[0]) / tenth_s) for at_s in first_s[:-1]}
        assert len(tenths) >= 8, "they come all over the time, and not in one crowd"
        assert first_s[-1] - first_s[0] >= (0.8 if cause == "a node has died" else 100)
        for node in nodes:
            await node.stop()

    on_virtual_time(run())
