"""The owner's side of a node: runs what its shards ask of the store, and finds the nodes that their news is for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chatgrpc.core.active_chat import event_meta
from chatgrpc.core.clock import Now
from chatgrpc.core.door import ReadIntervals
from chatgrpc.core.links import HeadIs
from chatgrpc.core.owner_desk import ForOwner, Notice, Tenure
from chatgrpc.core.row_store import ReadBucket, ReadHead
from chatgrpc.core.rules import EventMeta
from chatgrpc.core.sequencer import Delivery, Lookup
from chatgrpc.core.shard import Request
from chatgrpc.ports.session_map import SessionMapUnavailableError
from tests.sim.tasks import start
from tests.sim.world import BrokenError

if TYPE_CHECKING:
    from tests.sim.node import Node


class Owner:
    """The shell of an owner's desk."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        limits = node.parts.limits
        if node.cluster.plan.climate.cramped:
            limits = replace(limits, chats_active_max=1)
        self.desk = node.parts.owner_desk(limits, node.cluster.shard_of)
        self._deliveries: list[Delivery] = []
        self._notices: list[Notice] = []
        self._is_routing = False
        node.every(300, self._beat)

    def receive(self, sender_id: str, message: ForOwner) -> None:
        """Takes a message of an edge."""
        self.desk.receive(sender_id, message, self.node.now())
        self.pump()

    def pump(self) -> None:
        """Runs what the shards want, and lets out what they have to say."""
        output = self.desk.step()
        for tenure, request in output.requests:
            start(self._run(tenure, request))
        if output.damage or output.failed:  # the lease holds, and the store loses nothing: there can be none
            raise BrokenError(f"{self.node.node_id} gives up {output.damage} and {output.failed}")
        for node_id, message in output.messages:
            if isinstance(message, HeadIs):
                self.node.cluster.stated(message.chat_id, message.seq)
            self.node.send(node_id, message)
        for delivery in output.deliveries:
            self.node.cluster.committed(self.node.node_id, delivery)
            self._deliveries.append(delivery)
        self._notices += output.notices
        if not self._is_routing and (self._deliveries or self._notices):
            start(self._route())

    def _beat(self) -> None:
        for node_id, message in self.desk.beat():
            self.node.send(node_id, message)

    # The store.

    async def _run(self, tenure: Tenure, request: Request) -> None:
        shard, store = tenure.shard, self.node.store

        def wanted() -> bool:
            return self.desk.holds(tenure)

        answer: Callable[[Now], None]
        match request:
            case ReadHead():
                head = await store.read_head(request, wanted)
                answer = lambda now: shard.head_read(request, head, now)  # noqa: E731
            case ReadBucket():
                bucket = await store.read_bucket(request, wanted)
                answer = lambda now: shard.bucket_read(request, bucket, now)  # noqa: E731
            case Lookup():
                metas = await self._look_up(request, wanted)
                counts = dict.fromkeys(request.user_ids, 0)
                answer = lambda now: shard.looked_up(request, metas, counts, now)  # noqa: E731
            case ReadIntervals(user_id=user_id, chat_id=chat_id):
                intervals = (await store.memberships(user_id, wanted)).get(chat_id, ())
                answer = lambda now: shard.intervals_read(request, intervals, now)  # noqa: E731
            case _:
                await store.write(request, wanted)
                answer = lambda now: shard.stored(request, now)  # noqa: E731
        if wanted():
            self.desk.hand_over(tenure, answer, self.node.now())
            self.pump()

    async def _look_up(self, lookup: Lookup, wanted: Callable[[], bool]) -> list[EventMeta]:
        metas: list[EventMeta] = []
        for after_seq, up_to_seq in lookup.ranges:
            at_seq = after_seq
            while at_seq < up_to_seq:
                page = await self.node.store.read_after(lookup.chat.chat_id, at_seq, up_to_seq, 1_000, wanted)
                metas += [event_meta(lookup.chat.chat_id, stored.seq, stored.event) for stored in page]
                at_seq = metas[-1].seq
        return metas

    # The nodes that news is for.

    async def _route(self) -> None:
        """One read of the session map at a time, for all that came since the last one."""
        self._is_routing = True
        while self._deliveries or self._notices:
            deliveries, self._deliveries = self._deliveries, []
            notices, self._notices = self._notices, []
            user_ids = dict.fromkeys(user_id for delivery in deliveries for user_id in delivery.recipients)
            user_ids |= dict.fromkeys(user_id for notice in notices for user_id in notice.user_ids)
            self.desk.route(deliveries, notices, await self._nodes_of(list(user_ids)))
            self.pump()
        self._is_routing = False

    async def _nodes_of(self, user_ids: Sequence[str]) -> dict[str, Collection[str]]:
        """Without the session map everything goes to every node."""
        try:
            found = await self.node.session_map.of_users(user_ids)
        except SessionMapUnavailableError:
            return dict.fromkeys(user_ids, self.node.keeper.view.nodes)
        return {user_id: list(dict.fromkeys(entry.node_id for entry in entries)) for user_id, entries in found.items()}
