"""A process that opens the store named by its argument, says so, and keeps it until it is killed."""

import asyncio
import sys
from pathlib import Path

from chatgrpc.adapters.sqlite import SqliteStore


async def main(path: Path) -> None:
    await SqliteStore.open(path)
    print("open", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
