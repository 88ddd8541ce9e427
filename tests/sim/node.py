"""A node: the shell around the real core, on virtual time. It holds shards and streams, and can pause and crash."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from chatgrpc.core.lanes import Forward, Forwarded, HeadBook, Lane, OwnerLanes
from chatgrpc.core.lease import Lease
from chatgrpc.core.row_store import ReadBucket, ReadHead, WriteMark
from chatgrpc.core.sequencer import Delivery, Lookup
from chatgrpc.core.shard import Now, Request, Shard
from tests.sim.coordinator import View
from tests.sim.edge import Edge
from tests.sim.parts import BUCKET_SEQS, AskHead, Deliver, HeadIs, Heads, HeadsHeard
from tests.sim.store import Phase, merge_buckets, merge_heads

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

LEASE_TTL_MS = 1_000
LEASE_MARGIN_MS = 60
"""Clocks differ by 2 % at most, so within one lease by 20 ms."""
STORE_TIMEOUT_MS = 150


class Tenure:
    """One shard in this node's hands."""

    def __init__(self, number: int, shard: Shard, lease: Lease, lanes: OwnerLanes) -> None:
        self.number = number
        self.shard = shard
        self.lease = lease
        self.lanes = lanes
        self.leaving = False


class Node:
    """One process, from its start to its crash."""

    def __init__(self, cluster: "Cluster", node_id: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.parts = cluster.parts
        self.node_id = node_id
        self.alive = True
        self.view = View(0, (), {}, 0)
        self.tenures: dict[int, Tenure] = {}
        self.edge = Edge(self)
        self._rate = self.world.rng.uniform(0.99, 1.01)
        self._offset_ms = self.world.rng.randint(0, 1_000_000)
        self._clogged_until_ms = 0
        self._apart_from_ms = self._apart_until_ms = 0
        self._mark_interval_ms = self.world.rng.choice((0, 300, 1_500, 60_000))
        self._marked_at_ms = 0
        self._paused_calls: list[Callable[[], None]] | None = None
        self._lease = self._new_lease()
        self._lease_id = 0
        self._joining = False
        self._taking: dict[int, int] = {}
        self._books: dict[str, HeadBook] = {}
        cluster.coordinator.watch(node_id, self._watched)
        self._every(40, self._tick)
        self._every(220, self._keep_alive)
        self._every(300, self._beat)
        self._every(2_000, self.edge.refresh)

    # Time, pauses, the end.

    def now(self) -> Now:
        """This node's clocks: the monotonic one drifts, and began somewhere."""
        return Now(1_700_000_000_000 + self.world.now_ms, int(self._offset_ms + self.world.now_ms * self._rate))

    def run(self, action: Callable[[], None]) -> None:
        """Does it now; when the process is paused, as soon as it goes on; never, when it is dead."""
        if not self.alive:
            return
        if self._paused_calls is not None:
            self._paused_calls.append(action)
            return
        action()

    def guard_with(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda value: self.run(lambda: action(value))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self.world.after(delay_ms, lambda: self.run(action))

    def pause(self, duration_ms: int) -> None:
        if self._paused_calls is None:
            self.note(f"pauses for {duration_ms} ms")
            self._paused_calls = []
            self.world.after(duration_ms, self._go_on)

    def clog(self, duration_ms: int) -> None:
        """Its way to the store is clogged: writes get there much later."""
        self._clogged_until_ms = self.world.now_ms + duration_ms

    def set_apart(self, duration_ms: int) -> None:
        """The coordinator answers slowly, and then not at all; what it says comes when that is over."""
        self.note("is apart from the coordinator")
        self._apart_from_ms = self.world.now_ms + 300
        self._apart_until_ms = self.world.now_ms + duration_ms

    def crash(self) -> None:
        self.note("crashes")
        self.alive = False
        self.edge.crash()

    def note(self, what: str) -> None:
        self.world.note(self.node_id, what)

    def _go_on(self) -> None:
        calls, self._paused_calls = self._paused_calls or [], None
        self.note(f"goes on, {len(calls)} calls late")
        while calls and self.alive:
            self.run(calls.pop(0))

    def _every(self, interval_ms: int, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self.after(interval_ms, again)

        self.after(self.world.rng.randint(1, interval_ms), again)

    # The lease and the shards.

    def _new_lease(self) -> Lease:
        return self.parts.lease(LEASE_TTL_MS, LEASE_MARGIN_MS)

    def _keep_alive(self) -> None:
        coordinator = self.cluster.coordinator
        lease, lease_id = self._lease, self._lease_id
        sent = lease.keepalive_sent(self.now().monotonic_ms)
        if not lease_id:
            self._join(lease)
            return

        def at_coordinator() -> Callable[[], None]:
            lives = coordinator.keep_alive(lease_id)
            return lambda: self.run(lambda: lease.answered(sent, self.now().monotonic_ms) if lives else lease.end())

        self._ask_coordinator(at_coordinator)

    def _join(self, lease: Lease) -> None:
        coordinator = self.cluster.coordinator
        sent = lease.keepalive_sent(self.now().monotonic_ms)

        def at_coordinator() -> Callable[[], None]:
            lease_id = coordinator.grant(self.node_id)

            def answered() -> None:
                if self._lease is lease and not self._lease_id:
                    self._lease_id = lease_id
                    lease.answered(sent, self.now().monotonic_ms)

            return lambda: self.run(answered)

        self._ask_coordinator(at_coordinator)

    def _ask_coordinator(self, request: Callable[[], Callable[[], None]]) -> None:
        if self.world.now_ms >= self._apart_until_ms:
            self.cluster.coordinator.ask(request)
        elif self.world.now_ms < self._apart_from_ms:
            self.cluster.coordinator.ask(request, answer_ms=self.world.rng.randint(200, 900))

    def _watched(self, view: View) -> None:
        self.after(max(0, self._apart_until_ms - self.world.now_ms), lambda: self._see(view))

    def _see(self, view: View) -> None:
        if view.revision <= self.view.revision:
            return
        before, self.view = self.view, view
        for number, owner in view.owners.items():
            if before.owners.get(number) != owner:
                self.edge.owner_changed(number)

    def _tick(self) -> None:
        now = self.now()
        if self._lease_id and not self._lease.holds(now.monotonic_ms):
            self.note(f"its lease is over; drops shards {list(self.tenures)}")
            self.tenures.clear()
            self._lease, self._lease_id = self._new_lease(), 0
        for number in range(self.cluster.shard_count):
            if self._lease_id and number not in self.tenures and self._may_take(number):
                self._take(number)
        for tenure in list(self.tenures.values()):
            if self.cluster.wanted_owner(self.view, tenure.number) not in {self.node_id, ""}:
                tenure.leaving = True
            if tenure.leaving:
                self._hand_over(tenure)
            elif self.world.now_ms - self._marked_at_ms >= self._mark_interval_ms:
                self._write_marks(tenure)
        if self.world.now_ms - self._marked_at_ms >= self._mark_interval_ms:
            self._marked_at_ms = self.world.now_ms
        self.edge.tick()

    def _may_take(self, number: int) -> bool:
        """A free shard that should be ours; or one that is ours since we took it, and the answer was lost: we must tend it."""
        owner_id, epoch = self.view.owners.get(number, ("", 0))
        if not owner_id:
            return self.cluster.wanted_owner(self.view, number) == self.node_id
        return owner_id == self.node_id and epoch > self._taking.get(number, 0)

    def _take(self, number: int) -> None:
        coordinator = self.cluster.coordinator
        lease, lease_id = self._lease, self._lease_id

        def answered(epoch: int) -> None:
            # The answer of a lease that is over gives nothing; nor does an old one give back what was given away since.
            if not epoch or lease is not self._lease or number in self.tenures or epoch <= self._taking.get(number, 0):
                return
            self._taking[number] = epoch
            shard = self.parts.shard(epoch, lease, self.parts.limits, self.world.rng, BUCKET_SEQS)
            self.tenures[number] = Tenure(number, shard, lease, self.parts.owner_lanes(64))
            self.note(f"owns shard {number} for epoch {epoch}")
            self.cluster.took(self)

        def at_coordinator() -> Callable[[], None]:
            epoch = coordinator.take(number, lease_id)
            return lambda: self.run(lambda: answered(epoch))

        self._ask_coordinator(at_coordinator)

    def _hand_over(self, tenure: Tenure) -> None:
        tenure.shard.stop_accepting()
        self.pump(tenure)
        if not tenure.shard.is_idle:
            return
        self._write_marks(tenure)
        del self.tenures[tenure.number]
        self.note(f"gives shard {tenure.number} away")
        self._release(tenure, self._lease)

    def _release(self, tenure: Tenure, lease: Lease) -> None:
        coordinator = self.cluster.coordinator

        def at_coordinator() -> Callable[[], None]:
            coordinator.release(tenure.number, tenure.shard.epoch)
            return lambda: None

        self._ask_coordinator(at_coordinator)
        if self.view.owners.get(tenure.number) == (self.node_id, tenure.shard.epoch):
            self.after(100, lambda: self._release(tenure, lease))  # until the watch shows that it is gone

    # The owner.

    def pump(self, tenure: Tenure) -> None:
        """Runs what the shard wants, and lets out what it has to say."""
        shard = tenure.shard
        for request in shard.take_requests():
            self._run_request(tenure, request)
        for delivery in shard.take_deliveries():
            self._deliver(delivery)
        for answer in shard.take_answers():
            lane, number = cast("tuple[Lane, int]", answer.ticket)
            self.send(lane.edge_id, tenure.lanes.answered(lane, number, answer.outcome))
        for head in shard.take_heads():
            edge_id, question = cast("tuple[str, int]", head.ticket)
            self.send(edge_id, HeadIs(head.chat_id, question, head.seq))

    def _is_held(self, tenure: Tenure) -> bool:
        return self.tenures.get(tenure.number) is tenure

    def _run_request(self, tenure: Tenure, request: Request) -> None:
        shard, store = tenure.shard, self.cluster.store

        def held() -> bool:
            return self._is_held(tenure)

        def then(action: Callable[[], None]) -> None:
            if held():
                action()
                self.pump(tenure)

        match request:
            case ReadHead(chat_id=chat_id):
                self.read(
                    lambda replica: replica.head(chat_id),
                    lambda found: then(lambda: shard.head_read(request, merge_heads(found), self.now())),
                    held,
                )
            case ReadBucket(chat_id=chat_id, bucket=bucket, from_seq=from_seq):

                def bucket_read(found: list[Any]) -> None:
                    merged = merge_buckets(found)
                    store.repair(chat_id, bucket, merged)
                    then(lambda: shard.bucket_read(request, merged, self.now()))

                self.read(lambda replica: replica.bucket(chat_id, bucket, from_seq), bucket_read, held)
            case Lookup():
                self.edge.look_up(request, lambda events: then(lambda: self._looked_up(tenure, request, events)), held)
            case _:
                self._write(store.phases(request), lambda: then(lambda: shard.stored(request, self.now())), held)

    def _looked_up(self, tenure: Tenure, lookup: Lookup, events: list[Any]) -> None:
        tenure.shard.looked_up(lookup, events, dict.fromkeys(lookup.user_ids, 0), self.now())

    def _deliver(self, delivery: Delivery) -> None:
        by_node: dict[str, list[str]] = {}
        for user_id in delivery.recipients:
            for node_id in self.cluster.session_nodes(user_id):
                by_node.setdefault(node_id, []).append(user_id)
        event = self.cluster.unwrap(delivery.chunk)
        self.world.witness(self.node_id, delivery.chat_id, delivery.seq, event)
        for node_id, user_ids in by_node.items():
            if node_id in self.view.nodes:
                self._books.setdefault(node_id, HeadBook()).note(delivery.chat_id, delivery.seq)
            deliver = Deliver(delivery.chat_id, delivery.seq, event, delivery.left_user_id, tuple(user_ids))
            self.send(node_id, deliver)

    def _write_marks(self, tenure: Tenure) -> None:
        for mark in tenure.shard.take_marks():
            self._write_once(mark)

    def _write_once(self, mark: WriteMark) -> None:
        (phase,) = self.cluster.store.phases(mark)
        self.cluster.store.write(phase, lambda: None)

    # The store, with its timeouts: nobody knows what became of a request that was not answered, so it is made again.

    def _write(self, phases: list[Phase], done: Callable[[], None], wanted: Callable[[], bool]) -> None:
        finished = False

        def success() -> None:
            nonlocal finished
            finished = True
            if len(phases) == 1:
                done()
            else:
                self._write(phases[1:], done, wanted)

        def attempt() -> None:
            if not finished and wanted():
                self.cluster.store.write(phases[0], lambda: self.run(success), self.world.now_ms < self._clogged_until_ms)
                self.after(STORE_TIMEOUT_MS, attempt)

        attempt()

    def read(
        self, query: Callable[[Any], Any], done: Callable[[list[Any]], None], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Reads at QUORUM until it succeeds, and hands on the answers of two replicas, once."""
        finished = False

        def success(found: list[Any]) -> None:
            nonlocal finished
            if not finished:
                finished = True
                done(found)

        def attempt() -> None:
            if not finished and wanted():
                self.cluster.store.read(query, self.guard_with(success))
                self.after(STORE_TIMEOUT_MS, attempt)

        attempt()

    # The links.

    def send(self, node_id: str, message: Any) -> None:
        self.cluster.carry(self.node_id, node_id, message)

    def owner_of(self, chat_id: str) -> str:
        """The node that owns the chat as far as this one knows; empty for none."""
        owner = self.view.owners.get(self.cluster.shard_of(chat_id))
        return owner[0] if owner is not None else ""

    def receive(self, message: Any) -> None:
        """Takes a message of another node, or of itself."""
        match message:
            case Forward():
                self._receive_forward(message)
            case AskHead(sender_id=sender_id, chat_id=chat_id, number=number):
                tenure = self.tenures.get(self.cluster.shard_of(chat_id))
                if tenure is not None and tenure.shard.ask_head((sender_id, number), chat_id, self.now()):
                    self.pump(tenure)
            case HeadsHeard(sender_id=sender_id, heads=heads):
                self._books.setdefault(sender_id, HeadBook()).confirmed(heads)
            case Heads(sender_id=sender_id):
                self.send(sender_id, HeadsHeard(self.node_id, message.heads))
                self.edge.hear_heads(message.heads)
            case Forwarded():
                self.edge.answered(message)
            case Deliver():
                self.edge.deliver(message)
            case HeadIs():
                self.edge.head_is(message)

    def _receive_forward(self, forward: Forward) -> None:
        tenure = self.tenures.get(self.cluster.shard_of(forward.lane.chat_id))
        if tenure is None:
            return
        verdict = tenure.lanes.receive(forward)
        if isinstance(verdict, Forwarded):
            self.send(forward.lane.edge_id, verdict)
        elif verdict and tenure.shard.submit((forward.lane, forward.number), forward.write, self.now()):
            tenure.lanes.accepted(forward)
            self.pump(tenure)

    def _beat(self) -> None:
        for node_id, book in self._books.items():
            heads = book.beat()
            if heads:
                self.send(node_id, Heads(self.node_id, heads))
