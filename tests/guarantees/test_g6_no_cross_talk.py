"""G6: a user gets only events of chats they are a member of, at the seqs at which they were a member; nothing else leaks."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from chatgrpc.core.ids import self_chat_id
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    AnswerJoinRequestRequest,
    ChatSummary,
    CreateJoinLinkRequest,
    GetChatRequest,
    JoinByLinkRequest,
    LeaveGroupRequest,
    ListChatsRequest,
    MuteMemberRequest,
    RemoveMemberRequest,
    RevokeJoinLinkRequest,
    SetMemberRoleRequest,
    UpdateGroupRequest,
)
from chatgrpc.v1.device_service_pb2 import RenameDeviceRequest, RevokeDeviceRequest
from chatgrpc.v1.message_service_pb2 import (
    LIST_ORDER_NEWEST_FIRST,
    LIST_ORDER_OLDEST_FIRST,
    GetMessageRequest,
    ListMessagesRequest,
    MarkReadRequest,
    SendMessageRequest,
)
from tests.support.callers import Caller, code_of, text_content
from tests.support.cast import Cast
from tests.support.contents import delete, edit, reaction, reply
from tests.support.device import TIMEOUT_S, Device, next_frame
from tests.support.outbox import Outbox

NO_CHAT = "g." + "x" * 22
"""A chat id of proper form, and of no chat."""


class Secret:
    """A group of alice and bob, and what is said in it that nobody else may learn."""

    def __init__(self, cast: Cast, chat_id: str, alice: Device, bob: Device) -> None:
        self.cast = cast
        self.chat_id = chat_id
        self.alice = alice
        self.bob = bob
        self.caller = cast.caller("alice")
        self._typed = False

    async def happen(self) -> int:
        """Lets something of every kind happen in the group; returns its head."""
        sent = await self.alice.send(self.chat_id, "secret")
        await self.bob.until_held(self.chat_id, sent.seq)
        await self.bob.mark_read(self.chat_id, sent.seq)
        await self.alice.until(lambda: self._read_seq() >= sent.seq)
        if not self._typed:  # it is shown once a second
            self._typed = True
            await self.bob.typing(self.chat_id)
            await next_frame(self.alice, "typing")
        changed = await self.caller.chats.UpdateGroup(UpdateGroupRequest(chat_id=self.chat_id, title=f"secret {sent.seq}"))
        await self.bob.until_held(self.chat_id, changed.committed.seq)
        return changed.committed.seq

    def _read_seq(self) -> int:
        mark = self.alice.receipts.get((self.chat_id, self.bob.user_id))
        return mark.read_seq if mark is not None else 0

    async def settled(self) -> ChatSummary:
        """The chat as every node tells it, once the marks of alice and bob, who hold all of it, are stored."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                told = [await self.caller.summary(self.chat_id) for _ in self.cast.server.addresses]
                marks = {receipt.delivered_seq for summary in told for receipt in summary.receipts}
                if marks == {told[0].head_seq}:
                    return told[0]
                await asyncio.sleep(0.05)

    async def remove(self, name: str) -> int:
        """Removes someone; returns the seq of it."""
        request = RemoveMemberRequest(chat_id=self.chat_id, user_id=self.cast.user(name))
        return (await self.caller.chats.RemoveMember(request)).committed.seq

    async def add(self, name: str) -> int:
        """Lets someone in; returns the seq of it."""
        request = AddMembersRequest(chat_id=self.chat_id, user_ids=[self.cast.user(name)])
        return (await self.caller.chats.AddMembers(request)).committed.seq


@pytest_asyncio.fixture
async def secret(cast: Cast) -> Secret:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group("alice", "bob", title="secret")
    for device in (alice, bob):
        await device.until_held(chat_id, 1)
    return Secret(cast, chat_id, alice, bob)


async def everything_to(device: Device) -> bytes:
    """All that was pushed to a device since it was last asked, after all that had happened before was pushed."""
    noted = await device.send(device.user_id, "note to self")  # what was to be shown goes out with the next event
    await device.until_held(noted.chat_id, noted.seq)
    return b"".join(frame.SerializeToString() for frame in device.taken())


# What a stranger is sent.


async def test_a_stranger_is_pushed_nothing(cast: Cast, secret: Secret) -> None:
    """Not even when they ask to be shown who is there."""
    eve = await cast.online("eve")
    await eve.watch(secret.chat_id, NO_CHAT)
    await secret.happen()
    seen = await everything_to(eve)
    for word in ("secret", secret.chat_id, secret.alice.user_id, secret.bob.user_id):
        assert word.encode() not in seen
    assert secret.chat_id not in eve.held.events


async def test_the_members_of_a_direct_chat_are_alone_in_it(cast: Cast) -> None:
    alice, bob, eve = [await cast.online(name) for name in ("alice", "bob", "eve")]
    sent = await alice.send(bob.user_id, "secret")
    await bob.until_held(sent.chat_id, sent.seq)
    assert sent.chat_id.encode() not in await everything_to(eve)
    assert (await eve.request(eve.compose(sent.chat_id, "me too"))).error.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert code_of(await cast.caller("eve").messages.ListMessages(ListMessagesRequest(chat_id=sent.chat_id))) == "NOT_A_MEMBER"


async def test_a_self_chat_is_its_users_alone(cast: Cast) -> None:
    alice, eve = await cast.online("alice"), await cast.online("eve")
    chat_id = self_chat_id(alice.user_id)
    for step in ("before it is there", "after"):
        assert (await eve.request(eve.compose(chat_id, step))).error.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER
        assert code_of(await cast.caller("eve").messages.ListMessages(ListMessagesRequest(chat_id=chat_id))) == "NOT_A_MEMBER"
        await alice.send(alice.user_id, "note")


async def test_a_stranger_does_nothing_to_a_chat(cast: Cast, secret: Secret) -> None:
    """Frames that are not answered: nothing of them reaches a member."""
    eve = await cast.online("eve")
    head = await secret.happen()
    await eve.ack(secret.chat_id, head)
    await eve.mark_read(secret.chat_id, head)
    await eve.typing(secret.chat_id)
    await eve.heartbeat()
    assert eve.user_id.encode() not in await everything_to(secret.alice)
    assert eve.user_id not in {receipt.user_id for receipt in (await secret.caller.summary(secret.chat_id)).receipts}


# What a stranger is answered: the same as if there were no such chat.

CONTENTS = {
    "text": text_content("hello"),
    "reply": reply(1, "hello"),
    "reaction": reaction(1, "👍"),
    "edit": edit(1, "hello"),
    "delete": delete(1),
    "settings in another's chat": content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=NO_CHAT)),
}


@pytest.mark.parametrize("seen_seq", [0, 1, 10**6])
@pytest.mark.parametrize("kind", CONTENTS)
async def test_a_send_of_a_stranger_is_refused_as_if_there_were_no_chat(
    cast: Cast, secret: Secret, kind: str, seen_seq: int
) -> None:
    eve = await cast.online("eve")
    answers = []
    for chat_id in (secret.chat_id, NO_CHAT):
        key = chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=seen_seq)
        send = session_pb2.SendMessage(chat_id=chat_id, key=key, content=CONTENTS[kind])
        answers.append((await eve.request(session_pb2.ClientFrame(send=send))).error)
    assert answers[0].code == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert answers[0] == answers[1]


PAGES = {
    "newest": session_pb2.FetchHistory(),
    "before": session_pb2.FetchHistory(before_seq=3),
    "after": session_pb2.FetchHistory(after_seq=1),
    "around": session_pb2.FetchHistory(around_seq=2),
}


@pytest.mark.parametrize("where", PAGES)
async def test_history_is_refused_to_a_stranger_as_if_there_were_no_chat(cast: Cast, secret: Secret, where: str) -> None:
    eve = await cast.online("eve")
    answers = []
    for chat_id in (secret.chat_id, NO_CHAT):
        request = session_pb2.FetchHistory(chat_id=chat_id)
        request.MergeFrom(PAGES[where])
        answers.append((await eve.history(request)).error)
    assert answers[0].code == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    assert answers[0] == answers[1]


Call = Callable[[Caller, str, str], Awaitable[Any]]
"""Calls with the caller, the chat id and the user id of a member."""

CALLS: dict[str, Call] = {
    "GetChat": lambda it, chat_id, _: it.chats.GetChat(GetChatRequest(chat_id=chat_id)),
    "UpdateGroup": lambda it, chat_id, _: it.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="mine")),
    "AddMembers": lambda it, chat_id, user: it.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=[it.user_id])),
    "RemoveMember": lambda it, chat_id, user: it.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id=user)),
    "LeaveGroup": lambda it, chat_id, _: it.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id)),
    "SetMemberRole": lambda it, chat_id, user: it.chats.SetMemberRole(
        SetMemberRoleRequest(chat_id=chat_id, user_id=user, role=content_pb2.MEMBER_ROLE_ADMIN)
    ),
    "MuteMember": lambda it, chat_id, user: it.chats.MuteMember(MuteMemberRequest(chat_id=chat_id, user_id=user)),
    "CreateJoinLink": lambda it, chat_id, _: it.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id)),
    "RevokeJoinLink": lambda it, chat_id, _: it.chats.RevokeJoinLink(RevokeJoinLinkRequest(chat_id=chat_id)),
    "AnswerJoinRequest": lambda it, chat_id, user: it.chats.AnswerJoinRequest(
        AnswerJoinRequestRequest(chat_id=chat_id, user_id=user, approve=True)
    ),
    "AnswerJoinRequest, declining": lambda it, chat_id, user: it.chats.AnswerJoinRequest(
        AnswerJoinRequestRequest(chat_id=chat_id, user_id=user)
    ),
    "SendMessage": lambda it, chat_id, _: it.messages.SendMessage(
        SendMessageRequest(chat_id=chat_id, content=text_content("hello"))
    ),
    "SendMessage, with a key": lambda it, chat_id, _: it.messages.SendMessage(
        SendMessageRequest(
            chat_id=chat_id,
            content=text_content("hello"),
            key=chat_pb2.WriteKey(client_message_id=os.urandom(16), seen_seq=10**6),
        )
    ),
    "ListMessages": lambda it, chat_id, _: it.messages.ListMessages(ListMessagesRequest(chat_id=chat_id)),
    "ListMessages, oldest first": lambda it, chat_id, _: it.messages.ListMessages(
        ListMessagesRequest(chat_id=chat_id, order=LIST_ORDER_OLDEST_FIRST, start_seq=1)
    ),
    "GetMessage": lambda it, chat_id, _: it.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=1)),
    "MarkRead": lambda it, chat_id, _: it.messages.MarkRead(MarkReadRequest(chat_id=chat_id, seq=1)),
}
OF_PAST_MEMBERS = {"ListMessages", "ListMessages, oldest first", "GetMessage"}
"""Who was a member may read what they could see then."""


@pytest.mark.parametrize("call", CALLS)
async def test_a_unary_call_of_a_stranger_is_refused_as_if_there_were_no_chat(cast: Cast, secret: Secret, call: str) -> None:
    eve, bob = cast.caller("eve"), secret.bob.user_id
    before = await secret.settled()
    answers = [await CALLS[call](eve, chat_id, bob) for chat_id in (secret.chat_id, NO_CHAT)]
    assert code_of(answers[0]) == "NOT_A_MEMBER"
    assert answers[0] == answers[1]
    assert await secret.caller.summary(secret.chat_id) == before


@pytest.mark.parametrize("call", sorted(CALLS.keys() - OF_PAST_MEMBERS))
async def test_a_unary_call_of_a_past_member_is_refused_like_a_strangers(cast: Cast, secret: Secret, call: str) -> None:
    await secret.add("dave")
    await secret.remove("dave")
    dave, bob = cast.caller("dave"), secret.bob.user_id
    answers = [await CALLS[call](dave, chat_id, bob) for chat_id in (secret.chat_id, NO_CHAT)]
    assert code_of(answers[0]) == "NOT_A_MEMBER"
    assert answers[0] == answers[1]


async def test_a_chat_is_not_in_a_strangers_list_nor_in_a_past_members(cast: Cast, secret: Secret) -> None:
    await secret.add("dave")
    await secret.remove("dave")
    for name in ("eve", "dave"):
        assert not (await cast.caller(name).chats.ListChats(ListChatsRequest())).chats


async def test_a_wrong_join_link_says_nothing_of_the_chat_that_it_names(cast: Cast, secret: Secret) -> None:
    await secret.caller.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=secret.chat_id))
    eve = cast.caller("eve")
    answers = [
        await eve.chats.JoinByLink(JoinByLinkRequest(token=f"{chat_id}.guessed")) for chat_id in (secret.chat_id, NO_CHAT)
    ]
    assert code_of(answers[0]) == "LINK_INVALID"
    assert answers[0] == answers[1]


async def test_another_users_device_cannot_be_named(cast: Cast, secret: Secret) -> None:
    eve = cast.caller("eve")
    assert code_of(await eve.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))) == "NOT_FOUND"
    assert code_of(await eve.devices.RenameDevice(RenameDeviceRequest(device_id="phone", name="mine"))) == "NOT_FOUND"
    await secret.happen()  # their streams are alive


# Past members.


async def test_a_past_member_is_pushed_nothing_of_what_comes_after(cast: Cast, secret: Secret) -> None:
    """The chat was on their screen when they were removed; who comes and goes in it is not shown to them either."""
    dave = await cast.online("dave")
    await dave.until_held(secret.chat_id, await secret.add("dave"))
    await dave.watch(secret.chat_id)
    await next_presence_of(dave, secret.bob)
    left = await secret.remove("dave")
    await dave.until_held(secret.chat_id, left)
    await everything_to(dave)

    await secret.happen()
    await secret.bob.close()
    await secret.alice.watch(secret.chat_id)
    await secret.alice.until(lambda: any(f.presence.user_id and not f.presence.online for f in secret.alice.taken()))
    await dave.ack(secret.chat_id, left)
    seen = await everything_to(dave)
    for word in ("secret", secret.chat_id, secret.alice.user_id, secret.bob.user_id):
        assert word.encode() not in seen
    assert secret.chat_id not in {head.chat_id for head in (await dave.heartbeat()).heads}
    assert max(dave.held.events[secret.chat_id]) == left


async def test_a_past_member_does_nothing_to_the_chat(cast: Cast, secret: Secret) -> None:
    dave = await cast.online("dave")
    await dave.until_held(secret.chat_id, await secret.add("dave"))
    left = await secret.remove("dave")
    await dave.until_held(secret.chat_id, left)
    head = await secret.happen()
    await everything_to(secret.alice)
    await dave.mark_read(secret.chat_id, head)
    await dave.typing(secret.chat_id)
    for content in CONTENTS.values():
        assert (await dave.send_content(secret.chat_id, content)).error.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER
    await everything_to(dave)
    await secret.alice.heartbeat()
    assert not any(frame.typing.user_id == dave.user_id for frame in secret.alice.taken())
    assert (await secret.caller.summary(secret.chat_id)).head_seq == head
    mark = secret.alice.receipts.get((secret.chat_id, dave.user_id), chat_pb2.Receipt())
    assert mark.read_seq <= left


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
async def test_a_past_member_reads_up_to_their_leaving(cast: Cast, secret: Secret, away: bool) -> None:
    """By any way of reading, also on a device that was away when it happened, or that is new."""
    dave = await cast.online("dave")
    joined = await secret.add("dave")
    await dave.until_held(secret.chat_id, joined)
    if away:
        await dave.close()
    await secret.happen()
    left = await secret.remove("dave")
    for _ in range(5):
        head = await secret.happen()
    if away:
        await dave.connect()
        await dave.synced()
    await dave.until_held(secret.chat_id, left)
    fresh = await cast.online("dave", "fresh")
    for device in (dave, fresh):
        assert list(device.held.events[secret.chat_id]) == list(range(joined, left + 1))
    opened = [frame.chat_opened for frame in fresh.taken() if frame.HasField("chat_opened")]
    assert (opened[0].next_seq, opened[0].head_seq, opened[0].first_visible_seq) == (joined, left, joined)
    assert f"secret {head - 1}".encode() not in opened[0].SerializeToString()
    assert not opened[0].chat.members

    assert await cast.caller("dave").seqs(secret.chat_id) == list(range(joined, left + 1))
    assert await pages(dave, secret.chat_id, head) == set(range(joined, left + 1))
    await check_single_reads(cast.caller("dave"), secret.chat_id, head, set(range(joined, left + 1)))


# Members who came later, or were away from the group for a while.


async def test_a_new_member_sees_nothing_from_before(cast: Cast, secret: Secret) -> None:
    await secret.happen()
    joined = await secret.add("rose")
    head = await secret.happen()
    visible = set(range(joined, head + 1))
    rose = await cast.online("rose")
    assert set(rose.held.events[secret.chat_id]) == visible
    assert await pages(rose, secret.chat_id, head) == visible
    await check_single_reads(cast.caller("rose"), secret.chat_id, head, visible)
    for content in (reaction(joined - 1, "👍"), reply(joined - 1, "hello"), delete(joined - 1)):
        assert (await rose.send_content(secret.chat_id, content)).error.code == chat_pb2.ERROR_CODE_TARGET_NOT_FOUND


async def test_a_rejoined_member_sees_their_times_and_nothing_between(cast: Cast, secret: Secret) -> None:
    visible: set[int] = set()
    for _ in range(3):
        joined = await secret.add("rose")
        await secret.happen()
        left = await secret.remove("rose")
        visible |= set(range(joined, left + 1))
        await secret.happen()
    joined = await secret.add("rose")
    head = await secret.happen()
    visible |= set(range(joined, head + 1))

    rose = await cast.online("rose")
    assert set(rose.held.events[secret.chat_id]) == visible
    assert await pages(rose, secret.chat_id, head) == visible
    assert set(await cast.caller("rose").seqs(secret.chat_id)) == visible
    await check_single_reads(cast.caller("rose"), secret.chat_id, head, visible)
    for content in (reaction(left + 1, "👍"), reply(left + 1, "hello"), delete(left + 1)):
        assert (await rose.send_content(secret.chat_id, content)).error.code == chat_pb2.ERROR_CODE_TARGET_NOT_FOUND


async def test_who_is_in_and_out_while_their_device_lags_sees_their_times_only(cast: Cast, secret: Secret) -> None:
    """Live, with a full window: the changes come while the device is sent nothing, and are read from the log later."""
    joined = await secret.add("rose")
    rose = cast.device("rose")
    rose.auto_ack = False
    await rose.connect()
    await rose.until_held(secret.chat_id, joined)
    outbox = Outbox(secret.alice, window=200)
    for number in range(1_010):
        outbox.compose(secret.chat_id, f"{number}")
    await outbox.flush()
    await rose.until_held(secret.chat_id, joined + 999)
    visible = set(range(joined, joined + 1_011))
    for _ in range(2):
        left = await secret.remove("rose")
        visible.add(left)
        await secret.happen()
        back = await secret.add("rose")
        head = await secret.happen()
        visible |= set(range(back, head + 1))
    last = await secret.remove("rose")
    visible.add(last)
    await secret.happen()

    rose.auto_ack = True
    await rose.ack(secret.chat_id, rose.held.cursors[secret.chat_id])
    await rose.until_held(secret.chat_id, last)
    await everything_to(rose)
    assert set(rose.held.events[secret.chat_id]) == visible


async def next_presence_of(device: Device, other: Device) -> None:
    """Waits until the device was shown that the other is online."""
    await device.until(lambda: any(frame.presence.user_id == other.user_id for frame in device.taken()))


async def pages(device: Device, chat_id: str, head: int) -> set[int]:
    """Seqs of what a device gets by history pages from everywhere, in every direction; they must agree."""
    found: list[set[int]] = []
    for direction in ("before_seq", "after_seq"):
        seqs: set[int] = set()
        at, more = (head + 100, True) if direction == "before_seq" else (0, True)
        while more:
            request = session_pb2.FetchHistory(chat_id=chat_id, limit=3)
            setattr(request, direction, at)
            page = (await device.history(request)).history_page
            seqs |= {event.seq for event in page.events}
            more = page.more_before if direction == "before_seq" else page.more_after
            assert page.events or not more
            at = (page.events[0].seq if direction == "before_seq" else page.events[-1].seq) if page.events else at
        found.append(seqs)
    around: set[int] = set()
    for seq in range(head + 2):
        page = (await device.history(session_pb2.FetchHistory(chat_id=chat_id, around_seq=seq, limit=4))).history_page
        around |= {event.seq for event in page.events}
    assert found[0] == found[1] == around
    return around


async def check_single_reads(caller: Caller, chat_id: str, head: int, visible: set[int]) -> None:
    """GetMessage finds what is visible; ListMessages from any place and in both orders shows no other."""
    for seq in range(1, head + 2):
        read = await caller.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=seq))
        if seq in visible:
            assert read.event.seq == seq
        else:
            assert code_of(read) == "NOT_FOUND"
        for order in (LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST):
            request = ListMessagesRequest(chat_id=chat_id, order=order, page_size=2, start_seq=seq)
            listed = await caller.messages.ListMessages(request)
            assert {event.seq for event in listed.events} <= visible
