"""Waiting for news and for the time, whichever comes first."""

import asyncio
import contextlib


async def news_or_time(news: asyncio.Event, at_s: float) -> bool:
    """Returns once there is news, which is then cleared, or at this time of the event loop; whether the time has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(at_s):
            await news.wait()
    news.clear()
    return asyncio.get_running_loop().time() >= at_s
