"""Who is told what besides events, where everyone may be connected to any node.

Receipts and typing go to the chat's owner, who knows whom they concern. A receipt goes there twice: when the mark rises, and
when it is stored, for whoever came in between, too late for the one and too early for the other.

Presence is read from the session map: of all whom somebody on this node has on the screen, once in a while and for all of them
in one trip. So nothing has to be told when a user comes or goes, and nothing is wrong for long when it was not.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias, cast

import structlog

from chatgrpc.cluster.sessions import Sessions
from chatgrpc.core.disconnect import Code
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.links import EndStream, Message, RaiseMark, ShowReceipt, ShowTyping, TellTyping
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.audience import Touched
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.ports.last_seen import LastSeen, LastSeenUnavailableError
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError
from chatgrpc.v1 import chat_pb2, session_pb2

_log = structlog.get_logger()

_LOOK_INTERVAL_S = 2.0
_END_AGAIN_MS = 10_000
"""Outlasts an admission that had begun."""
_SHOWN_AGAIN_AFTER_MS = 4_000
"""A receipt that a device was shown is not shown to it again before that: the second telling is for others."""

_TypingKind: TypeAlias = session_pb2.TypingKind.ValueType

Presence = tuple[bool, int]
"""Whether a user is online, and when they were seen last if not, in milliseconds since the Unix epoch; 0 = not known."""


class ClusterAudience:
    """`edge.audience.Audience` and what owners tell it."""

    def __init__(
        self,
        connections: Connections,
        touched: Touched,
        desk: EdgeDesk,
        sessions: Sessions,
        last_seen: LastSeen,
        live_node_ids: Callable[[], Collection[str]],
        say: Callable[[str, Message], None],
        monotonic_ms: Callable[[], int],
    ) -> None:
        self._connections = connections
        self._touched = touched
        self._desk = desk
        self._sessions = sessions
        self._last_seen = last_seen
        self._live_node_ids = live_node_ids
        self._say = say
        self._monotonic_ms = monotonic_ms
        self._screens: dict[Connection, tuple[str, ...]] = {}  # the chats that each watches
        self._on_screen: dict[str, dict[Connection, None]] = {}  # the same by chat
        self._members: dict[Connection, dict[str, tuple[str, ...]]] = {}  # of the chats that each watches
        self._shown: dict[Connection, dict[str, Presence]] = {}  # what each was shown last
        self._unsaid_last_seen: dict[str, int] = {}
        self._ended: dict[EndStream, int] = {}  # streams that no node may have, and until when that is said
        self._unsaved: dict[tuple[str, str], Raised] = {}  # marks that are not in the store yet, and from where they rose
        self._receipts_shown = RecentReceipts(_SHOWN_AGAIN_AFTER_MS)
        self._look_soon = asyncio.Event()

    # Receipts and typing.

    def mark_raised(self, raised: Raised) -> None:
        """See the protocol."""
        key = (raised.mark.chat_id, raised.mark.user_id)
        first = self._unsaved.get(key, raised)
        self._unsaved[key] = Raised(raised.mark, first.delivered_from_seq, first.read_from_seq)
        self._tell_owner(raised)

    def marks_saved(self, marks: Sequence[Mark]) -> None:
        """See the protocol."""
        for mark in marks:
            raised = self._unsaved.get((mark.chat_id, mark.user_id))
            if raised is None:
                continue
            self._tell_owner(Raised(mark, raised.delivered_from_seq, raised.read_from_seq))
            if raised.mark == mark:
                del self._unsaved[mark.chat_id, mark.user_id]  # else it rose again meanwhile, and will be saved again

    def _tell_owner(self, raised: Raised) -> None:
        mark = raised.mark
        told = RaiseMark(
            mark.chat_id, mark.user_id, mark.delivered_seq, mark.read_seq, raised.delivered_from_seq, raised.read_from_seq
        )
        self._desk.tell(mark.chat_id, told)

    def typing(self, chat_id: str, typist: Connection, kind: session_pb2.TypingKind.ValueType) -> None:
        """See the protocol."""
        self._desk.tell(chat_id, TellTyping(chat_id, typist.session.user_id, kind))

    def show(self, notice: ShowReceipt | ShowTyping) -> None:
        """An owner says what some users of this node are to be shown."""
        if isinstance(notice, ShowTyping):
            typing = session_pb2.Typing(chat_id=notice.chat_id, user_id=notice.user_id, kind=cast("_TypingKind", notice.kind))
            for connection in self._of_users(notice.to_user_ids):
                connection.session.show_typing(typing)
                self._touched(connection)
            return
        receipt = chat_pb2.Receipt(
            chat_id=notice.chat_id,
            user_id=notice.user_id,
            delivered_seq=notice.delivered_seq,
            read_seq=notice.read_seq,
        )
        now_ms = self._monotonic_ms()
        for connection in self._of_users(notice.to_user_ids):
            if self._receipts_shown.note(connection, receipt, now_ms):
                connection.session.show_receipt(receipt)
                self._touched(connection)

    def _of_users(self, user_ids: Iterable[str]) -> Iterable[Connection]:
        return (connection for user_id in user_ids for connection in self._connections.of_user(user_id))

    # Sessions.

    async def connected(self, connection: Connection) -> None:
        """See the protocol."""
        await self._sessions.opened(connection.session.user_id, connection.session.device_id)

    def disconnected(self, connection: Connection, now_ms: int) -> None:
        """See the protocol."""
        session = connection.session
        self._unwatch(connection)
        self._sessions.closed(session.user_id, session.device_id)
        self._unsaid_last_seen[session.user_id] = now_ms

    def pass_time(self, now_ms: int) -> None:
        """See the protocol; presence is looked for by `run`."""

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """See the protocol; without the session map only the devices on this node are known."""
        here = frozenset(connection.session.device_id for connection in self._connections.of_user(user_id))
        try:
            found = await self._sessions.devices_of([user_id], self._live_node_ids())
        except SessionMapUnavailableError as error:
            _log.warning("session_map_unavailable", error=str(error))
            return here
        return here | found.get(user_id, frozenset())

    async def end_elsewhere(self, user_id: str, device_id: str, code: Code) -> None:
        """See the protocol. All nodes are told, and for a while again: the device may have passed the door of one just before
        it was closed, and not be in the session map yet."""
        self._ended[EndStream(user_id, device_id, code)] = self._monotonic_ms() + _END_AGAIN_MS
        self._end_streams()

    def _end_streams(self) -> None:
        now_ms = self._monotonic_ms()
        self._ended = {message: until_ms for message, until_ms in self._ended.items() if now_ms < until_ms}
        for message in self._ended:
            for node_id in self._live_node_ids():
                self._say(node_id, message)

    def moved_here(self, before: SessionEntry) -> None:
        """A device that has its stream here had one on another node."""
        if before.node_id in self._live_node_ids():
            self._say(before.node_id, EndStream(before.user_id, before.device_id, session_pb2.DISCONNECT_CODE_REPLACED))

    # Presence.

    def watch(self, watcher: Connection, chat_ids: tuple[str, ...]) -> None:
        """See the protocol."""
        self._unwatch(watcher)
        self._screens[watcher] = chat_ids
        self._members[watcher] = {}
        self._shown[watcher] = {}
        for chat_id in chat_ids:
            self._on_screen.setdefault(chat_id, {})[watcher] = None
            self._ask_members(watcher, chat_id)

    def members_changed(self, chat_id: str) -> None:
        """See the protocol."""
        for watcher in self._on_screen.get(chat_id, ()):
            self._ask_members(watcher, chat_id)

    async def run(self) -> None:
        """Looks who is there, for all who watch. Ends when cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL_S):
                    await self._look_soon.wait()
            except TimeoutError:
                pass
            self._look_soon.clear()
            self._end_streams()
            await self.save_last_seen()
            await self._look()

    def _ask_members(self, watcher: Connection, chat_id: str) -> None:
        def found(user_ids: tuple[str, ...]) -> None:
            members = self._members.get(watcher)
            if members is None or chat_id not in self._screens.get(watcher, ()):
                return
            user_id = watcher.session.user_id
            members[chat_id] = user_ids if user_id in user_ids else ()
            shown = self._shown[watcher]
            watched = self._watched_by(watcher)
            for gone in [member_id for member_id in shown if member_id not in watched]:
                del shown[gone]
            self._look_soon.set()

        self._desk.ask_members(chat_id, found, self._monotonic_ms())

    def _watched_by(self, watcher: Connection) -> set[str]:
        members = self._members.get(watcher, {})
        return {member_id for user_ids in members.values() for member_id in user_ids} - {watcher.session.user_id}

    async def _look(self) -> None:
        """Shows each watcher what has changed since they were shown it last."""
        watched = {watcher: self._watched_by(watcher) for watcher in self._screens}
        user_ids = set().union(*watched.values())
        if not user_ids:
            return
        try:
            online = await self._sessions.devices_of(user_ids, self._live_node_ids())
            away = [user_id for user_id in user_ids if not online.get(user_id)]
            seen_ms = await self._last_seen.of_users(away) if away else {}
        except (SessionMapUnavailableError, LastSeenUnavailableError) as error:
            _log.warning("presence_unavailable", error=str(error))
            return
        for watcher, wanted in watched.items():
            shown = self._shown.get(watcher)
            if shown is None:
                continue  # gone while we looked
            for user_id in wanted & self._watched_by(watcher):
                presence = (bool(online.get(user_id)), 0 if online.get(user_id) else seen_ms.get(user_id, 0))
                if shown.get(user_id) != presence:
                    shown[user_id] = presence
                    watcher.session.show_presence(
                        session_pb2.Presence(user_id=user_id, online=presence[0], last_seen_ms=presence[1])
                    )
                    self._touched(watcher)

    async def save_last_seen(self) -> None:
        """Stores when users left, as far as it was noted."""
        unsaid, self._unsaid_last_seen = self._unsaid_last_seen, {}
        if not unsaid:
            return
        try:
            await self._last_seen.put(unsaid)
        except LastSeenUnavailableError as error:
            _log.warning("last_seen_not_saved", error=str(error))

    def _unwatch(self, watcher: Connection) -> None:
        for chat_id in self._screens.pop(watcher, ()):
            watchers = self._on_screen[chat_id]
            watchers.pop(watcher, None)
            if not watchers:
                del self._on_screen[chat_id]
        self._members.pop(watcher, None)
        self._shown.pop(watcher, None)


class RecentReceipts:
    """Which receipts each connection was shown in the last seconds."""

    def __init__(self, forget_after_ms: int) -> None:
        """What was shown is known for `forget_after_ms`, and forgotten within twice that time."""
        self._forget_after_ms = forget_after_ms
        self._turned_at_ms = 0
        self._new: dict[tuple[Connection, str, str], tuple[int, int]] = {}
        self._old: dict[tuple[Connection, str, str], tuple[int, int]] = {}

    def note(self, connection: Connection, receipt: chat_pb2.Receipt, now_ms: int) -> bool:
        """Returns whether the receipt is news to the connection, to which it is shown then."""
        if now_ms - self._turned_at_ms >= self._forget_after_ms:
            self._turned_at_ms = now_ms
            self._old, self._new = self._new, {}
        key = (connection, receipt.chat_id, receipt.user_id)
        delivered_seq, read_seq = self._new.get(key) or self._old.get(key) or (0, 0)
        if receipt.delivered_seq <= delivered_seq and receipt.read_seq <= read_seq:
            return False
        self._new[key] = (max(receipt.delivered_seq, delivered_seq), max(receipt.read_seq, read_seq))
        return True
