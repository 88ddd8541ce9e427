"""Who is told what besides events, where everyone is connected to this process."""

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from time import perf_counter

from chatgrpc.core.active_chat import ActiveChat
from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Code
from chatgrpc.core.effects import Watch
from chatgrpc.core.events import typing_chunk
from chatgrpc.core.limits import Limits
from chatgrpc.core.looks import Look, Looks
from chatgrpc.core.presence import PresenceBook
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.edge.slices import Slice
from chatgrpc.embedded.ordering import LocalOrdering
from chatgrpc.ports.lease_clock import now
from chatgrpc.v1 import chat_pb2, session_pb2


class LocalAudience:
    """`edge.audience.Audience`: finds the sessions that something concerns, and shows it to them."""

    def __init__(
        self, connections: Connections, ordering: LocalOrdering, limits: Limits, clock_s: Callable[[], float] = perf_counter
    ) -> None:
        """`clock_s` says when a slice of work is over."""
        self._clock_s = clock_s
        self._connections = connections
        self._ordering = ordering
        self._small_group_members_max = limits.small_group_members_max
        self._presence = PresenceBook(limits)
        self._looks: Looks[Connection] = Looks()
        self._untold: dict[tuple[str, str], Raised] = {}  # marks that rose while their chats were not loaded
        self._screens: dict[Connection, tuple[str, ...]] = {}  # the chats that each watches
        self._on_screen: dict[str, dict[Connection, None]] = {}  # the same by chat

    # Receipts.

    def mark_raised(self, raised: Raised) -> None:
        """See the protocol."""
        if raised.mark.read_seq > raised.read_from_seq:
            self._show_receipt((raised.mark.user_id,), raised.mark.receipt())
        mark = raised.mark
        key = (mark.chat_id, mark.user_id)
        first = self._untold.get(key, raised)
        self._untold[key] = Raised(mark, first.delivered_from_seq, first.read_from_seq)
        tell = partial(self._tell_senders, key)
        self._ordering.with_chat(mark.chat_id, ("mark", mark.user_id), tell)

    def marks_saved(self, marks: Sequence[Mark]) -> None:
        """See the protocol; who comes has the marks in memory saved first, so nobody has missed one."""

    def _tell_senders(self, key: tuple[str, str], chat: ActiveChat | None) -> None:
        raised = self._untold.pop(key, None)
        from_seq = raised.from_seq if raised is not None else None
        if raised is None or from_seq is None or chat is None or len(chat.recipients) > self._small_group_members_max:
            return
        mark = raised.mark
        senders = [user_id for user_id in chat.senders_above(from_seq) if user_id != mark.user_id]
        self._show_receipt(senders, mark.receipt())

    def _show_receipt(self, user_ids: Iterable[str], receipt: chat_pb2.Receipt) -> None:
        for user_id in user_ids:
            for connection in self._connections.of_user(user_id):
                connection.session.show_receipt(receipt)
                self._connections.show(connection)

    # Typing.

    def typing(self, chat_id: str, typist: Connection, kind: session_pb2.TypingKind.ValueType) -> None:
        """See the protocol."""
        user_id = typist.session.user_id
        chunk = typing_chunk(session_pb2.Typing(chat_id=chat_id, user_id=user_id, kind=kind))

        def show(chat: ActiveChat | None) -> None:
            if chat is None or not chat.may_type(user_id, now().wall_ms):
                return
            for member_id in chat.recipients:
                if member_id != user_id:
                    for connection in self._connections.of_user(member_id):
                        connection.session.show_typing(chat_id, user_id, chunk)
                        self._connections.show(connection)

        self._ordering.with_chat(chat_id, ("typing", user_id), show)

    # Presence.

    async def connected(self, connection: Connection) -> None:
        """See the protocol."""
        user_id = connection.session.user_id
        if self._presence.connected(user_id):
            self._show_presence(user_id)

    def disconnected(self, connection: Connection, at: Now) -> None:
        """See the protocol."""
        self._unwatch(connection)
        self._show_looks(self._looks.look_away(connection, connection.session.user_id))
        self._presence.disconnected(connection.session.user_id, at)

    def pass_time(self, now_ms: int) -> bool:
        """See the protocol."""
        slice_ = Slice(self._clock_s)
        for user_id in self._presence.take_offline(now_ms):
            self._show_presence(user_id)
            if slice_.is_over:
                return True
        return False

    def watch(self, watcher: Connection, watch: Watch) -> None:
        """See the protocol."""
        self._unwatch(watcher)
        self._screens[watcher] = watch.chat_ids
        self._show_looks(self._looks.look(watcher, watcher.session.user_id, watch.peer_user_ids))
        for chat_id in watch.chat_ids:
            self._on_screen.setdefault(chat_id, {})[watcher] = None
        self._watch_members(watcher, known=())

    def members_changed(self, chat_id: str) -> None:
        """See the protocol."""
        for watcher in list(self._on_screen.get(chat_id, ())):
            self._watch_members(watcher, known=self._presence.watched(watcher))

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """See the protocol."""
        return frozenset(connection.session.device_id for connection in self._connections.of_user(user_id))

    async def end_elsewhere(self, user_id: str, device_id: str, code: Code) -> None:
        """See the protocol; there is no elsewhere."""

    def _watch_members(self, watcher: Connection, known: Container[str]) -> None:
        """Watches the members of the chats on the screen; shows those that are not known."""
        chat_ids = self._screens[watcher]
        self._presence.watch(watcher, ())

        def add(chat: ActiveChat | None) -> None:
            user_id = watcher.session.user_id
            if chat is None or user_id not in chat.members or len(chat.recipients) > self._small_group_members_max:
                return
            if self._screens.get(watcher) is not chat_ids:
                return  # there are other chats on the screen by now, or there is no screen
            watched = self._presence.watched(watcher)
            added = [member_id for member_id in chat.recipients if member_id != user_id and member_id not in watched]
            for member_id in added:
                if member_id not in known:
                    watcher.session.show_presence(self._presence.presence(member_id, now()))
            self._presence.watch_also(watcher, added)
            self._connections.show(watcher)

        for chat_id in chat_ids:
            self._ordering.with_chat(chat_id, ("watch", watcher), add)

    def _unwatch(self, watcher: Connection) -> None:
        for chat_id in self._screens.pop(watcher, ()):
            watchers = self._on_screen[chat_id]
            del watchers[watcher]
            if not watchers:
                del self._on_screen[chat_id]
        self._presence.unwatch(watcher)

    def _show_looks(self, looks: Iterable[Look[Connection]]) -> None:
        """Whoever has a chat with the user on the screen is shown their presence anyhow."""
        for look in looks:
            if look.user_id not in self._presence.watched(look.looker):
                presence = session_pb2.Presence(user_id=look.user_id, online=look.looks_back)
                look.looker.session.show_presence(presence)
                self._connections.show(look.looker)

    def _show_presence(self, user_id: str) -> None:
        presence = self._presence.presence(user_id, now())
        for watcher in self._presence.watchers(user_id):
            if isinstance(watcher, Connection):
                watcher.session.show_presence(presence)
                self._connections.show(watcher)
