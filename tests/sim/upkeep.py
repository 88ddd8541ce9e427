"""How an edge finds out what nobody told it: entries that the session map lost, pushes that no heartbeat names any more.

The session map is looked at all the time, and after it lost anything the node's sessions are written back. Heads are asked for,
and users' memberships are read again, where `core.doubts` says that a push may have been lost together with whoever knew of it.
The server also reads all memberships slowly every few minutes; a run is shorter, so that here nothing can rest on that.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from chatgrpc.core.doubts import Doubts
from chatgrpc.core.edge_desk import Missed
from chatgrpc.core.links import EndStream
from chatgrpc.core.session import Session, State
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError
from chatgrpc.v1 import session_pb2
from tests.sim.coordinator import View
from tests.sim.tasks import Promise, start

if TYPE_CHECKING:
    from tests.sim.edge import Edge

_LOOK_EVERY_MS = 300
_SETTLED_MS = 600
"""After a trip to the session map that failed, all is looked at once more: it may have been done late."""
_PASS_EVERY_MS = 100
_RETURNED_MS = 6_000
_REMOVED_AFTER_MS = 600
"""After its stream ended; who is back by then was never away."""


class Upkeep:
    """One edge's."""

    def __init__(self, edge: "Edge") -> None:
        self._edge = edge
        self._node = edge.node
        self._map = edge.node.session_map
        self._canary = SessionEntry(f"!{edge.node.node_id}", "canary", edge.node.node_id)
        self._map_is_suspect = True
        self._look_again_at_ms = 0
        self._is_looking = False
        self._doubts: Doubts[str] = edge.node.parts.doubts(_RETURNED_MS)
        self._is_passing = False
        self._node.every(_LOOK_EVERY_MS, self._look)
        self._node.every(_PASS_EVERY_MS, self._look_again)

    # The session map.

    async def appeared(self, user_id: str, device_id: str) -> None:
        """A device is here. If the map does not take it, it is written with all others later."""
        try:
            others = await self._map.put([SessionEntry(user_id, device_id, self._node.node_id)])
        except SessionMapUnavailableError:
            self._map_is_suspect = True
            return
        for other in others:
            self._node.send(other.node_id, EndStream(user_id, device_id, session_pb2.DISCONNECT_CODE_REPLACED))

    async def end_stream(self, message: EndStream) -> None:
        """Another node says that the device is there now. That may be old: the map knows."""
        try:
            found = await self._map.of_users([message.user_id])
        except SessionMapUnavailableError:
            return
        here = SessionEntry(message.user_id, message.device_id, self._node.node_id)
        of_device = [entry for entry in found.get(message.user_id, ()) if entry.device_id == message.device_id]
        if of_device and of_device[-1] != here:
            self._edge.end_device(message.user_id, message.device_id)

    def disappeared(self, user_id: str, device_id: str) -> None:
        """A device's stream ended."""
        self._node.after(_REMOVED_AFTER_MS, lambda: start(self._remove(SessionEntry(user_id, device_id, self._node.node_id))))

    async def _remove(self, entry: SessionEntry) -> None:
        if entry in self._entries():
            return
        try:
            await self._map.remove([entry])
        except SessionMapUnavailableError:
            self._map_is_suspect = True

    def _look(self) -> None:
        if not self._is_looking:
            start(self._look_at_map())

    async def _look_at_map(self) -> None:
        """Writes everything back if the map has lost our canary, or did not take something."""
        self._is_looking = True
        try:
            found = await self._map.of_users([self._canary.user_id])
            settled = 0 < self._look_again_at_ms <= self._node.world.now_ms
            if self._map_is_suspect or settled or not found:
                await self._write_back()
        except SessionMapUnavailableError:
            pass
        self._is_looking = False

    async def _write_back(self) -> None:
        self._look_again_at_ms = self._node.world.now_ms + _SETTLED_MS if self._map_is_suspect else 0
        self._map_is_suspect = False
        try:
            # The canary first: if the map loses everything after this, the next look sees it; if before, the reading here does.
            await self._map.put([self._canary])
            await self._map.put(await self._node.parts.lacking(self._entries(), self._map))
        except SessionMapUnavailableError:
            self._map_is_suspect = True
            raise
        self._node.note("has written its sessions back")
        self._doubts.suspect_all()

    def _entries(self) -> list[SessionEntry]:
        return [
            SessionEntry(stream.device.user_id, stream.device.device_id, self._node.node_id)
            for session, stream in self._edge.open_sessions()
            if session.device_id
        ]

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
                for chat_id in session.feed.open_chats():
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
        events: list[bytes] = []
        after_seq = missed.after_seq
        while after_seq < missed.seq:
            page = await self._node.store.read_after(chat_id, after_seq, missed.seq, 100, lambda: True)
            events += [event.event for event in page]
            after_seq = page[-1].seq
        user_ids = self._node.parts.users_changed(events)
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
