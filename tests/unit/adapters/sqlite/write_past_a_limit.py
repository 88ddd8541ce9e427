"""A process whose files may not grow past a limit, which the operating system enforces in the middle of a write.

Prints the outcome of each append in the folder named by its argument; then the limit goes, and it prints the outcomes of more.
"""

import asyncio
import resource
import sys
from pathlib import Path

from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.ports.errors import StoreError
from tests.contract.stores.entries import entry

CHAT = "g.AAAAAAAAAAAAAAAAAAAAAA"
TEXT = "x" * 20_000
LIMIT_BYTES = 600_000


async def append(store: SqliteStore, seq: int) -> str:
    try:
        await store.log.append([entry(CHAT, seq, TEXT), entry(CHAT, seq + 1, TEXT)])
    except StoreError as error:
        return type(error).__name__
    return "stored"


async def main(folder: Path) -> None:
    store = await SqliteStore.open(folder / "chatgrpc.db")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    seq = 1
    for _ in range(40):
        outcome = await append(store, seq)
        sys.stdout.write(f"{seq} {outcome}\n")
        chat = await store.log.load(CHAT)
        seq = 1 if chat is None else chat.head_seq + 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    sys.stdout.write("unlimited\n")
    for _ in range(5):
        sys.stdout.write(f"{seq} {await append(store, seq)}\n")
        seq += 2
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
