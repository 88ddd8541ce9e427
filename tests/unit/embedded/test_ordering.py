"""The owner of a node that is alone: what one chat's entries do to the group that they are appended with."""

import os
import random
from collections.abc import Sequence

import pytest

from chatgrpc.adapters.memory import MemoryStore
from chatgrpc.core.clock import Now
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.core.sequencer import Sequencer
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.look_up import LookUps
from chatgrpc.edge.node import crash
from chatgrpc.embedded.ordering import LocalOrdering
from chatgrpc.metrics import Metrics
from chatgrpc.ports.chat_log import ChatLog, Entry
from chatgrpc.ports.errors import ChatDamagedError, OutcomeUnknownError, StaleOwnerError, StoreError, StoreUnavailableError
from chatgrpc.v1 import chat_pb2, content_pb2

SICK = direct_chat_id("alice", "sick")
SOUND = [direct_chat_id("alice", f"sound{number}") for number in range(5)]
NOW = Now(wall_ms=1_700_000_000_000, monotonic_ms=1_000)


class Owner:
    """A `LocalOrdering` over a store in memory that cannot append to the sick chat."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.error: Exception | None = error
        self.sick = {SICK}
        self.groups: list[list[str]] = []
        """The chats of each append that was tried."""
        store = MemoryStore()
        self._append = store.log.append
        monkeypatch.setattr(store.log, "append", self._fail_the_sick)
        self.log: ChatLog = store.log
        metrics = Metrics()
        sequencer = Sequencer(1, Limits(), random.Random(1))
        look_ups = LookUps(store.log, store.receipts, Limits().groups_by_others_max)
        self.book = DamageBook(metrics)
        self._ordering = LocalOrdering(sequencer, store.log, look_ups, self.book, metrics, lambda: None, crash)

    async def send(self, *chat_ids: str) -> dict[str, int | str]:
        """Sends alice's text to each of the chats at once; returns their seqs, or why not."""
        for chat_id in chat_ids:
            peer = "sick" if chat_id == SICK else f"sound{SOUND.index(chat_id)}"
            text = content_pb2.Content(text=content_pb2.TextContent(text="hello"))
            write = Write(chat_id, "alice", text, os.urandom(16), None, peer_user_id=peer)
            self._ordering.submit(chat_id, "session", write, NOW)
        outcomes: dict[str, int | str] = {}
        while len(outcomes) < len(chat_ids):
            for answer in self._ordering.pump(NOW).answers:
                outcome = answer.outcome
                outcomes[str(answer.ticket)] = _code(outcome) if isinstance(outcome, chat_pb2.Error) else outcome.seq
            await self._ordering.settle()
        return outcomes

    async def _fail_the_sick(self, entries: Sequence[Entry]) -> None:
        self.groups.append(sorted({entry.chat_id for entry in entries}))
        if self.error is not None and not self.sick.isdisjoint(self.groups[-1]):
            raise self.error
        await self._append(entries)


def _code(error: chat_pb2.Error) -> str:
    return chat_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverflowError("no such integer"), "CHAT_DAMAGED"),
        (StoreError("malformed"), "CHAT_DAMAGED"),
        (ChatDamagedError(SICK, "it cannot be"), "CHAT_DAMAGED"),
        (StaleOwnerError("exists"), "UNAVAILABLE"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_chat_that_cannot_be_appended_to_costs_itself_only(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    owner = Owner(monkeypatch, error)
    sent = await owner.send(*SOUND[:2], SICK, *SOUND[2:])
    assert sent == dict.fromkeys(SOUND, 2) | {SICK: code}
    assert owner.groups[0] == sorted([SICK, *SOUND]), "they were meant to be one group"
    for chat_id in SOUND:
        assert [event.seq for event in await owner.log.read_after(chat_id, 0, 9, 9, 1 << 20)] == [1, 2]
    assert await owner.log.load(SICK) is None
    is_damaged = code == "CHAT_DAMAGED"
    assert [damage.chat_id for damage in owner.book.damaged()] == ([SICK] if is_damaged else [])

    owner.error = None
    again = await owner.send(*SOUND, SICK)
    assert again == dict.fromkeys(SOUND, 3) | {SICK: code if is_damaged else 2}


@pytest.mark.parametrize("error", [StoreUnavailableError("full"), OutcomeUnknownError("who knows")], ids=["full", "unknown"])
async def test_a_store_that_fails_is_not_asked_for_each_chat(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    owner = Owner(monkeypatch, error)
    sent = await owner.send(SICK, *SOUND)
    assert set(sent.values()) == {"UNAVAILABLE"}
    assert owner.groups == [sorted([SICK, *SOUND])]
    assert owner.book.damaged() == []
    owner.error = None
    assert set((await owner.send(SICK, *SOUND)).values()) == {2}


async def test_no_chat_is_damaged_if_the_store_says_the_same_of_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a server with little to do, where each group is of one chat."""
    owner = Owner(monkeypatch, StoreError("malformed"))
    owner.sick = {SICK, *SOUND}
    assert await owner.send(SICK) == {SICK: "CHAT_DAMAGED"}
    for chat_id in (SOUND[0], SICK, *SOUND):
        assert await owner.send(chat_id) == {chat_id: "UNAVAILABLE"}
    owner.error = None
    assert set((await owner.send(SICK, *SOUND)).values()) == {2}


async def test_two_chats_are_damaged_each_by_itself_if_others_are_stored_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(monkeypatch, StoreError("malformed"))
    owner.sick = {SICK, SOUND[0]}
    for chat_id, outcome in ((SICK, "CHAT_DAMAGED"), (SOUND[1], 2), (SOUND[0], "CHAT_DAMAGED")):
        assert await owner.send(chat_id) == {chat_id: outcome}


async def test_no_chat_is_damaged_if_the_store_says_the_same_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a file that is corrupt in what all chats share."""
    owner = Owner(monkeypatch, StoreError("malformed"))
    owner.sick = {SICK, *SOUND}
    assert set((await owner.send(SICK, *SOUND)).values()) == {"UNAVAILABLE"}
    assert owner.book.damaged() == []
    owner.error = None
    assert set((await owner.send(SICK, *SOUND)).values()) == {2}
