"""A few connections to one Redis: bounded waits, and its errors in one place."""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError

CONNECTIONS_MAX: Final = 4
REPLY_TIMEOUT_S: Final = 1.0
_NO_MASTER: Final = ("READONLY", "MASTERDOWN")
"""Of a copy; of one that has lost its master."""
_LONELY_MASTER: Final = "NOREPLICAS"
"""Of a master that has lost its copies: it may be cut off from the new master, or be the right one, whose copy is restarted."""
_LONELY_LEFT_INTERVAL_S: Final = 1.0


class RedisUnavailableError(Exception):
    """Redis did not do what it was asked, or nobody knows whether it did. The adapters map this to their port's error."""


class Script:
    """A Lua script of this package, one file each."""

    def __init__(self, file_name: str) -> None:
        self.text = files(__package__).joinpath(file_name).read_text(encoding="utf-8")
        self.sha1 = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        """By which Redis calls it."""


class RedisClient:
    """The connections of one node; adapters of several ports share it. Each connects when it is first needed."""

    def __init__(self, url: str, cluster: str) -> None:
        """Connects nothing yet.

        Args:
            url: `redis://[[user]:password@]host:port/database`, `rediss://…` for TLS.
            cluster: its name; keys begin with it, so that clusters may share a Redis.
        """
        self._cluster = cluster
        self._lonely_left_at_s = -math.inf
        self._redis = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                timeout=REPLY_TIMEOUT_S,
                socket_timeout=REPLY_TIMEOUT_S,
                socket_connect_timeout=REPLY_TIMEOUT_S,
                decode_responses=True,
                encoding_errors="replace",  # one value that is no text must not cost the others of its trip
                # Of a connection that a restart of Redis broke, one learns by using it. All that is asked may be asked twice.
                retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
            )
        )

    def key(self, kind: str, owner_id: str, version: int = 1) -> str:
        """The key of what is kept of this kind for a user.

        `version` is that of the format: another one stands at another key, so that nodes of two versions, as in a rolling
        upgrade, do not read each other's. Version 1 goes unnamed, as it did before there was another.
        """
        kind_and_version = kind if version == 1 else f"{kind}.v{version}"
        return f"{self._cluster}:{kind_and_version}:{owner_id}"

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[Redis]:
        """Lends the client for one trip, which ends within `REPLY_TIMEOUT_S` however many wait for a connection.

        Raises:
            RedisUnavailableError: it failed, or took too long; what was sent may still be done.
        """
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                yield self._redis
        except TimeoutError as error:
            raise RedisUnavailableError(f"Redis did not answer within {REPLY_TIMEOUT_S:g} s") from error
        except (RedisError, OSError) as error:
            if _says_that_it_is_no_master(error):
                await self._leave()
            elif _LONELY_MASTER in str(error):
                await self._leave_lonely()
            raise RedisUnavailableError(f"Redis: {type(error).__name__}: {error}") from error

    async def _leave(self) -> None:
        """What we are connected with is not the master any more: the name is looked up anew, for reads too.

        To redis-py it is an answer like others, and the connection a good one, on which reads would go on to be answered from
        what nobody writes to.
        """
        await self._redis.connection_pool.disconnect(inuse_connections=True)

    async def _leave_lonely(self) -> None:
        """The same, where it may be the master all the same: what is under way there is not cut, and it is not dialled anew at
        each write."""
        if time.monotonic() - self._lonely_left_at_s < _LONELY_LEFT_INTERVAL_S:
            return
        self._lonely_left_at_s = time.monotonic()
        pool = self._redis.connection_pool
        await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]  # once they have their answers
        await pool.disconnect(inuse_connections=False)

    async def run(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Any]:
        """Runs a script many times, by (keys, arguments), in one trip; returns what each run returned.

        Raises:
            RedisUnavailableError: some or all may have run.
        """
        async with self.bounded() as redis:
            pipeline: Pipeline = redis.pipeline(transaction=False)
            # A Redis that was restarted has forgotten it; to send it along is cheaper than to ask.
            pipeline.script_load(script.text)
            for keys, arguments in calls:
                pipeline.evalsha(script.sha1, len(keys), *keys, *arguments)
            _, *returned = await pipeline.execute()
            return returned

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


def _says_that_it_is_no_master(error: Exception) -> bool:
    """redis-py takes the word away where it knows it, and leaves it anywhere in the text of what a script or a pipeline met."""
    return isinstance(error, ReadOnlyError | MasterDownError) or any(word in str(error) for word in _NO_MASTER)
