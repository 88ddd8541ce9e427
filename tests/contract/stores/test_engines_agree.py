"""Random calls on each engine, and on the plain memory one beside it, give the same answers."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.ports.accounts import DeviceRevokedError, TooManyDevicesError
from chatgrpc.ports.chat_log import ChatView, Entry, Interval, MemberView
from chatgrpc.ports.cursors import Cursor
from chatgrpc.ports.errors import StaleOwnerError
from chatgrpc.ports.receipts import Mark
from chatgrpc.ports.store import Store
from tests.contract.stores.entries import event

T = TypeVar("T")

CHATS = ["d.AAAAAAAAAAAAAAAAAAAAAA", "g.BBBBBBBBBBBBBBBBBBBBBB", "g.CCCCCCCCCCCCCCCCCCCCCC"]
USERS = ["alice", "bob", "carol"]
DEVICES = ["phone", "laptop", "tablet"]

chats = st.sampled_from(CHATS)
users = st.sampled_from(USERS)
devices = st.sampled_from(DEVICES)
seqs = st.integers(0, 30)
sizes = st.sampled_from([0, 10, 900, 5_000])
times = st.integers(0, 20)

Wish = tuple[str, int, int, int | None, int | None, ChatView | None]
"""An entry to append: chat, offset from its head (1 is the next, 0 exists already), bytes of text, how far back lies what it
amends and what it erases, view."""


@st.composite
def views(draw: st.DrawFn) -> ChatView:
    members = st.builds(MemberView, users, st.builds(Interval, st.integers(1, 5), st.sampled_from([0, 0, 6, 9])))
    return ChatView(draw(st.binary(max_size=20)), tuple(draw(st.lists(members, max_size=3))))


@st.composite
def appends(draw: st.DrawFn) -> list[Wish]:
    offsets = st.sampled_from([1] * 30 + [2, 0])
    targets = st.sampled_from([None, None, None, None, -1, 0, 1, 1, 2, 3])
    one = st.tuples(chats, offsets, sizes, targets, targets, st.one_of(st.none(), st.none(), views()))
    return draw(st.lists(one, min_size=1, max_size=6))


class Engines(RuleBasedStateMachine):
    """A memory store and a SQLite store that are told the same."""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.model = MemoryStore()
        self.engine = self.runner.run(self._open())
        self.heads = dict.fromkeys(CHATS, 0)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.engine.close())
            self.runner.close()
            self.folder.cleanup()

    async def _open(self) -> SqliteStore:
        return await SqliteStore.open(Path(self.folder.name) / "chatgrpc.db")

    def both(self, call: Callable[[Store], Awaitable[T]]) -> T | type[Exception]:
        """What both answer; fails if they differ."""
        expected, got = (self.runner.run(_outcome(call, store)) for store in (self.model, self.engine))
        assert got == expected
        return expected

    @rule(group=appends())
    def append(self, group: list[Wish]) -> None:
        heads = dict(self.heads)
        entries = []
        for chat_id, offset, size, amends, erases, view in group:
            seq = max(1, heads[chat_id] + offset)
            heads[chat_id] = max(seq, heads[chat_id])
            body = event(chat_id, seq, "x" * size)
            amends_seq = 0 if amends is None or amends < 1 else max(0, seq - amends)
            erases_seq = 0 if erases is None else max(0, seq - erases)
            entries.append(Entry(chat_id, seq, 1, body, amends_seq, erases_seq, view))
        if self.both(lambda store: store.log.append(entries)) is None:
            self.heads = heads

    @rule(chat_id=chats, low=seqs, high=seqs, limit=st.integers(1, 5), bytes_max=st.sampled_from([0, 1_000, 1 << 20]))
    def read(self, chat_id: str, low: int, high: int, limit: int, bytes_max: int) -> None:
        self.both(lambda store: store.log.read_after(chat_id, low, high, limit, bytes_max))
        self.both(lambda store: store.log.read_before(chat_id, high, low, limit, bytes_max))

    @rule(user_id=users, after=st.sampled_from(["", *CHATS]), limit=st.integers(1, 4))
    def list_memberships(self, user_id: str, after: str, limit: int) -> None:
        self.both(lambda store: store.log.memberships(user_id, after, limit))
        self.both(lambda store: store.log.memberships(user_id, after, limit, present_only=True))

    @rule(marks=st.lists(st.builds(Mark, chats, users, seqs, seqs, times), max_size=5))
    def save_marks(self, marks: list[Mark]) -> None:
        self.both(lambda store: store.receipts.save(marks))

    @rule(user_id=users, since_ms=times)
    def read_marks(self, user_id: str, since_ms: int) -> None:
        async def of_user_chats(store: Store) -> set[Mark]:
            return set(await store.receipts.of_user_chats(user_id, since_ms))

        self.both(of_user_chats)

    @rule(cursors=st.lists(st.builds(Cursor, users, devices, chats, seqs), max_size=5))
    def save_cursors(self, cursors: list[Cursor]) -> None:
        self.both(lambda store: store.cursors.save(cursors))

    @rule(user_id=users, device_id=devices)
    def read_cursors(self, user_id: str, device_id: str) -> None:
        self.both(lambda store: store.cursors.of_device(user_id, device_id))

    @rule(user_id=users, device_id=devices, name=st.text(max_size=5), now_ms=times)
    def connect(self, user_id: str, device_id: str, name: str, now_ms: int) -> None:
        self.both(lambda store: store.devices.connect(user_id, device_id, name, now_ms, 2))

    @rule(user_id=users, device_id=devices, name=st.text(max_size=5), revoke=st.booleans(), now_ms=times)
    def change_device(self, user_id: str, device_id: str, name: str, revoke: bool, now_ms: int) -> None:
        if revoke:
            self.both(lambda store: store.devices.revoke(user_id, device_id, now_ms))
        else:
            self.both(lambda store: store.devices.rename(user_id, device_id, name))
        self.both(lambda store: store.devices.list(user_id))
        self.both(lambda store: store.devices.standing(user_id))

    @rule()
    def reopen(self) -> None:
        async def close_and_open() -> SqliteStore:
            await self.engine.close()
            return await self._open()

        self.engine = self.runner.run(close_and_open())

    @invariant()
    def everything_is_equal(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.both(_everything)


async def _everything(store: Store) -> list[object]:
    return [
        *[await store.log.load(chat_id) for chat_id in CHATS],
        *[await store.log.read_after(chat_id, 0, 1_000, 1_000, 1 << 24) for chat_id in CHATS],
        *[await store.log.membership(user_id, chat_id) for user_id in USERS for chat_id in CHATS],
        await store.log.count_groups(USERS),
    ]


async def _outcome(call: Callable[[Store], Awaitable[T]], store: Store) -> T | type[Exception]:
    try:
        return await call(store)
    except (StaleOwnerError, DeviceRevokedError, TooManyDevicesError) as error:
        return type(error)


TestEngines = Engines.TestCase
TestEngines.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
