"""What users do: write, edit, delete, read back, and change who is in the group."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatgrpc.core.ids import direct_chat_id, group_chat_id
from chatgrpc.core.lanes import Outcome
from chatgrpc.core.refusal import is_retryable
from chatgrpc.core.write import Write
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.sim.plan import LAST_WORD_MS, Act
from tests.sim.world import BrokenError

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.device import Device
    from tests.sim.node import Node

GROUP_ID = group_chat_id("alice", bytes(16))
"""Alice's, with Bob; Carol comes and goes."""
CIRCLE_ID = group_chat_id("bob", bytes(16))
"""Bob's, with Alice and Carol, who stay."""
ALICE_BOB_ID = direct_chat_id("alice", "bob")
BOB_CAROL_ID = direct_chat_id("bob", "carol")
CHAT_IDS = (GROUP_ID, CIRCLE_ID, ALICE_BOB_ID, BOB_CAROL_ID)
_CHATS_OF_USER = {
    "alice": (GROUP_ID, ALICE_BOB_ID, GROUP_ID, CIRCLE_ID),
    "bob": (GROUP_ID, ALICE_BOB_ID, CIRCLE_ID, BOB_CAROL_ID),
    "carol": (GROUP_ID, GROUP_ID, CIRCLE_ID, BOB_CAROL_ID),
}
"""Those that each writes to; one that stands here twice, twice as often."""
_WRITES = ("send", "edit", "delete")
_OUTBOX_MAX = 8
_KEYLESS_SEEDS = (3, 5, 6)
"""Of eleven: in these users also write by calls without a key."""
_EAGER_SEED = 2
"""Of seven."""


class Users:
    """Alice with two devices, Bob and Carol with one each."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.acknowledged_changes: list[tuple[bytes, str, int]] = []
        self._changing: dict[bytes, None] = {}
        self._carol_is_in = False
        self._deleted: set[tuple[str, int]] = set()

    @property
    def all_answered(self) -> bool:
        """Nobody waits for the answer to a unary call."""
        return not self._changing

    def make_groups(self) -> None:
        for chat_id, owner_id, other_ids in ((GROUP_ID, "alice", ["bob"]), (CIRCLE_ID, "bob", ["alice", "carol"])):
            created = content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="g")
            created.members.add(user_id=owner_id, role=content_pb2.MEMBER_ROLE_OWNER)
            for user_id in other_ids:
                created.members.add(user_id=user_id, role=content_pb2.MEMBER_ROLE_MEMBER)
            self._change(chat_id, owner_id, content_pb2.Content(chat_created=created), bytes(16))

    def act(self, act: Act, rng: random.Random) -> None:
        """Does what stands in the plan, if it can be done just now."""
        device = next(device for device in self.cluster.devices if device.device_id == act.device_id)
        if act.chat is not None:
            self._say_the_last_word(act.kind, CHAT_IDS[act.chat], rng)
            return
        chat_ids: tuple[str, ...] = _CHATS_OF_USER[device.user_id]
        if act.kind in _WRITES:
            chat_ids = tuple(chat_id for chat_id in chat_ids if not self._is_quiet(chat_id)) or chat_ids[:1]
        chat_id = rng.choice(chat_ids)
        if act.kind in _WRITES and self._is_quiet(chat_id):
            return
        if chat_id not in device.held and chat_id in (GROUP_ID, CIRCLE_ID):
            return
        match act.kind:
            case "send":
                self._send(device, chat_id, rng)
            case "edit" | "delete":
                self._amend(device, chat_id, act.kind, rng)
            case "read a page":
                self._read_page(device, chat_id, rng)
            case "show typing":
                device.show_typing(chat_id)
            case "change members":
                self._change_members()

    def _send(self, device: "Device", chat_id: str, rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 3))):
            if len(device.outbox.get(chat_id, ())) < _OUTBOX_MAX:
                text = content_pb2.TextContent(text=f"{device.user_id} {self.cluster.next_number()}")
                device.compose(chat_id, content_pb2.Content(text=text))
        if self.cluster.plan.seed % 11 in _KEYLESS_SEEDS and chat_id in device.held:
            self._post(device.user_id, chat_id)

    def _say_the_last_word(self, kind: str, chat_id: str, rng: random.Random) -> None:
        """Nothing follows by which a member could find out that it passed them by."""
        devices = [device for device in self.cluster.devices if chat_id in device.held and device.open]
        if len(devices) < 2:
            return
        away, author = rng.sample(devices, 2)

        def say() -> None:
            self._send(author, chat_id, rng)

        match kind:
            case "say the last word":  # while a member comes back
                away.disconnect()
                self.world.after(rng.randint(100, LAST_WORD_MS), say)
            case "say the last word to one who comes":
                away.disconnect()
                self._once_dialled(away, lambda: self.world.after(rng.randint(1, 100), say))
            case "say the last word to all":
                say()

    def _once_dialled(self, device: "Device", action: Callable[[], None]) -> None:
        if device.stream is not None:
            action()
        else:
            self.world.after(10, lambda: self._once_dialled(device, action))

    def _post(self, user_id: str, chat_id: str) -> None:
        """Writes by a unary call without a key, once, through any node. Whoever makes it does not repeat it; the edge may."""
        nodes = [node for node in self.cluster.nodes if node.alive]
        if not nodes:
            return
        node = self.world.rng.choice(nodes)
        key = self.cluster.next_number().to_bytes(16)
        content = content_pb2.Content(text=content_pb2.TextContent(text=f"{user_id} by a call"))

        def outcome(got: Outcome) -> None:
            if isinstance(got, chat_pb2.SendResult):
                node.note(f"{user_id}'s call is at {got.seq}")
                self.acknowledged_changes.append((key, got.chat_id, got.seq))

        node.run(lambda: node.edge.submit_alone(Write(chat_id, user_id, content, key, None), outcome))

    def _amend(self, device: "Device", chat_id: str, kind: str, rng: random.Random) -> None:
        """Edits or deletes one of the last messages of the user's own that are not deleted."""
        own = [
            event.seq
            for event in device.memory.received.get(chat_id, [])[-20:]
            if event.sender_user_id == device.user_id
            and event.content.WhichOneof("body") == "text"
            and (chat_id, event.seq) not in self._deleted
        ]
        if not own:
            return
        seq = rng.choice(own[-4:])
        if kind == "edit":
            edit = content_pb2.EditContent(target_seq=seq, text=f"edited {self.cluster.next_number()}")
            device.compose(chat_id, content_pb2.Content(edit=edit))
        else:
            self._deleted.add((chat_id, seq))
            device.compose(chat_id, content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=seq)))

    def _read_page(self, device: "Device", chat_id: str, rng: random.Random) -> None:
        request = session_pb2.FetchHistory(chat_id=chat_id, limit=rng.randint(1, 8))
        side = rng.choice(("before_seq", "after_seq", "around_seq", ""))
        if side:
            setattr(request, side, rng.randint(0, device.held.get(chat_id, 0) + 2))
        device.fetch_history(request)

    def _is_quiet(self, chat_id: str) -> bool:
        """People have stopped writing to it."""
        return self.world.now_ms >= self.cluster.plan.quiet_from_ms[CHAT_IDS.index(chat_id)]

    def _change_members(self) -> None:
        """Carol comes and goes; one change at a time."""
        if self._changing or self._is_quiet(GROUP_ID):
            return
        if self._carol_is_in:
            content = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="carol"))
        else:
            content = content_pb2.Content(members_added=content_pb2.MembersAddedContent(user_ids=["carol"]))
        self._carol_is_in = not self._carol_is_in
        if self._carol_is_in and self.cluster.plan.seed % 7 == _EAGER_SEED:
            self._write_eagerly()
        self._change(GROUP_ID, "alice", content, self.cluster.next_number().to_bytes(16))

    def _write_eagerly(self) -> None:
        """Carol has heard that she is let in, and writes before her device is told."""
        carol = next(device for device in self.cluster.devices if device.user_id == "carol")
        for after_ms in (1, 100):
            text = content_pb2.TextContent(text=f"carol {self.cluster.next_number()}")
            self.world.after(after_ms, lambda text=text: carol.compose(GROUP_ID, content_pb2.Content(text=text)))  # type: ignore[misc]

    def _change(self, chat_id: str, user_id: str, content: content_pb2.Content, key: bytes) -> None:
        """Changes a group by a unary call, through any node, again and again until it has an answer."""
        self._changing[key + user_id.encode()] = None

        def outcome(node: "Node", got: Outcome) -> None:
            if key + user_id.encode() not in self._changing:
                return
            if isinstance(got, chat_pb2.SendResult):
                del self._changing[key + user_id.encode()]
                node.note(f"{user_id}'s change is at {got.seq}")
                self.acknowledged_changes.append((key, got.chat_id, got.seq))
            elif not is_retryable(got):
                raise BrokenError(f"a change was refused: {got}")

        def attempt() -> None:
            if key + user_id.encode() in self._changing:
                node = self.world.rng.choice(self.cluster.nodes)
                write = Write(chat_id, user_id, content, key, 0)
                node.run(lambda: node.edge.submit_alone(write, lambda got: outcome(node, got)))
                self.world.after(1_500, attempt)

        attempt()


def users_ever(chat_id: str) -> tuple[str, ...]:
    """Who is or ever was in the chat."""
    return tuple(user_id for user_id, chat_ids in _CHATS_OF_USER.items() if chat_id in chat_ids)
