"""Random writes in random order leave the same in each engine, and in the plain memory one beside it."""

import secrets
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatgrpc.adapters.memory import MemoryRowStore
from chatgrpc.core.epochs import Row
from chatgrpc.core.row_store import ReadBucket, ReadHead, StoreWrite, WriteBoundary, WriteMark
from chatgrpc.ports.errors import ChatDamagedError
from tests.contract.rows.writes import BYTES_MAX, Rows, row, views
from tests.contract.stores.entries import view

SEQS = (1, 2, 3, 9_999, 10_000)
USERS = ("alice", "bob")

seqs = st.sampled_from(SEQS)
epochs = st.integers(1, 4)

Step = tuple[str, int, int, int, int]
"""A write to make: its kind and four numbers, whose meaning depends on the kind."""
steps = st.tuples(
    st.sampled_from(["row"] * 4 + ["boundary", "mark", "view", "amends", "erases"]), seqs, epochs, seqs, st.integers(0, 1)
)


def write_of(chat_id: str, step: Step) -> StoreWrite | WriteMark:
    kind, seq, epoch, other, number = step
    match kind:
        case "row":
            return row(chat_id, seq, epoch)
        case "boundary":
            return WriteBoundary(chat_id, number, epoch, other)
        case "mark":
            return WriteMark(chat_id, seq)
        case "view":
            return views(chat_id, seq, view(b"%d" % seq, **{f"{USERS[number]}{chat_id}": (1, seq - 1)}), epoch=epoch)
        case "amends":
            return views(chat_id, seq, epoch=epoch, amends_seq=other)
    return views(chat_id, seq, epoch=epoch, erases_seq=other)


async def write(rows: Rows, step: StoreWrite | WriteMark) -> None:
    if isinstance(step, WriteMark):
        await rows.store.write_marks([step])
    else:
        await rows.write(step)


async def everything(rows: Rows, chat_id: str, pages: list[tuple[int, int]]) -> list[object]:
    buckets = [await rows.store.read_bucket(ReadBucket(chat_id, bucket, 0)) for bucket in (0, 1)]
    return [
        [(sorted(bucket.rows, key=_place), bucket.boundaries) for bucket in buckets],
        await rows.store.read_head(ReadHead(chat_id)),
        [await rows.committed.intervals_of_user(f"{user}{chat_id}", "", 10) for user in USERS],
        [await rows.committed.intervals_of_user(f"{user}{chat_id}", "", 10, present_only=True) for user in USERS],
        [await rows.committed.read_after(chat_id, *page, 10, BYTES_MAX) for page in pages],
        await rows.committed.count_groups([f"{user}{chat_id}" for user in USERS]),
    ]


async def pages_without_a_hole(rows: Rows, chat_id: str) -> list[tuple[int, int]]:
    """Those that a reader need not wait for in vain: after which seq, up to which."""
    pages = [(0, 3), (9_998, 10_000), *((seq - 1, seq) for seq in SEQS)]
    whole = []
    for page in pages:
        with suppress(ChatDamagedError):
            await rows.committed.read_after(chat_id, *page, 10, BYTES_MAX)
            whole.append(page)
    return whole


def _place(row: Row) -> tuple[int, int]:
    return row.seq, row.epoch


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=st.lists(steps, max_size=25))
async def test_random_writes_leave_the_same(rows: Rows, plan: list[Step]) -> None:
    chat_id = f"g.{secrets.token_hex(11)}"
    memory = MemoryRowStore()
    model = Rows(memory, memory)
    for step in plan:
        await write(model, write_of(chat_id, step))
        await write(rows, write_of(chat_id, step))
    pages = await pages_without_a_hole(model, chat_id)
    assert await everything(rows, chat_id, pages) == await everything(model, chat_id, pages)
