"""Standard input, line by line, beside the event loop: from a terminal, a pipe or a file, without holding up the exit."""

import asyncio
import codecs
import os
import sys
import threading
from collections.abc import AsyncIterator

CHUNK_BYTES = 65_536
CHUNKS_AHEAD = 4


async def stdin_lines() -> AsyncIterator[str]:
    """The lines of standard input without their ends; read no faster than they are taken."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(CHUNKS_AHEAD)
    descriptor = sys.stdin.fileno()

    def read() -> None:
        # Reads the descriptor itself: a thread inside `sys.stdin` would hold a lock that the interpreter needs to exit.
        while room.acquire():
            try:
                chunk = os.read(descriptor, CHUNK_BYTES)
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except (OSError, RuntimeError):  # closed, or the loop has gone
                return
            if not chunk:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while chunk := await chunks.get():
        room.release()
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield line.removesuffix("\r")
    if rest:
        yield rest
