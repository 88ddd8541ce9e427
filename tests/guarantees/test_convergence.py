"""Devices that are offline and online in random turns end in equal states: apply(events, stale snapshot) == fresh snapshot."""

import random
import time

import pytest

from chatgrpc.core.fold import apply_event
from chatgrpc.core.ids import self_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    CreateJoinLinkRequest,
    LeaveGroupRequest,
    MuteMemberRequest,
    RemoveMemberRequest,
    RevokeJoinLinkRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from tests.support.cast import Cast
from tests.support.contents import chat_settings, delete, edit, hide, reaction, reply
from tests.support.device import Device
from tests.support.shown import shown

TURNS = 120
MEMBERS = ["alice", "bob", "carol"]
"""Are in the group from the beginning to the end; dave comes and goes."""
DEVICES = [("alice", "phone"), ("alice", "laptop"), ("bob", "phone"), ("carol", "phone"), ("dave", "phone")]


class World:
    """A group, a direct chat, a self chat, and devices that come and go."""

    def __init__(self, cast: Cast, seed: int) -> None:
        self.cast = cast
        self.rng = random.Random(seed)
        self.devices: list[Device] = []
        self.group = ""
        self.direct = ""
        self.self_chat = ""
        self.link = ""
        self.snapshots: list[chat_pb2.Chat] = []
        """Of the group and the direct chat, taken on the way."""

    async def begin(self) -> None:
        """Makes the chats; all devices are there."""
        self.group = await self.cast.group(*MEMBERS)
        self.devices = [await self.cast.online(name, device_id) for name, device_id in DEVICES]
        self.direct = (await self.devices[0].send(self.cast.user("bob"), "hello")).chat_id
        self.self_chat = (await self.devices[0].send(self.cast.user("alice"), "note")).chat_id
        assert self.self_chat == self_chat_id(self.cast.user("alice"))

    async def turn(self) -> None:
        """Lets one thing happen."""
        act = self.rng.choices(
            [self.come_or_go, self.write, self.read, self.manage, self.set_for_oneself, self.take_snapshot],
            weights=[6, 12, 4, 4, 2, 2],
        )[0]
        await act()

    async def come_or_go(self) -> None:
        device = self.rng.choice(self.devices)
        if device.is_open:
            await device.close()
            return
        device.auto_ack = self.rng.random() < 0.7  # without: the server will send again what the device names as held
        await device.connect()

    async def write(self) -> None:
        """Some devices write something at once; what is not allowed is refused, and that is fine."""
        there = [device for device in self.devices if device.is_open]
        answers = []
        for device in self.rng.sample(there, k=min(len(there), self.rng.randint(1, 3))):
            chats = [chat_id for chat_id in (self.group, self.direct) if device.held.cursors.get(chat_id)]
            if chats:
                chat_id = self.rng.choice(chats)
                answers.append(await device.post(device.compose_content(chat_id, self._content(device, chat_id))))
        for answer in answers:
            await answer

    def _content(self, device: Device, chat_id: str) -> content_pb2.Content:
        events = device.held.events.get(chat_id, {})
        texts = [seq for seq, event in events.items() if event.content.HasField("text")]
        own = [seq for seq in texts if events[seq].sender_user_id == device.user_id]
        words = f"{self.rng.getrandbits(32)}"
        choices = [content_pb2.Content(text=content_pb2.TextContent(text=words))] * 3
        if texts:
            target = self.rng.choice(texts)
            choices += [reply(target, words), reaction(target, self.rng.choice("👍🎉🙏")), reaction(target, ""), delete(target)]
        if own:
            target = self.rng.choice(own)
            choices += [edit(target, words), edit(target, words), delete(target)]
        return self.rng.choice(choices)

    async def read(self) -> None:
        device = self.rng.choice(self.devices)
        if device.is_open and device.held.cursors:
            chat_id = self.rng.choice(sorted(device.held.cursors))
            await device.mark_read(chat_id, self.rng.randint(0, device.held.cursors[chat_id]))

    async def manage(self) -> None:
        """The group's owner changes it, or dave does something about his membership."""
        alice, dave = self.cast.caller("alice").chats, self.cast.caller("dave").chats
        group, who, one = self.group, self.cast.user("dave"), self.cast.user(self.rng.choice(["bob", "carol", "dave"]))
        role = self.rng.choice([content_pb2.MEMBER_ROLE_MEMBER, content_pb2.MEMBER_ROLE_ADMIN])
        muted_until_ms = self.rng.choice([0, time.time_ns() // 1_000_000 + 3_600_000])
        match self.rng.randrange(11):
            case 0:
                await alice.UpdateGroup(UpdateGroupRequest(chat_id=group, title=f"{self.rng.getrandbits(16)}"))
            case 1:
                await alice.UpdateGroup(
                    UpdateGroupRequest(chat_id=group, picture_url=f"https://p.example/{self.rng.getrandbits(16)}")
                )
            case 2 | 3:
                await alice.AddMembers(AddMembersRequest(chat_id=group, user_ids=[who]))
            case 4:
                await alice.RemoveMember(RemoveMemberRequest(chat_id=group, user_id=who))
            case 5:
                await dave.LeaveGroup(LeaveGroupRequest(chat_id=group))
            case 6:
                await alice.SetMemberRole(SetMemberRoleRequest(chat_id=group, user_id=one, role=role))
            case 7:
                await alice.MuteMember(MuteMemberRequest(chat_id=group, user_id=one, muted_until_ms=muted_until_ms))
            case 8:
                request = CreateJoinLinkRequest(chat_id=group, approval_required=self.rng.random() < 0.7)
                self.link = (await alice.CreateJoinLink(request)).join_link.token
            case 9:
                await alice.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=group))
            case 10 if self.link:
                await self.cast.caller("dave").join(self.link)
                approve = self.rng.random() < 0.5
                await alice.AnswerJoinRequest(AnswerJoinRequestRequest(chat_id=group, user_id=who, approve=approve))

    async def set_for_oneself(self) -> None:
        device = self.rng.choice(self.devices[:2])
        if device.is_open:
            settings = chat_settings(self.group, self.rng.getrandbits(40), archived=self.rng.random() < 0.5)
            contents = [settings, hide(self.group, *self.rng.sample(range(1, 50), k=2))]
            await device.request(device.compose_content(self.self_chat, self.rng.choice(contents)))

    async def take_snapshot(self) -> None:
        for chat_id in (self.group, self.direct):
            self.snapshots.append((await self.cast.caller("bob").summary(chat_id)).chat)

    async def end(self) -> None:
        """Brings all devices up to date; and once more, so that they hold the marks that nobody had to show them live."""
        for _ in range(2):
            for device in self.devices:
                device.auto_ack = True
                await device.connect()
            for device in self.devices:
                await device.synced()
                for chat_id, cursor in device.held.cursors.items():
                    await device.ack(chat_id, cursor)
                await device.heartbeat()


@pytest.fixture
async def world(cast: Cast, seed: int) -> World:
    """The world after all its turns."""
    world = World(cast, seed)
    await world.begin()
    for _ in range(TURNS):
        await world.turn()
    await world.end()
    return world


async def test_devices_that_come_and_go_end_in_equal_states(world: World, cast: Cast) -> None:
    await check_devices(world, cast)
    await check_snapshots(world, cast)


async def check_devices(world: World, cast: Cast) -> None:
    """Every device shows what the server tells of each of its chats: events, messages, state, marks."""
    for device, (name, device_id) in zip(world.devices, DEVICES, strict=True):
        caller = cast.caller(name)
        for chat_id in sorted(device.held.cursors):
            visible = {event.seq: event for event in await caller.log(chat_id)}
            held = device.held.events[chat_id]
            where = f"{name}'s {device_id} in {chat_id}"
            assert [(event.seq, event.message_id) for event in held.values()] == [
                (event.seq, event.message_id) for event in visible.values()
            ], where
            assert all(held[seq] == event for seq, event in visible.items() if not event.content.HasField("erased")), where
            if name in MEMBERS:  # dave is not told of what was deleted while he was out
                assert shown(held) == shown(visible), where
                summary = await caller.summary(chat_id)
                assert device.held.chats[chat_id] == summary.chat, where
                marks = {mark.user_id: mark for mark in summary.receipts if mark.delivered_seq}
                held_marks = {user_id: device.receipts[chat, user_id] for chat, user_id in device.receipts if chat == chat_id}
                assert {user_id: held_marks.get(user_id) for user_id in marks} == marks, where
    phone, laptop = world.devices[:2]
    for chat_id in (world.group, world.direct, world.self_chat):
        assert phone.held.chats[chat_id] == laptop.held.chats[chat_id]
    assert list(phone.held.events[world.self_chat].values()) == list(laptop.held.events[world.self_chat].values())


async def check_snapshots(world: World, cast: Cast) -> None:
    """The events since, applied to any stale snapshot, make the fresh one."""
    bob = cast.caller("bob")
    logs = {chat_id: await bob.log(chat_id) for chat_id in (world.group, world.direct)}
    fresh = {chat_id: (await bob.summary(chat_id)).chat for chat_id in logs}
    for snapshot in [*world.snapshots, chat_pb2.Chat()]:
        chat_id = snapshot.chat_id or world.group
        for event in logs[chat_id]:
            apply_event(snapshot, event)
        assert snapshot == fresh[chat_id]
