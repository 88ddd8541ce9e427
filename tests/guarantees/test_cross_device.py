"""M10: what a user does on one device reaches all their devices, live and after they were away."""

import pytest

from chatgrpc.core.ids import self_chat_id
from chatgrpc.v1 import chat_pb2
from chatgrpc.v1.session_pb2 import START_AT_HEAD
from tests.support.cast import Cast
from tests.support.contents import chat_settings, delete, edit, hide, reaction
from tests.support.device import Device


@pytest.fixture
async def phone(cast: Cast) -> Device:
    return await cast.online("alice", "phone")


@pytest.mark.parametrize("away", [False, True], ids=["live", "away"])
async def test_own_messages_edits_reactions_and_deletions_reach_the_other_device(cast: Cast, phone: Device, away: bool) -> None:
    laptop, bob = await cast.online("alice", "laptop"), await cast.online("bob")
    if away:
        await laptop.close()
    sent = await phone.send(bob.user_id, "hello")
    chat_id = sent.chat_id
    for content in (edit(sent.seq, "hello!"), reaction(sent.seq, "👍"), delete(sent.seq)):
        assert (await phone.send_content(chat_id, content)).HasField("sent")
    if away:
        await laptop.connect()
    for device in (laptop, phone, bob):
        await device.until_held(chat_id, 5)
    kinds = ["chat_created", "text", "edit", "reaction", "delete"]
    assert [event.content.WhichOneof("body") for event in phone.held.events[chat_id].values()] == kinds
    if away:  # what was deleted meanwhile is not sent any more
        kinds = ["chat_created", "erased", "erased", "reaction", "delete"]
    assert [event.content.WhichOneof("body") for event in laptop.held.events[chat_id].values()] == kinds
    assert {event.sender_device_id for event in list(laptop.held.events[chat_id].values())[1:]} == {"phone"}


@pytest.mark.parametrize("away", [False, True], ids=["live", "away"])
async def test_reading_on_one_device_clears_the_badge_on_the_other(cast: Cast, phone: Device, away: bool) -> None:
    laptop, bob = await cast.online("alice", "laptop"), await cast.online("bob")
    sent = await bob.send(phone.user_id, "hello")
    for device in (phone, laptop):
        await device.until_held(sent.chat_id, sent.seq)
    if away:
        await laptop.close()
    await phone.mark_read(sent.chat_id, sent.seq)
    await phone.heartbeat()
    if away:
        await laptop.connect()
    own = (sent.chat_id, phone.user_id)
    await laptop.until(lambda: laptop.receipts.get(own, chat_pb2.Receipt()).read_seq == sent.seq)


@pytest.mark.parametrize("away", [False, True], ids=["live", "away"])
async def test_settings_and_hidden_messages_reach_the_other_device_and_nobody_else(
    cast: Cast, phone: Device, away: bool
) -> None:
    laptop, bob = await cast.online("alice", "laptop"), await cast.online("bob")
    sent = await phone.send(bob.user_id, "hello")
    own_chat = self_chat_id(phone.user_id)
    if away:
        await laptop.close()
    first = await phone.send(phone.user_id, "note to self")
    assert first.chat_id == own_chat
    for content in (chat_settings(sent.chat_id, archived=True), hide(sent.chat_id, sent.seq)):
        assert (await phone.send_content(own_chat, content)).HasField("sent")
    if away:
        await laptop.connect()
    await laptop.until_held(own_chat, 4)
    contents = [event.content for event in laptop.held.events[own_chat].values()]
    assert [content.WhichOneof("body") for content in contents] == ["chat_created", "text", "chat_settings", "hide"]
    assert contents[2].chat_settings.archived
    assert list(contents[3].hide.seqs) == [sent.seq]
    await bob.heartbeat()
    assert own_chat not in bob.held.events


async def test_a_new_device_gets_the_whole_self_chat_also_when_it_begins_at_the_head(cast: Cast, phone: Device) -> None:
    """Settings are needed from the first on."""
    own_chat = self_chat_id(phone.user_id)
    for number in range(3):
        await phone.send(phone.user_id, f"{number}")
    fresh = cast.device("alice", "fresh")
    await fresh.connect(start_at=START_AT_HEAD)
    await fresh.until_held(own_chat, 4)
    assert fresh.held.texts(own_chat) == ["0", "1", "2"]


async def test_a_group_that_one_device_made_is_on_the_other(cast: Cast, phone: Device) -> None:
    laptop = await cast.online("alice", "laptop")
    chat_id = await cast.group("alice", "bob", title="Ours")
    for device in (phone, laptop):
        await device.until_held(chat_id, 1)
        assert device.held.chats[chat_id] == (await cast.caller("alice").summary(chat_id)).chat
