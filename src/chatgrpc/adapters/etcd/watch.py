"""Every change of the keys with a prefix, in order, through broken connections and compaction."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

import structlog

from chatgrpc import background
from chatgrpc.adapters.etcd.client import EtcdClient, EtcdError, EtcdStream
from chatgrpc.adapters.etcd.wire_pb2 import (
    Event,
    KeyValue,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)

SILENCE_MAX_S: Final = 3.0
"""After so long without a word the member is given up."""
_ASK_EVERY_S: Final = 1.0
_PAUSES_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0)
"""Before the first, second, … try to watch again; the last one for all that follow."""

_log = structlog.get_logger(__name__)
_Stream = EtcdStream[WatchRequest, WatchResponse]


class _CompactedError(Exception):
    """What happened since the revision that was asked for is no longer kept."""


class PrefixWatch:
    """Reads the keys below a prefix once, and then tells what happens to them."""

    def __init__(
        self,
        client: EtcdClient,
        prefix: bytes,
        on_snapshot: Callable[[Iterable[KeyValue]], None],
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        """Reads nothing yet.

        Args:
            client: of etcd.
            prefix: of the keys.
            on_snapshot: called with all keys, first, and again when changes were missed.
            on_events: called with what changed since.
        """
        self.revision = 0
        """What was told is as of this revision of the store."""
        self._client = client
        self._prefix = prefix
        self._end = prefix[:-1] + bytes([prefix[-1] + 1])
        self._on_snapshot = on_snapshot
        self._on_events = on_events
        self._follower: asyncio.Task[None] | None = None
        self._has_failed = False

    async def start(self) -> None:
        """Reads the keys, calls for the first time, and follows.

        Raises:
            EtcdError: etcd does not answer.
        """
        await self._read_all()
        following = background.again(self._follow_anew, "etcd-watch")
        self._follower = background.start(following, background.logged("etcd-watch"), name="etcd-watch")

    def stop(self) -> None:
        """Calls no more."""
        if self._follower is not None:
            self._follower.cancel()

    async def _read_all(self) -> None:
        read = await self._client.range(self._prefix, self._end)
        self.revision = read.header.revision
        self._on_snapshot(read.kvs)

    async def _follow_anew(self) -> NoReturn:
        """What ended the last time may have been told in part: so all is read again, before changes are followed."""
        if self._has_failed:
            await self._read_all()
        self._has_failed = True
        await self._follow()

    async def _follow(self) -> NoReturn:
        failures = 0
        while True:
            before = self.revision
            stream = self._client.watch()
            try:
                await self._follow_stream(stream)
            except _CompactedError:
                _log.info("watch_compacted", revision=self.revision)
                failures = await self._try_to_read_all(failures)
            except (EtcdError, TimeoutError) as error:
                failures = 1 if self.revision > before else failures + 1
                _log.info("watch_broken", error=str(error) or "silence", failures=failures)
            finally:
                stream.drop(failed=True)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    async def _try_to_read_all(self, failures: int) -> int:
        try:
            await self._read_all()
        except EtcdError:
            return failures + 1
        return 0

    async def _follow_stream(self, stream: _Stream) -> None:
        create = WatchCreateRequest(key=self._prefix, range_end=self._end, start_revision=self.revision + 1)
        async with asyncio.timeout(SILENCE_MAX_S):
            await stream.send(WatchRequest(create=create))
        asking = background.start(_ask_for_life(stream), background.logged("etcd-watch"))  # without it, silence ends the stream
        try:
            while True:
                async with asyncio.timeout(SILENCE_MAX_S):
                    response = await stream.receive()
                if response.compact_revision:
                    raise _CompactedError
                if response.canceled:
                    raise EtcdError(f"etcd ended the watch: {response.cancel_reason}")
                if response.events:
                    # The last event's revision, not the answer's own: that may run ahead of events that are still to come.
                    self.revision = response.events[-1].kv.mod_revision
                    self._on_events(response.events)
        finally:
            asking.cancel()


async def _ask_for_life(stream: _Stream) -> None:
    while True:
        await asyncio.sleep(_ASK_EVERY_S)
        try:
            await stream.send(WatchRequest(progress=WatchProgressRequest()))
        except EtcdError:
            return  # whoever reads the stream learns it too
