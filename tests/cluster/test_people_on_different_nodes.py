"""What people show each other besides messages, where each of them is on another node: ticks, typing, presence."""

import pytest

from chatgrpc.v1 import chat_pb2, session_pb2
from tests.cluster.support_people import People, until
from tests.support.device import Device, Held, next_frame

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

TEXT = session_pb2.TYPING_KIND_TEXT
STOPPED = session_pb2.TYPING_KIND_STOPPED


async def until_mark(device: Device, chat_id: str, user_id: str, delivered_seq: int, read_seq: int) -> None:
    """Waits until the device holds a user's marks, exactly these."""
    wanted = chat_pb2.Receipt(chat_id=chat_id, user_id=user_id, delivered_seq=delivered_seq, read_seq=read_seq)
    await device.until(lambda: device.receipts.get((chat_id, user_id)) == wanted)


class Screen:
    """What a device was shown of who is there."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._presence: dict[str, session_pb2.Presence] = {}

    async def until(self, user_id: str, online: bool) -> session_pb2.Presence:
        """Waits until the device is shown that the user is, or is not, there."""

        async def shown() -> bool:
            for frame in self._device.taken():
                if frame.HasField("presence"):
                    self._presence[frame.presence.user_id] = frame.presence
            return user_id in self._presence and self._presence[user_id].online == online

        await until(shown)
        return self._presence[user_id]


async def test_ticks_typing_and_presence_whichever_node_owns_the_chat(people: People) -> None:
    """Of three nodes one owns the chat, and the others ask it; each of them is the owner once."""
    for owner in people.nodes:
        names = [f"{name}-{owner.port}" for name in ("alice", "bob", "carol")]
        alice, bob, carol = [await people.online_at(node, name) for node, name in zip(people.nodes, names, strict=True)]
        chat_id = await people.group_owned_by(owner, *names)
        for device in (alice, bob, carol):
            await device.until_held(chat_id, 1)
        screen = Screen(alice)
        await alice.watch(chat_id)
        for other in (bob, carol):
            await screen.until(other.user_id, online=True)
        await bob.typing(chat_id)
        for device in (alice, carol):
            shown = (await next_frame(device, "typing")).typing
            assert shown == session_pb2.Typing(chat_id=chat_id, user_id=bob.user_id, kind=TEXT)
        await bob.typing(chat_id, STOPPED)
        assert (await next_frame(alice, "typing")).typing.kind == STOPPED
        sent = await bob.send(chat_id, "hello")
        for reader in (alice, carol):
            await until_mark(bob, chat_id, reader.user_id, delivered_seq=sent.seq, read_seq=0)
        await carol.mark_read(chat_id, sent.seq)
        await until_mark(bob, chat_id, carol.user_id, delivered_seq=sent.seq, read_seq=sent.seq)
        await carol.close()
        gone = await screen.until(carol.user_id, online=False)
        assert gone.last_seen_ms > 0


async def test_what_a_user_reads_on_one_node_is_read_on_their_devices_on_the_others(people: People) -> None:
    alice = await people.online("alice")
    bobs = [await people.online_at(node, "bob", f"device-{number}") for number, node in enumerate(people.nodes)]
    chat_id = ""
    for reader in bobs:
        sent = await alice.send(people.user("bob"), "hello")
        chat_id = sent.chat_id
        for device in bobs:
            await device.until_held(chat_id, sent.seq)
        await reader.mark_read(chat_id, sent.seq)
        for device in (alice, *bobs):
            await until_mark(device, chat_id, people.user("bob"), delivered_seq=sent.seq, read_seq=sent.seq)


async def test_a_user_who_goes_on_to_another_node_is_there_all_the_time(people: People) -> None:
    alice = await people.online_at(people.nodes[0], "alice")
    bob = await people.online_at(people.nodes[1], "bob")
    carol = await people.online_at(people.nodes[2], "carol")
    chats = [(await alice.send(other.user_id, "hello")).chat_id for other in (bob, carol)]
    for chat_id in chats:
        await alice.until_held(chat_id, 2)
    screen = Screen(alice)
    await alice.watch(*chats)
    for other in (bob, carol):
        await screen.until(other.user_id, online=True)
    for node in (people.nodes[2], people.nodes[0], people.nodes[1]):
        await bob.close()
        bob = await people.online_at(node, "bob", held=bob.held)
    await carol.close()
    shown = (await next_frame(alice, "presence")).presence
    assert (shown.user_id, shown.online) == (carol.user_id, False)


async def test_a_device_that_keeps_nothing_goes_on_where_it_acknowledged_at_another_node(people: People) -> None:
    """Once that is stored, which takes its last node a second: until then it is sent some events again, and no event less."""
    alice = await people.online("alice")
    chat_id = await people.group("alice", "bob")
    for number in range(10):
        await alice.send(chat_id, f"{number}")
    bob = people.device_at(people.nodes[0], "bob")
    bob.auto_ack = False
    await bob.connect()
    await bob.until_held(chat_id, 11)
    await bob.ack(chat_id, 7)
    await bob.heartbeat()
    await bob.close()
    next_seq = 0
    while next_seq != 8:
        again = people.device_at(people.nodes[1], "bob", held=Held())
        again.auto_ack = False
        await again.connect()
        next_seq = (await next_frame(again, "chat_opened")).chat_opened.next_seq
        assert next_seq in {1, 8}
        await again.until_held(chat_id, 11)
        assert list(again.held.events[chat_id]) == list(range(next_seq, 12))
        await again.close()
