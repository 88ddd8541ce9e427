"""Who is there and who is typing (M11): derived from live sessions, shown to those who watch, gone when they are."""

import time

import pytest

from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.chat_service_pb2 import AddMembersRequest, MuteMemberRequest, RemoveMemberRequest
from tests.support.cast import Cast
from tests.support.device import Device, next_frame

TEXT = session_pb2.TYPING_KIND_TEXT
RECORDING = session_pb2.TYPING_KIND_RECORDING
STOPPED = session_pb2.TYPING_KIND_STOPPED


async def presence_of(device: Device, user_id: str, online: bool) -> session_pb2.Presence:
    """Waits until the device is shown that the user is, or is not, there."""
    while True:
        presence = (await next_frame(device, "presence")).presence
        if presence.user_id == user_id and presence.online == online:
            return presence


async def test_who_watches_a_chat_is_shown_who_is_there_and_who_comes_and_goes(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "hello")).chat_id
    await alice.until_held(chat_id, 2)
    await alice.watch(chat_id)
    assert (await presence_of(alice, bob.user_id, online=True)).last_seen_ms == 0
    await bob.close()
    left = await presence_of(alice, bob.user_id, online=False)
    assert left.last_seen_ms > 0
    await bob.connect()
    await presence_of(alice, bob.user_id, online=True)


async def test_a_device_that_changes_networks_does_not_flicker(cast: Cast) -> None:
    """Gone and back within the linger: nobody is told."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "hello")).chat_id
    await alice.until_held(chat_id, 2)
    await alice.watch(chat_id)
    await presence_of(alice, bob.user_id, online=True)
    for _ in range(5):
        await bob.close()
        await bob.connect()
    await bob.send(chat_id, "here all the time")
    await alice.until_held(chat_id, 3)
    assert not [frame for frame in alice.taken() if frame.HasField("presence")]


async def test_a_user_is_there_while_any_of_their_devices_is(cast: Cast) -> None:
    """Someone who goes later is shown to go; bob, one of whose devices went before, is not."""
    alice, phone, laptop = await cast.online("alice"), await cast.online("bob"), await cast.online("bob", "laptop")
    carol = await cast.online("carol")
    chats = [(await alice.send(other.user_id, "hello")).chat_id for other in (phone, carol)]
    for chat_id in chats:
        await alice.until_held(chat_id, 2)
    await alice.watch(*chats)
    there = {(await next_frame(alice, "presence")).presence.user_id for _ in chats}
    assert there == {phone.user_id, carol.user_id}
    await phone.close()
    await laptop.heartbeat()
    await carol.close()
    shown = (await next_frame(alice, "presence")).presence
    assert (shown.user_id, shown.online) == (carol.user_id, False)


async def test_what_is_watched_replaces_what_was_watched(cast: Cast) -> None:
    alice, bob, carol = [await cast.online(name) for name in ("alice", "bob", "carol")]
    chats = [(await alice.send(other.user_id, "hello")).chat_id for other in (bob, carol)]
    for chat_id in chats:
        await alice.until_held(chat_id, 2)
    await alice.watch(chats[0])
    await presence_of(alice, bob.user_id, online=True)
    await alice.watch(chats[1])
    await presence_of(alice, carol.user_id, online=True)
    await bob.close()
    await carol.close()
    assert (await next_frame(alice, "presence")).presence.user_id == carol.user_id
    await alice.heartbeat()
    assert not [frame for frame in alice.taken() if frame.HasField("presence")]


async def test_who_joins_a_watched_group_is_watched_and_who_leaves_it_is_not(cast: Cast) -> None:
    alice, bob, carol = [await cast.online(name) for name in ("alice", "bob", "carol")]
    chat_id = await cast.group("alice", "bob")
    await alice.until_held(chat_id, 1)
    await alice.watch(chat_id)
    await presence_of(alice, bob.user_id, online=True)
    chats = cast.caller("alice").chats
    await chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=[carol.user_id]))
    assert (await next_frame(alice, "presence")).presence == session_pb2.Presence(user_id=carol.user_id, online=True)
    await chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id=bob.user_id))
    await alice.until_held(chat_id, 3)
    await bob.close()
    await carol.close()
    assert (await next_frame(alice, "presence")).presence.user_id == carol.user_id


async def test_two_who_have_each_other_on_the_screen_before_the_first_message_are_shown_so(cast: Cast) -> None:
    alice, bob, carol = [await cast.online(name) for name in ("alice", "bob", "carol")]
    await alice.watch(user_ids=[bob.user_id])
    await carol.watch(user_ids=[alice.user_id, bob.user_id])
    await bob.watch(user_ids=[alice.user_id])
    for device, other in ((alice, bob), (bob, alice)):
        assert (await next_frame(device, "presence")).presence == session_pb2.Presence(user_id=other.user_id, online=True)
    await bob.watch()
    assert (await next_frame(alice, "presence")).presence == session_pb2.Presence(user_id=bob.user_id)
    await bob.watch(user_ids=[alice.user_id])
    await presence_of(alice, bob.user_id, online=True)
    await bob.close()
    await presence_of(alice, bob.user_id, online=False)
    await carol.heartbeat()
    assert not [frame for frame in carol.taken() if frame.HasField("presence")], "nobody looks at her"


async def test_once_the_first_message_has_made_the_chat_its_presence_is_shown(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    for device, other in ((alice, bob), (bob, alice)):
        await device.watch(user_ids=[other.user_id])
    await presence_of(alice, bob.user_id, online=True)
    chat_id = (await alice.send(bob.user_id, "hello")).chat_id
    await alice.until_held(chat_id, 2)
    await alice.watch(chat_id, user_ids=[bob.user_id])
    await presence_of(alice, bob.user_id, online=True)
    await bob.close()
    assert (await presence_of(alice, bob.user_id, online=False)).last_seen_ms > 0


async def test_a_large_group_pushes_no_presence(cast: Cast) -> None:
    names = ["alice", "bob", *(f"member{number}" for number in range(31))]
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group(*names)
    await alice.until_held(chat_id, 1)
    await alice.watch(chat_id)
    direct = (await alice.send(bob.user_id, "hello")).chat_id
    await alice.until_held(direct, 2)
    assert not [frame for frame in alice.taken() if frame.HasField("presence")]


@pytest.mark.parametrize(("sent", "shown"), [(0, TEXT), (TEXT, TEXT), (RECORDING, RECORDING)])
async def test_typing_is_shown_to_the_other_members_devices_and_when_it_stops(
    cast: Cast, sent: session_pb2.TypingKind.ValueType, shown: session_pb2.TypingKind.ValueType
) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    laptop = await cast.online("bob", "laptop")
    chat_id = await cast.group("alice", "bob")
    for device in (alice, bob, laptop):
        await device.until_held(chat_id, 1)
    await alice.typing(chat_id, sent)
    for device in (bob, laptop):
        typing = (await next_frame(device, "typing")).typing
        assert typing == session_pb2.Typing(chat_id=chat_id, user_id=alice.user_id, kind=shown)
    await alice.typing(chat_id, STOPPED)
    for device in (bob, laptop):
        assert (await next_frame(device, "typing")).typing.kind == STOPPED
    await alice.heartbeat()
    assert not [frame for frame in alice.taken() if frame.HasField("typing")], "it is not shown to who types"


async def test_typing_claims_no_other_name_than_ones_own(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group("alice", "bob")
    for device in (alice, bob):
        await device.until_held(chat_id, 1)
    typing = session_pb2.Typing(chat_id=chat_id, user_id=cast.user("someone"), kind=TEXT)
    await alice.write(session_pb2.ClientFrame(typing=typing))
    assert (await next_frame(bob, "typing")).typing.user_id == alice.user_id


async def test_nobody_is_shown_that_a_muted_member_types(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group("alice", "bob")
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    mute = MuteMemberRequest(chat_id=chat_id, user_id=bob.user_id, muted_until_ms=until_ms)
    muted = (await cast.caller("alice").chats.MuteMember(mute)).committed
    sent = await alice.send(chat_id, "think about it")
    assert sent.seq > muted.seq > 0
    for device in (alice, bob):
        await device.until_held(chat_id, sent.seq)
    await bob.typing(chat_id, TEXT)
    await bob.mark_read(chat_id, sent.seq)  # takes the same way
    await alice.until(lambda: alice.receipts.get((chat_id, bob.user_id), chat_pb2.Receipt()).read_seq == sent.seq)
    assert not [frame for frame in alice.taken() if frame.HasField("typing")]
