"""How an edge finds out what nobody told it: entries that the session map lost, pushes that no heartbeat names any more.

The session map is looked at all the time, and after it lost anything the node's sessions are written back. Heads are asked for,
and users' memberships are read again, where `core.doubts` says that a push may have been lost together with whoever knew of it.
The server also reads all memberships slowly every few minutes; a run is shorter, so that here nothing can rest on that.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

from chatgrpc.core.doubts import Doubts
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.links import EndStream
from chatgrpc.core.session import Session, State
from chatgrpc.core.session_book import Answer, Look, News, Put, Read, Remove, Trip
from chatgrpc.ports.session_map import SessionMapUnavailableError
from chatgrpc.v1 import session_pb2
from tests.sim.coordinator import View
from tests.sim.tasks import Promise, start

if TYPE_CHECKING:
    from tests.sim.edge import Edge

_LOOK_EVERY_MS = 300
_PASS_EVERY_MS = 100
_EVENTS_MAX = 4
"""So few missed events of a chat are read; of more its members are looked at."""
_RETURNED_MS = 6_000
_NEVER_MS = 1_000_000
"""Within a run. What the server does every few minutes without a reason nothing here may rest on."""


class Upkeep:
    """One edge's."""

    def __init__(self, edge: "Edge") -> None:
        self._edge = edge
        self._node = edge.node
        self._map = edge.node.session_map
        self._book = edge.node.parts.session_book(
            edge.node.node_id,
            linger_ms=600,
            audit_interval_ms=_NEVER_MS,
            settled_ms=600,
            tell_interval_ms=1_000,
        )
        self._is_under_way = False
        self._doubts: Doubts[str] = edge.node.parts.doubts(_RETURNED_MS)
        self._is_passing = False
        self._node.every(_LOOK_EVERY_MS, self._look)
        self._node.every(_PASS_EVERY_MS, self._look_again)

    # The session map: `core.session_book` says what is written when.

    async def appeared(self, user_id: str, device_id: str) -> None:
        """A device is here; returns when the map says so, or later does."""
        written: Promise[None] = Promise()
        self._book.opened((user_id, device_id), written)
        self._go_on()
        await written

    async def end_stream(self, message: EndStream) -> None:
        """Another node says that the device is there now. That may be old: the map knows."""
        verdict: Promise[bool] = Promise()
        self._book.ask_moved((message.user_id, message.device_id), verdict, self._now_ms())
        self._go_on()
        if await verdict:
            self._edge.end_device(message.user_id, message.device_id)

    def disappeared(self, user_id: str, device_id: str) -> None:
        """A device's stream ended."""
        if not any(of.device.user_id == user_id and of.device.device_id == device_id for _, of in self._edge.open_sessions()):
            self._book.closed((user_id, device_id), self._now_ms())

    def _look(self) -> None:
        self._book.look(self._now_ms())
        self._go_on()

    def _go_on(self) -> None:
        if not self._is_under_way:
            start(self._make_trips())

    async def _make_trips(self) -> None:
        self._is_under_way = True
        while (trip := self._book.next_trip(self._now_ms())) is not None:
            try:
                answer = await self._ask(trip)
            except SessionMapUnavailableError:
                self._book.failed(self._now_ms())
            else:
                self._book.answered(answer, self._now_ms())
            self._hear(self._book.take_news())
        self._is_under_way = False
        self._hear(self._book.take_news())

    async def _ask(self, trip: Trip) -> Answer:
        match trip:
            case Look(user_id=user_id):
                return await self._map.stands(user_id)
            case Read(user_ids=user_ids):
                return [entry for entries in (await self._map.of_users(user_ids)).values() for entry in entries]
            case Put(entries=entries):
                return await self._map.put(entries)
            case Remove(entries=entries):
                await self._map.remove(entries)
                return ()

    def _hear(self, news: News) -> None:
        for written in news.written:
            cast("Promise[None]", written).keep(None)
        for verdict, has_moved in news.verdicts:
            cast("Promise[bool]", verdict).keep(has_moved)
        for other in news.moved:
            replaced = EndStream(other.user_id, other.device_id, session_pb2.DISCONNECT_CODE_REPLACED)
            self._node.send(other.node_id, replaced)
        if news.wrote_back:
            self._node.note("has written its sessions back")
        if news.in_doubt:
            self._doubts.suspect_all()

    # Heads and memberships: `core.doubts` says whose, and of which chats.

    def cluster_changed(self, view: View) -> None:
        """Nodes that are gone took along what they had not said yet."""
        self._doubts.see(view.owners, view.nodes)

    def returned(self) -> None:
        """The node has joined again after it had lost its lease."""
        self._doubts.returned(self._now_ms())

    def link_is_up(self, node_id: str) -> None:
        """There is a link with this node, for the first time or again."""
        self._doubts.linked(node_id, self._now_ms())

    def missed(self, missed: Mapping[str, Missed]) -> None:
        """Pushes were lost, that may have let a user in, or out."""
        self._doubts.missed(missed.keys(), self._sessions())
        for chat_id, found in missed.items():
            start(self._find_missed(chat_id, found))

    def _sessions(self) -> list[tuple[str, State]]:
        return [(session.session_id, session.state) for session, _ in self._edge.open_sessions()]

    def _look_again(self) -> None:
        if self._doubts.wanted and not self._is_passing:
            start(self._pass())

    async def _pass(self) -> None:
        """One at a time: heads are asked for, and then memberships are read, one session after the other."""
        self._is_passing = True
        work = self._doubts.take(self._sessions())
        for session_id, doubt in work:
            for session in self._session(session_id):
                for chat_id in session.feed.chats_in_doubt():
                    if doubt.concerns(chat_id, self._node.cluster.shard_of):
                        start(self._ask_head(session_id, chat_id))
        for session_id, doubt in work:
            if doubt.memberships or doubt.chats:
                await self._wait(self._node.world.between(1, 10))
                for session in self._session(session_id):
                    await self._read_memberships(session, None if doubt.memberships else doubt.chats)
        self._is_passing = False

    async def _ask_head(self, session_id: str, chat_id: str) -> None:
        head_seq = await self._edge.head_of(chat_id)
        for session in self._session(session_id):
            session.note_head(chat_id, head_seq)
            self._edge.flush(session)

    async def _read_memberships(self, session: Session, of_chats: Collection[str] | None) -> None:
        found = await self._node.store.memberships(session.user_id, lambda: True)
        if of_chats is not None:
            found = {
                chat_id: intervals
                for chat_id, intervals in found.items()
                if chat_id in of_chats and not session.feed.knows(chat_id)
            }
        self._edge.note_memberships(session, found)

    async def _find_missed(self, chat_id: str, missed: Missed) -> None:
        """Tells the users whom the missed events let in or out."""
        user_ids = await self._node.parts.users_concerned(self._edge.reader(), chat_id, missed, _EVENTS_MAX)
        for session, _ in self._edge.open_sessions():
            if session.state is State.OPEN and session.user_id in user_ids:
                found = await self._node.store.memberships(session.user_id, lambda: True)
                self._edge.note_memberships(session, {chat_id: found[chat_id]} if chat_id in found else {})

    def _session(self, session_id: str) -> list[Session]:
        """Itself, if it is still there."""
        return [session for session, _ in self._edge.open_sessions() if session.session_id == session_id]

    def _now_ms(self) -> int:
        return self._node.now().monotonic_ms

    async def _wait(self, delay_ms: int) -> None:
        over: Promise[None] = Promise()
        self._node.after(delay_ms, lambda: over.keep(None))
        await over
