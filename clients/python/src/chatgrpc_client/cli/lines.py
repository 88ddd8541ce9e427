"""Standard input, line by line, beside the event loop: from a terminal, a pipe or a file, without holding up the exit."""

import asyncio
import codecs
import os
import select
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
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # it was closed when this program began, or since
        return

    def read() -> None:
        # Reads the descriptor itself: a thread inside `sys.stdin` would hold a lock that the interpreter needs to exit.
        while room.acquire():
            chunk = _read_chunk(descriptor)
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:  # the loop has gone
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


def _read_chunk(descriptor: int) -> bytes:
    """The next bytes; none at the end, which a descriptor that cannot be read has come to."""
    while True:
        try:
            return os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:  # whoever gave it to us wants it not to block; it is only a thread that waits here
            select.select([descriptor], [], [])
        except OSError:
            return b""
