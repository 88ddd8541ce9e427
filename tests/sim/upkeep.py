"""How an edge finds out what nobody told it: entries that the session map lost, pushes that no heartbeat names any more.

The rules of the server (`cluster/`): the session map is looked at all the time, and after it lost anything the node's sessions
are written back; heads are asked for, and the users' memberships are read again, whenever a push may have been lost together
with whoever knew of it. The server also reads all memberships slowly every few minutes; a run is shorter, so that here nothing
can rest on that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from chatgrpc.core.links import EndStream
from chatgrpc.core.session import Session
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError
from chatgrpc.v1 import session_pb2
from tests.sim.coordinator import View
from tests.sim.tasks import Promise, start

if TYPE_CHECKING:
    from tests.sim.edge import Edge

_LOOK_EVERY_MS = 300
_SETTLED_MS = 600
"""After a trip to the session map that failed, all is looked at once more: it may have been done late."""
_REMOVED_AFTER_MS = 600
"""After its stream ended; who is back by then was never away."""


class Upkeep:
    """One edge's."""

    def __init__(self, edge: "Edge") -> None:
        self.generation = 0
        """Rises whenever sessions are told to look again."""
        self._edge = edge
        self._node = edge.node
        self._map = edge.node.session_map
        self._canary = SessionEntry(f"!{edge.node.node_id}", "canary", edge.node.node_id)
        self._map_is_suspect = True
        self._look_again_at_ms = 0
        self._owned_by: dict[str, dict[int, None]] = {}
        self._linked_before: dict[str, None] = {}
        self._is_looking = False
        self._is_reading = False
        self._read_again = False
        self._node.every(_LOOK_EVERY_MS, self._look)

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
        self._ask_heads(lambda chat_id: True)
        self._read_memberships()

    def _entries(self) -> list[SessionEntry]:
        return [
            SessionEntry(stream.device.user_id, stream.device.device_id, self._node.node_id)
            for session, stream in self._edge.open_sessions()
            if session.device_id
        ]

    # Heads and memberships.

    def cluster_changed(self, before: View, view: View) -> None:
        """Nodes that are gone took along what they had not said yet; if we were gone, all others may have left us out."""
        node_id = self._node.node_id
        for shard, owner in view.owners.items():
            self._owned_by.setdefault(owner.node_id, {})[shard] = None
        gone = [other for other in before.nodes if other not in view.nodes]
        if gone:
            shards = self._node.parts.suspects(gone, before, self._owned_by)
            self._ask_heads(lambda chat_id: self._node.cluster.shard_of(chat_id) in shards)
            self._read_memberships()
        if before.nodes and node_id in view.nodes and node_id not in before.nodes:
            self._ask_heads(lambda chat_id: True)
            self._read_memberships()

    def link_is_up(self, node_id: str) -> None:
        """If it was lost, the other node may have taken this one for dead, pushed nothing, and know of nothing to push."""
        if node_id in self._linked_before:
            self._ask_heads(lambda chat_id: True)
            self._read_memberships()
        self._linked_before[node_id] = None

    def missed(self) -> None:
        """A push was lost that may have let a user in, or out."""
        self._read_memberships()

    async def catch_up_one(self, session: Session, user_id: str) -> None:
        """Anything that concerns this session may have been lost."""
        for chat_id in session.feed.open_chats():
            start(self._ask_head(chat_id))
        self._edge.note_memberships(session, await self._node.store.memberships(user_id, lambda: True))

    def _ask_heads(self, concerns: Callable[[str], bool]) -> None:
        self.generation += 1
        chat_ids = [chat_id for session, _ in self._edge.open_sessions() for chat_id in session.feed.open_chats()]
        for chat_id in dict.fromkeys(chat_ids):
            if concerns(chat_id):
                start(self._ask_head(chat_id))

    async def _ask_head(self, chat_id: str) -> None:
        self._edge.note_head(chat_id, await self._edge.head_of(chat_id))

    def _read_memberships(self) -> None:
        self.generation += 1
        self._read_again = True
        if not self._is_reading:
            start(self._read_all_memberships())

    async def _read_all_memberships(self) -> None:
        """One pass at a time, one session after the other; again if there was a reason since this pass began."""
        self._is_reading = True
        while self._read_again:
            self._read_again = False
            for session, stream in self._edge.open_sessions():
                await self._wait(self._node.world.between(1, 10))
                found = await self._node.store.memberships(stream.device.user_id, lambda: True)
                self._edge.note_memberships(session, found)
        self._is_reading = False

    async def _wait(self, delay_ms: int) -> None:
        over: Promise[None] = Promise()
        self._node.after(delay_ms, lambda: over.keep(None))
        await over
