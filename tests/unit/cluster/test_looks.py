"""Users who look at each other before there is a chat are shown it, whichever nodes they are at."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from chatgrpc.adapters.memory import MemorySharedLooks
from chatgrpc.cluster.looks import LookScreens
from chatgrpc.edge.connection import Connection
from chatgrpc.ports.shared_looks import LOOK_KEPT_S, SharedLooksUnavailableError
from tests.unit.cluster.small_cluster import until
from tests.unit.cluster.streams import Streams

SOON_S = 0.01
FOREVER_S = 1e6
Shown = list[tuple[str, bool]]


class StubbornLooks(MemorySharedLooks):
    """Away now and then; counts how often it is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(lambda: self.now_s)
        self.away = False
        self.asked: list[Collection[tuple[str, str]]] = []

    async def look(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        self.asked.append(pairs)
        await asyncio.sleep(0)
        if self.away:
            raise SharedLooksUnavailableError("away")
        return await super().look(pairs)


class World:
    """Two nodes."""

    def __init__(self, look_interval_s: float) -> None:
        self.shared = StubbornLooks()
        self.streams = Streams()
        self.touched: list[Connection] = []
        self.watched: set[tuple[Connection, str]] = set()
        self.here, self.there = (
            LookScreens(
                self.touched.append,
                self.shared,
                lambda watcher, user_id: (watcher, user_id) in self.watched,
                look_interval_s=look_interval_s,
            )
            for _ in range(2)
        )

    def shown(self, device: Connection) -> Shown:
        frames = self.streams.frames(device)
        assert all(not frame.presence.last_seen_ms for frame in frames)
        return [(frame.presence.user_id, frame.presence.online) for frame in frames]

    async def until_shown(self, device: Connection, user_id: str, online: bool) -> None:
        shown: Shown = []

        def holds() -> bool:
            shown.extend(self.shown(device))
            return bool(shown)

        await until(holds)
        assert shown == [(user_id, online)]

    async def looked(self) -> None:
        """Returns when all looks have been looked at from the beginning on, at both nodes."""
        asked = len(self.shared.asked)
        await until(lambda: len(self.shared.asked) >= asked + 5)


@asynccontextmanager
async def running(look_interval_s: float = SOON_S) -> AsyncIterator[World]:
    world = World(look_interval_s)
    tasks = [asyncio.create_task(screens.run()) for screens in (world.here, world.there)]
    try:
        yield world
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended


async def test_both_are_shown_while_both_look() -> None:
    async with running() as world:
        alice, bob, carol = (world.streams.open(user_id) for user_id in ("alice", "bob", "carol"))
        world.here.look(alice, ["bob"])
        world.here.look(carol, ["alice", "bob"])
        await world.looked()
        world.there.look(bob, ["alice"])
        await world.until_shown(alice, "bob", online=True)
        await world.until_shown(bob, "alice", online=True)
        await world.looked()
        assert [world.shown(device) for device in (alice, bob, carol)] == [[], [], []]
        world.there.look_away(bob)
        await world.looked()  # a look that had begun before has been told by now, and is told no more
        world.shared.now_s += LOOK_KEPT_S
        await world.until_shown(alice, "bob", online=False)
        assert set(world.touched) == {alice, bob}


async def test_who_begins_to_look_is_shown_at_once() -> None:
    async with running(FOREVER_S) as world:
        alice, bob, phone = (world.streams.open(user_id) for user_id in ("alice", "bob", "bob"))
        world.here.look(alice, ["bob"])
        await until(lambda: len(world.shared.asked) >= 1)
        for device in (bob, phone):
            world.there.look(device, ["alice"])
            await world.until_shown(device, "alice", online=True)


async def test_what_is_shown_of_members_of_a_chat_on_the_screen_is_left_to_that() -> None:
    async with running() as world:
        alice, bob = (world.streams.open(user_id) for user_id in ("alice", "bob"))
        world.watched.add((alice, "bob"))
        world.here.look(alice, ["bob"])
        world.there.look(bob, ["alice"])
        await world.until_shown(bob, "alice", online=True)
        await world.looked()
        assert world.shown(alice) == []


async def test_while_nobody_knows_what_was_shown_stays_and_then_it_goes_on() -> None:
    async with running() as world:
        alice, bob = (world.streams.open(user_id) for user_id in ("alice", "bob"))
        world.here.look(alice, ["bob"])
        world.there.look(bob, ["alice"])
        await world.until_shown(alice, "bob", online=True)
        world.shared.away = True
        world.there.look_away(bob)
        world.shared.now_s += LOOK_KEPT_S
        await world.looked()
        assert world.shown(alice) == []
        world.shared.away = False
        await world.until_shown(alice, "bob", online=False)


async def test_where_nobody_looks_nothing_is_asked() -> None:
    async with running() as world:
        alice = world.streams.open("alice")
        world.here.look(alice, ["bob"])
        await world.looked()
        world.here.look_away(alice)
        world.here.look_away(alice)
        await asyncio.sleep(0)
        asked = len(world.shared.asked)
        for _ in range(5):
            await asyncio.sleep(SOON_S)
        assert len(world.shared.asked) <= asked + 1
