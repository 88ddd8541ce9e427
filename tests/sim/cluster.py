"""One run: a cluster, its devices, its misfortunes, and what must hold at the end."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from chatgrpc.core.events import event_chunk
from chatgrpc.core.ids import direct_chat_id, group_chat_id, shard_of
from chatgrpc.core.lanes import Lane, Outcome
from chatgrpc.core.refusal import is_retryable
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.sim.check import check
from tests.sim.coordinator import Coordinator, View
from tests.sim.device import Device
from tests.sim.node import LEASE_TTL_MS, Node
from tests.sim.parts import BUCKET_SEQS, Parts
from tests.sim.store import Store
from tests.sim.world import BrokenError, World

STORM_MS = 9_000
"""How long things go wrong."""
CALM_MIN_MS = 4_500
"""Time for the slowest write and the longest pause of the storm to end."""
CALM_MAX_MS = 14_000
"""How long the cluster has to come to rest afterwards."""
USERS = ("alice", "bob", "carol")


class Cluster:
    """Everything in one run."""

    def __init__(self, seed: int, parts: Parts | None = None, traced: bool = False) -> None:
        self.world = World(seed, traced)
        self.parts = parts or Parts()
        self.shard_count = 2
        self.store = Store(self.world, BUCKET_SEQS)
        self.coordinator = Coordinator(self.world, LEASE_TTL_MS)
        self.group_id = group_chat_id("alice", bytes(16))
        self.direct_id = direct_chat_id("alice", "bob")
        self.chat_ids = (self.group_id, self.direct_id)
        self.nodes: list[Node] = []
        self.acknowledged_changes: list[tuple[bytes, str, int]] = []
        self.changing = False
        self._cursed_until_ms = self.world.rng.choice((0, 0, STORM_MS))
        self._numbers = 0
        self._starts = 0
        self._sessions: dict[str, dict[str, str]] = {}
        self._cut: dict[tuple[str, str], int] = {}
        self._loss = self.world.rng.choice((0.0, 0.03, 0.15))
        self._unrest = self.world.rng.choice((0.3, 1.0, 2.5))
        for _ in range(3):
            self.start_node()
        self.devices = [Device(self, user_id, f"{user_id}-{number}") for user_id, number in _devices()]
        self.in_group = {"alice", "bob"}

    # What nodes share.

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def shard_of(self, chat_id: str) -> int:
        return shard_of(chat_id) % self.shard_count

    def wanted_owner(self, view: View, shard: int) -> str:
        """Rendezvous hashing over the live nodes; empty without any."""
        return _wanted_owner(view.nodes, shard, view.salt)

    def note_session(self, user_id: str, device_id: str, node_id: str) -> None:
        self._sessions.setdefault(user_id, {})[device_id] = node_id

    def forget_session(self, user_id: str, device_id: str, node_id: str) -> None:
        if self._sessions.get(user_id, {}).get(device_id) == node_id and not any(
            stream.device.device_id == device_id
            for node in self.nodes
            if node.node_id == node_id
            for _, stream in node.edge.sessions.values()
        ):
            del self._sessions[user_id][device_id]

    def session_nodes(self, user_id: str) -> list[str]:
        return list(dict.fromkeys(self._sessions.get(user_id, {}).values()))

    def unwrap(self, chunk: bytes) -> bytes:
        """The event in a chunk, as it stands in the log."""
        frame = session_pb2.ConnectResponse.FromString(chunk).frames[0]
        event = frame.event.SerializeToString(deterministic=True)
        assert event_chunk(event) == chunk
        return event

    def address(self, send: session_pb2.SendMessage, chat_id: str, user_id: str) -> None:
        if chat_id == self.direct_id:
            send.user_id = "bob" if user_id == "alice" else "alice"
        else:
            send.chat_id = chat_id

    def carry(self, sender_id: str, receiver_id: str, message: Any) -> None:
        """The links: they lose, repeat, delay and reorder, and are cut one way or both."""
        receiver = next((node for node in self.nodes if node.node_id == receiver_id), None)
        if receiver is None:
            return
        far = sender_id != receiver_id
        if far and (self.world.chance(self._loss) or self._cut.get((sender_id, receiver_id), 0) > self.world.now_ms):
            return
        for _ in range(2 if far and self.world.chance(0.04) else 1):
            delay_ms = self.world.rng.randint(1, 12) if far else 0
            if far and self.world.chance(0.05):
                delay_ms = self.world.rng.randint(20, 800)
            receiver.after(delay_ms, lambda: receiver.receive(message))

    # Misfortunes.

    def start_node(self) -> None:
        self._starts += 1
        self.nodes.append(Node(self, f"n{self._starts}"))

    def _crash(self, node: Node | None = None) -> None:
        node = node or self.world.rng.choice(self.nodes)
        if not node.alive or len(self.nodes) == 1:
            return
        node.crash()
        self.nodes.remove(node)
        self.world.after(self.world.rng.randint(50, 3_000), self.start_node)

    def _pause(self) -> None:
        self.world.rng.choice(self.nodes).pause(self.world.rng.randint(100, 3_000))

    def _clog_an_owner(self) -> None:
        """The worst that a dead owner can leave behind: many writes under way, which land at any time after its end."""
        node = self._owner()
        duration_ms = self.world.rng.randint(50, 500)
        node.clog(duration_ms)
        kill = self.world.chance(0.5)
        self.world.after(duration_ms, lambda: self._crash(node) if kill else node.pause(2_000))

    def _clog_owners_in_turn(self) -> None:
        """As often as a shard changes hands for a while, its new owner is clogged and dies or pauses soon after."""
        self._cursed_until_ms = self.world.now_ms + self.world.rng.randint(2_000, 5_000)

    def took(self, node: Node) -> None:
        """A node has taken a shard."""
        if self.world.calm or self.world.now_ms > self._cursed_until_ms:
            return
        node.clog(self.world.rng.randint(100, 700))
        end_ms = self.world.rng.randint(100, 900)
        kill = self.world.chance(0.3)
        self.world.after(end_ms, lambda: self._crash(node) if kill else node.pause(1_500))

    def _set_an_owner_apart(self) -> None:
        self._owner().set_apart(self.world.rng.randint(1_000, 3_000))

    def _owner(self) -> Node:
        owners = [node for node in self.nodes if node.tenures]
        return self.world.rng.choice(owners or self.nodes)

    def _cut_link(self) -> None:
        one, other = self.world.rng.choice(self.nodes), self.world.rng.choice(self.nodes)
        until_ms = self.world.now_ms + self.world.rng.randint(100, 3_000)
        self._cut[one.node_id, other.node_id] = until_ms
        if self.world.chance(0.5):
            self._cut[other.node_id, one.node_id] = until_ms

    def _stop_replica(self) -> None:
        replica = self.world.rng.choice(self.store.replicas)
        replica.up = False
        self.world.after(self.world.rng.randint(100, 2_000), lambda: setattr(replica, "up", True))

    def _misfortune(self) -> None:
        if self.world.calm:
            return
        kinds: list[Callable[[], None]] = [
            self._pause,
            self._clog_an_owner,
            self._clog_an_owner,
            self._clog_owners_in_turn,
            self._set_an_owner_apart,
            self._cut_link,
            self._stop_replica,
            self.coordinator.shuffle,
            lambda: self.world.rng.choice(self.devices).disconnect(),
            self._crash,
        ]
        self.world.rng.choice(kinds)()
        self.world.after(int(self.world.rng.randint(100, 1_400) / self._unrest), self._misfortune)

    # What users do.

    def _create_group(self) -> None:
        created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
        created.members.add(user_id="alice", role=content_pb2.MEMBER_ROLE_OWNER)
        created.members.add(user_id="bob", role=content_pb2.MEMBER_ROLE_MEMBER)
        self._change(content_pb2.Content(chat_created=created), bytes(16), self._type_and_change)

    def _type_and_change(self) -> None:
        for device in self.devices:
            self._typing(device)
        self._change_members()

    def _typing(self, device: Device) -> None:
        if self.world.calm:
            return
        chats = [self.group_id] if device.user_id == "carol" else list(self.chat_ids)
        chat_id = self.world.rng.choice(chats)
        known = chat_id == self.direct_id or chat_id in device.held
        if known and len(device.outbox.get(chat_id, ())) < 8:
            for _ in range(self.world.rng.choice((1, 1, 3))):
                device.compose(chat_id)
        self.world.after(self.world.rng.randint(30, 500), lambda: self._typing(device))

    def _change_members(self) -> None:
        """Carol comes and goes."""
        if self.world.calm:
            return
        if "carol" in self.in_group:
            content = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="carol"))
        else:
            content = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"]))
        self.in_group ^= {"carol"}
        key = self.next_number().to_bytes(16)
        self._change(content, key, lambda: self.world.after(self.world.rng.randint(100, 1_500), self._change_members))

    def _change(self, content: content_pb2.Content, key: bytes, done: Callable[[], None], tries: int = 0) -> None:
        """Alice changes the group by a unary call, through any node, again and again until it has an answer."""
        self.changing = True
        answered = False
        seen_seq = 0

        def outcome(node: Node, got: Outcome) -> None:
            nonlocal answered
            if answered:
                return
            if isinstance(got, chat_pb2.SendResult):
                answered = True
                self.changing = False
                node.note(f"alice's change is at {got.seq}")
                self.acknowledged_changes.append((key, got.chat_id, got.seq))
                done()
            elif not is_retryable(got):
                raise BrokenError(f"a change was refused: {got}")

        def attempt() -> None:
            if answered:
                return
            node = self.world.rng.choice(self.nodes)
            write = Write(self.group_id, "alice", content, key, seen_seq)
            lane = Lane(node.node_id, f"unary-{self.next_number()}", self.group_id)
            node.run(lambda: node.edge.submit(lane, lambda got: outcome(node, got), write))
            self.world.after(1_500, attempt)

        attempt()

    def run(self) -> None:
        """The whole run.

        Raises:
            BrokenError: a guarantee does not hold.
        """
        for device in self.devices:
            device.connect()
        self.world.after(300, self._create_group)
        self.world.after(1_000, self._misfortune)
        self.world.run(STORM_MS)
        self.world.calm = True
        self.world.note("world", "all is calm")
        for replica in self.store.replicas:
            replica.up = True
        for end_ms in range(STORM_MS + CALM_MIN_MS, STORM_MS + CALM_MAX_MS, 1_000):
            self.world.run(end_ms)
            if self._is_settled():
                break
        check(self)

    def _is_settled(self) -> bool:
        heads = {chat_id: seq for node in self.nodes for chat_id, seq in node.edge.stated.items()}
        return not self.changing and all(
            not any(device.outbox.values())
            and device.open
            and (device.user_id == "carol" or all(device.held.get(chat_id, 0) >= seq for chat_id, seq in heads.items()))
            for device in self.devices
        )


def _devices() -> list[tuple[str, int]]:
    return [("alice", 1), ("alice", 2), ("bob", 1), ("carol", 1)]


@lru_cache(maxsize=4_096)
def _wanted_owner(node_ids: tuple[str, ...], shard: int, salt: int) -> str:
    return max(node_ids, key=lambda node_id: _weight(node_id, shard, salt), default="")


def _weight(node_id: str, shard: int, salt: int) -> bytes:
    return hashlib.blake2b(f"{node_id} {shard} {salt}".encode(), digest_size=8).digest()
