"""Writes for tests of rows, and running them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgrpc.core.entries import ChatView, Entry
from chatgrpc.core.epochs import Row, bucket_of
from chatgrpc.core.row_store import StoreWrite, WriteRow, WriteViews
from chatgrpc.ports.errors import StoreError
from chatgrpc.ports.row_store import CommittedLog, RowStore
from tests.contract.stores.entries import event

BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """The two ports of one engine."""

    store: RowStore
    committed: CommittedLog

    async def write(self, *writes: StoreWrite) -> None:
        """Writes, and waits until all is reported, each write once and none as failed."""
        errors = await self.try_to_write(*writes)
        assert errors == [None] * len(writes)

    async def try_to_write(self, *writes: StoreWrite) -> list[StoreError | None]:
        """Writes, and waits until all is reported, each write once; what became of each, in any order."""
        reported: list[StoreWrite] = []
        errors: list[StoreError | None] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written(part: Sequence[StoreWrite], error: StoreError | None) -> None:
            reported.extend(part)
            errors.extend([error] * len(part))
            if len(reported) == len(writes):
                done.set_result(None)

        self.store.write(writes, written)
        assert not reported, "it is reported by the event loop, not by the call"
        await asyncio.wait_for(done, 30)
        await asyncio.sleep(0)
        assert Counter(map(id, reported)) == Counter(map(id, writes))
        return errors


def row(chat_id: str, seq: int, epoch: int = 1, text: str | None = None) -> WriteRow:
    """A row with a text message."""
    said = f"message {seq} of {epoch}" if text is None else text
    return WriteRow(chat_id, bucket_of(seq), Row(seq, epoch, event(chat_id, seq, said)))


def log(chat_id: str, seqs: Iterable[int], epoch: int = 1) -> list[WriteRow]:
    """Rows at these seqs."""
    return [row(chat_id, seq, epoch) for seq in seqs]


def views(
    chat_id: str, seq: int, view: ChatView | None = None, *, epoch: int = 1, amends_seq: int = 0, erases_seq: int = 0
) -> WriteViews:
    """What follows from an event."""
    return WriteViews(Entry(chat_id, seq, epoch, event(chat_id, seq, ""), amends_seq, erases_seq, view))
