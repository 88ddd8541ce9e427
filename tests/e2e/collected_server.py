"""A server whose garbage is counted: `python -m tests.e2e.collected_server FOLDER`.

Settings come from the environment. It prints its port; for each line on standard input it prints, as JSON by type, how many
objects that refer to each other in circles nobody else refers to, of those that came about since the line before.
"""

import asyncio
import collections
import gc
import json
import os
import sys
from pathlib import Path

from chatgrpc import logs
from chatgrpc.config import load_settings
from chatgrpc.process.run import serving


async def main(folder: Path) -> None:
    """Serves until standard input ends."""
    os.environ["CHATGRPC_DATA_DIR"] = str(folder)
    logs.configure("warning", "json")  # to standard error
    lines: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
    async with serving(load_settings({}).settings) as port:
        print(json.dumps(port), flush=True)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.disable()
        while await lines.get():
            gc.collect()
            print(
                json.dumps(collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)),
                flush=True,
            )
            gc.garbage.clear()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
