"""Who is told what besides events, where everyone may be connected to any node.

Receipts and typing go to the chat's owner, who knows whom they concern. A receipt goes there twice: when the mark rises, and
again when it is stored, for devices that connected between the two. Presence is in `presence` and `looks`.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias, cast

from chatgrpc.cluster.looks import LookScreens
from chatgrpc.cluster.presence import PresenceScreens
from chatgrpc.cluster.sessions import Sessions
from chatgrpc.core.clock import Now
from chatgrpc.core.disconnect import Code
from chatgrpc.core.edge_desk import EdgeDesk
from chatgrpc.core.effects import Watch
from chatgrpc.core.events import typing_chunk
from chatgrpc.core.links import EndStream, EndStreamHeard, Message, RaiseMark, ShowReceipt, ShowTyping, TellTyping
from chatgrpc.core.receipts import Mark, Raised
from chatgrpc.core.session import compare_numbers
from chatgrpc.edge.connection import Connection, Connections
from chatgrpc.ports.accounts import DeviceStore
from chatgrpc.ports.session_map import SessionEntry, SessionMapUnavailableError
from chatgrpc.trouble import Trouble
from chatgrpc.v1 import chat_pb2, session_pb2

_END_INTERVAL_S = 2.0
"""Between two rounds of telling other nodes which streams to end."""
_END_AGAIN_MS = 12_000
"""A confirmation counts only if it comes at least this long after the revocation: by then a device that was being admitted
has been, and a confirmation sent before that has arrived."""
_END_GIVE_UP_MS = 3_600_000
"""A node that has confirmed nothing by then is of an earlier version, and finds revoked devices in its own passes."""
_ENDED_MAX = 10_000
"""Streams that other nodes are told of; beyond this the oldest are left to the passes of `resync`."""
_ENDED_PER_SLICE = 50
"""After so many other work has its turn: each is said to every node."""
_SHOWN_AGAIN_AFTER_MS = 4_000
"""A device that was shown a receipt is not shown it again this soon: the second telling is for others."""

_TypingKind: TypeAlias = session_pb2.TypingKind.ValueType


@dataclass(slots=True)
class _Ending:
    """A stream that is to be ended wherever it is."""

    since_ms: int
    confirmed: set[str] = field(default_factory=set)
    """Nodes."""


class ClusterAudience:
    """`edge.audience.Audience` and what owners tell it."""

    def __init__(
        self,
        connections: Connections,
        desk: EdgeDesk,
        sessions: Sessions,
        presence: PresenceScreens,
        looks: LookScreens,
        devices: DeviceStore,
        live_node_ids: Callable[[], Collection[str]],
        say: Callable[[str, Message], None],
        monotonic_ms: Callable[[], int],
    ) -> None:
        self._connections = connections
        self._desk = desk
        self._sessions = sessions
        self._presence = presence
        self._looks = looks
        self._devices = devices
        self._live_node_ids = live_node_ids
        self._say = say
        self._monotonic_ms = monotonic_ms
        self._ended: dict[EndStream, _Ending] = {}  # streams that no node may have
        self._unsaved: dict[tuple[str, str], Raised] = {}  # marks that are not in the store yet, and from where they rose
        self._receipts_shown = RecentReceipts(_SHOWN_AGAIN_AFTER_MS)
        self._trouble = Trouble("session_map_unavailable")

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
            stored = Raised(mark, raised.delivered_from_seq, raised.read_from_seq)
            if stored.from_seq is not None:  # else it was stored once more, and what rose since is still to be stored
                self._tell_owner(stored)
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

    def show(self, notice: ShowReceipt | ShowTyping) -> Iterator[None]:
        """An owner says what some users of this node are to be shown; a step for each of them."""
        if isinstance(notice, ShowTyping):
            if notice.kind not in session_pb2.TypingKind.values():
                return  # a later version's
            typing = session_pb2.Typing(chat_id=notice.chat_id, user_id=notice.user_id, kind=cast("_TypingKind", notice.kind))
            chunk = typing_chunk(typing)
            for user_id in notice.to_user_ids:
                for connection in self._connections.of_user(user_id):
                    connection.session.show_typing(notice.chat_id, notice.user_id, chunk)
                    self._connections.show(connection)
                yield
            return
        receipt = chat_pb2.Receipt(
            chat_id=notice.chat_id,
            user_id=notice.user_id,
            delivered_seq=notice.delivered_seq,
            read_seq=notice.read_seq,
        )
        for user_id in notice.to_user_ids:
            now_ms = self._monotonic_ms()
            for connection in self._connections.of_user(user_id):
                news = self._receipts_shown.news(connection, receipt, now_ms)
                if news is not None:
                    connection.session.show_receipt(news)
                    self._connections.show(connection)
            yield

    # Sessions.

    async def connected(self, connection: Connection) -> None:
        """See the protocol."""
        await self._sessions.opened(connection.session.user_id, connection.session.device_id)

    def disconnected(self, connection: Connection, at: Now) -> None:
        """See the protocol."""
        session = connection.session
        self._presence.unwatch(connection)
        self._looks.look_away(connection)
        self._presence.left(session.user_id, at.wall_ms)
        self._sessions.closed(session.user_id, session.device_id)

    def pass_time(self, now_ms: int) -> bool:
        """See the protocol; who has gone is found by `PresenceScreens.run`."""
        return False

    async def online_devices(self, user_id: str) -> frozenset[str]:
        """See the protocol; without the session map only the devices on this node are known."""
        here = frozenset(connection.session.device_id for connection in self._connections.of_user(user_id))
        try:
            found = await self._sessions.devices_of([user_id], self._live_node_ids())
        except SessionMapUnavailableError as error:
            self._trouble.failed(error)
            return here
        self._trouble.worked()
        return here | found.get(user_id, frozenset())

    async def end_elsewhere(self, user_id: str, device_id: str, code: Code) -> None:
        """See the protocol. All nodes are told, and for a while again: the device may have passed the door of one just before
        it was closed, and not be in the session map yet. And then until each has confirmed it or is gone: a link may be cut."""
        message = EndStream(user_id, device_id, code)
        self._ended.pop(message, None)
        self._ended[message] = _Ending(self._monotonic_ms())
        if len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        for node_id in self._live_node_ids():
            self._say(node_id, message)

    def end_stream_heard(self, node_id: str, message: EndStreamHeard) -> None:
        """A node has no such stream any more."""
        ending = self._ended.get(EndStream(message.user_id, message.device_id, cast("Code", message.code)))
        if ending is not None and self._monotonic_ms() - ending.since_ms >= _END_AGAIN_MS:
            ending.confirmed.add(node_id)

    async def _end_streams(self) -> None:
        now_ms = self._monotonic_ms()
        live = self._live_node_ids()
        for number, (message, ending) in enumerate(list(self._ended.items()), 1):
            if number % _ENDED_PER_SLICE == 0:
                await asyncio.sleep(0)
            if self._ended.get(message) is not ending:
                continue  # it was asked for anew meanwhile
            waits_for = [node_id for node_id in live if node_id not in ending.confirmed]
            for node_id in waits_for:
                self._say(node_id, message)
            age_ms = now_ms - ending.since_ms
            if age_ms >= _END_GIVE_UP_MS or (age_ms >= _END_AGAIN_MS and not waits_for):
                del self._ended[message]

    def moved_here(self, before: SessionEntry) -> None:
        """A device that has its stream here had one on another node."""
        here = self._connections.of_device(before.user_id, before.device_id)
        self._say_replaced(before.node_id, before.user_id, before.device_id, here)

    async def is_to_end(self, message: EndStream, sender_id: str) -> bool:
        """Whether the device's stream here is to end, as another node says, for a while and without knowing all: the device may
        have a newer stream here, or, if it gave way to another one, have come back since.

        Raises:
            StoreError: which devices the user has cannot be read.
        """
        match message.code:
            case session_pb2.DISCONNECT_CODE_REPLACED:
                order = self.order_of(message, sender_id)
                return order < 0 or (order == 0 and await self._sessions.has_moved(message.user_id, message.device_id))
            case session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES:
                here = self._connections.of_device(message.user_id, message.device_id)
                return (
                    here is not None
                    and not await self._is_registered(message.user_id, message.device_id)
                    and self._connections.of_device(message.user_id, message.device_id) is here
                )
        return True

    async def _is_registered(self, user_id: str, device_id: str) -> bool:
        return any(device.device_id == device_id for device in await self._devices.list(user_id))

    def order_of(self, message: EndStream, sender_id: str) -> int:
        """Whether the device's stream here is older (-1) or newer (1) than the one that is to take its place; 0 = unknown.

        If it is newer, the other node is told: a Hello that was long under way came there after the one that came here.
        """
        here = self._connections.of_device(message.user_id, message.device_id)
        order = compare_numbers(here.session.connection_number, message.connection_number) if here is not None else 0
        if order > 0:
            self._say_replaced(sender_id, message.user_id, message.device_id, here)
        return order

    def _say_replaced(self, node_id: str, user_id: str, device_id: str, by: Connection | None) -> None:
        if node_id in self._live_node_ids():
            number = by.session.connection_number if by is not None else 0
            self._say(node_id, EndStream(user_id, device_id, session_pb2.DISCONNECT_CODE_REPLACED, number))

    async def run(self) -> NoReturn:
        """Speaks again of streams that are to be ended. Ends when cancelled."""
        while True:
            await asyncio.sleep(_END_INTERVAL_S)
            await self._end_streams()

    # Presence.

    def watch(self, watcher: Connection, watch: Watch) -> None:
        """See the protocol."""
        self._presence.watch(watcher, watch.chat_ids)
        self._looks.look(watcher, watch.peer_user_ids)

    def members_changed(self, chat_id: str) -> None:
        """See the protocol."""
        self._presence.members_changed(chat_id)


class RecentReceipts:
    """Which receipts each connection was shown in the last seconds."""

    def __init__(self, forget_after_ms: int) -> None:
        """What was shown is known for `forget_after_ms`, and forgotten within twice that time."""
        self._forget_after_ms = forget_after_ms
        self._turned_at_ms = 0
        self._new: dict[tuple[Connection, str, str], tuple[int, int]] = {}
        self._old: dict[tuple[Connection, str, str], tuple[int, int]] = {}

    def news(self, connection: Connection, receipt: chat_pb2.Receipt, now_ms: int) -> chat_pb2.Receipt | None:
        """What the connection is to be shown of a receipt, and is shown then; None if that is no news to it.

        Of two nodes each may know one mark better. What is shown last holds both: it may replace what was not sent yet.
        """
        self._forget(now_ms)
        key = (connection, receipt.chat_id, receipt.user_id)
        delivered_seq, read_seq = self._new.get(key) or self._old.get(key) or (0, 0)
        if receipt.delivered_seq <= delivered_seq and receipt.read_seq <= read_seq:
            return None
        shown = self._new[key] = (max(receipt.delivered_seq, delivered_seq), max(receipt.read_seq, read_seq))
        return chat_pb2.Receipt(chat_id=receipt.chat_id, user_id=receipt.user_id, delivered_seq=shown[0], read_seq=shown[1])

    def _forget(self, now_ms: int) -> None:
        passed_ms = now_ms - self._turned_at_ms
        if passed_ms >= self._forget_after_ms:
            self._turned_at_ms = now_ms
            self._old = self._new if passed_ms < 2 * self._forget_after_ms else {}
            self._new = {}
