"""A process that appends to a store as fast as it can, until somebody kills it.

For each folder named on standard input it forks a child that opens the store there and writes; the child's pid is printed, then
`chat seq` for every acknowledged entry, and `dead` when it is.
"""

import asyncio
import os
import sys
from pathlib import Path

from chatgrpc.adapters.sqlite import SqliteStore
from tests.contract.stores.entries import entry, view

CHATS = [f"g.{number:022}" for number in range(4)]
GROUP = 3


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def append_for_ever(folder: Path) -> None:
    store = await SqliteStore.open(folder / "chatgrpc.db")

    async def fill(chat_id: str) -> None:
        chat = await store.log.load(chat_id)
        seq = 0 if chat is None else chat.head_seq
        while True:
            group = [entry(chat_id, seq + n, f"message {seq + n}") for n in range(1, GROUP)]
            seq += GROUP
            group.append(entry(chat_id, seq, f"message {seq}", view=view(str(seq).encode(), alice=(seq, 0))))
            await store.log.append(group)
            for done in group:
                say(f"{chat_id} {done.seq}")

    await asyncio.gather(*map(fill, CHATS))


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(append_for_ever(Path(line.rstrip("\n"))))
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
