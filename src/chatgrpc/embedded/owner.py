"""The shell around the sequencer: runs its reads and appends, one group at a time, and brings back what became of them.

While one group is being committed the next one fills up: that is the group commit. Everything here runs on the event loop's
thread; the store's answers wake the tick loop, which then calls `pump`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from time import perf_counter
from typing import Any

import structlog

from chatgrpc.core.active_chat import ActiveChat, Ticket
from chatgrpc.core.entries import StoredChat, StoredEvent
from chatgrpc.core.sequencer import Delivery, Group, Lookup, Sequencer
from chatgrpc.core.write import Write
from chatgrpc.edge.ordering import Progress
from chatgrpc.metrics import Metrics
from chatgrpc.ports.chat_log import ChatLog
from chatgrpc.ports.errors import StoreError

_log = structlog.get_logger()

_PAGE_EVENTS = 1_000
_PAGE_BYTES = 4 * 1024 * 1024

ChatCallback = Callable[[ActiveChat | None], None]


class Owner:
    """`edge.ordering.Ordering`: owns all chats of this process."""

    def __init__(self, sequencer: Sequencer, log: ChatLog, metrics: Metrics, wake_up: Callable[[], None]) -> None:
        self._sequencer = sequencer
        self._log = log
        self._metrics = metrics
        self._wake_up = wake_up
        self._tasks: set[asyncio.Task[None]] = set()
        self._group_under_way = False
        self._finished_groups: list[tuple[Group, bool]] = []
        self._loaded: list[tuple[ActiveChat, StoredChat | None]] = []
        self._looked_up: list[tuple[Lookup, list[StoredEvent], dict[str, int]]] = []
        self._failed_reads: list[ActiveChat] = []
        self._waiting_for_chat: dict[str, dict[Hashable, ChatCallback]] = {}

    async def settle(self) -> None:
        """See the protocol."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def submit(self, ticket: Ticket, session_id: str, write: Write, now_ms: int) -> None:
        """See the protocol; the sequencer orders as it is called."""
        self._sequencer.submit(ticket, write, now_ms)

    def session_closed(self, session_id: str) -> None:
        """See the protocol; the write under way has its answer, and nobody looks at it."""

    def pass_time(self, now_ms: int) -> None:
        """See the protocol; nothing waits here but for the store, which answers."""

    def with_chat(self, chat_id: str, asker: Hashable, callback: ChatCallback) -> None:
        """Calls back with the chat, now if it is loaded, else when it is; with None if there is none, or it cannot be read.

        Of each `asker` only the last callback waits.
        """
        if self._sequencer.activate(chat_id):
            callback(self._sequencer.chat(chat_id))
            return
        self._waiting_for_chat.setdefault(chat_id, {})[asker] = callback
        self._wake_up()

    def pump(self, now_ms: int) -> Progress:
        """See the protocol: takes in what the store answered, and starts what the sequencer wants next."""
        deliveries: list[Delivery] = []
        finished, self._finished_groups = self._finished_groups, []
        for group, committed in finished:
            if committed:
                deliveries += self._sequencer.committed(group)
            else:
                self._sequencer.failed(group)
        self._take_reads(now_ms)
        for chat in self._sequencer.take_loads():
            self._start(self._load(chat))
        for lookup in self._sequencer.take_lookups():
            self._start(self._look_up(lookup))
        if not self._group_under_way:
            group_to_append = self._sequencer.take_group()
            if group_to_append is not None:
                self._group_under_way = True
                self._start(self._append(group_to_append))
        return Progress(self._sequencer.take_answers(), deliveries)

    def _take_reads(self, now_ms: int) -> None:
        loaded, self._loaded = self._loaded, []
        for chat, stored in loaded:
            self._sequencer.loaded(chat, stored, now_ms)
            self._call_back(chat.chat_id)
        looked_up, self._looked_up = self._looked_up, []
        for lookup, events, chat_counts in looked_up:
            self._sequencer.looked_up(lookup, events, chat_counts, now_ms)
        failed, self._failed_reads = self._failed_reads, []
        for chat in failed:
            self._sequencer.read_failed(chat)
            self._call_back(chat.chat_id)

    def _call_back(self, chat_id: str) -> None:
        for callback in self._waiting_for_chat.pop(chat_id, {}).values():
            callback(self._sequencer.chat(chat_id))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _append(self, group: Group) -> None:
        started_s = perf_counter()
        committed = False
        try:
            await self._log.append(group.entries)
            committed = True
        except Exception as error:
            _report("append_failed", error, entries=len(group.entries))
        if committed:
            self._metrics.group_commit_seconds.observe(perf_counter() - started_s)
            self._metrics.group_commit_events.observe(len(group.entries))
            self._metrics.events_committed.inc(len(group.entries))
        self._group_under_way = False
        self._finished_groups.append((group, committed))
        self._wake_up()

    async def _load(self, chat: ActiveChat) -> None:
        try:
            stored = await self._log.load(chat.chat_id)
            self._loaded.append((chat, stored))  # the list of now: `pump` puts a new one in its place while this waits
        except Exception as error:
            _report("load_failed", error, chat_id=chat.chat_id)
            self._failed_reads.append(chat)
        self._wake_up()

    async def _look_up(self, lookup: Lookup) -> None:
        chat_id = lookup.chat.chat_id
        try:
            events: list[StoredEvent] = []
            for after_seq, up_to_seq in lookup.ranges:
                while after_seq < up_to_seq:
                    page = await self._log.read_after(chat_id, after_seq, up_to_seq, _PAGE_EVENTS, _PAGE_BYTES)
                    if not page:
                        break
                    events += page
                    after_seq = page[-1].seq  # noqa: PLW2901  the range shrinks as it is read
            chat_counts = await self._log.count_chats(lookup.user_ids) if lookup.user_ids else {}
            self._looked_up.append((lookup, events, chat_counts))
        except Exception as error:
            _report("look_up_failed", error, chat_id=chat_id)
            self._failed_reads.append(lookup.chat)
        self._wake_up()


def _report(event: str, error: Exception, **context: object) -> None:
    """Logs why the store did not answer; what is not the store's own error is a defect, and its traceback is wanted."""
    _log.error(event, error=str(error), exc_info=None if isinstance(error, StoreError) else error, **context)
