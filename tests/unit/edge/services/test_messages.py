"""MessageService."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.core.write import Write
from chatgrpc.edge.services import messages
from chatgrpc.ports.tokens import Claims
from chatgrpc.v1 import chat_pb2, content_pb2, message_service_pb2
from chatgrpc.v1.chat_service_pb2 import AddMembersRequest, LeaveGroupRequest, MuteMemberRequest, RemoveMemberRequest
from chatgrpc.v1.message_service_pb2 import (
    GetMessageRequest,
    ListMessagesRequest,
    ListMessagesResponse,
    MarkReadRequest,
    SendMessageRequest,
)
from tests.support.callers import Caller, code_of, text_content

NEWEST = message_service_pb2.LIST_ORDER_NEWEST_FIRST
OLDEST = message_service_pb2.LIST_ORDER_OLDEST_FIRST
NO_CHAT = "g." + "A" * 22
KEY = chat_pb2.WriteKey(client_message_id=bytes(range(16)))


async def test_send_to_a_user_opens_their_direct_chat(alice: Caller, bob: Caller) -> None:
    reply = await alice.messages.SendMessage(SendMessageRequest(user_id="bob", content=text_content("hello")))
    chat_id = direct_chat_id("alice", "bob")
    assert (reply.sent.chat_id, reply.sent.seq, reply.sent.duplicate) == (chat_id, 2, False)  # 1 is chat_created
    answer = await bob.messages.SendMessage(SendMessageRequest(user_id="alice", content=text_content("hi")))
    assert (answer.sent.chat_id, answer.sent.seq) == (chat_id, 3)
    event = (await bob.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=2))).event
    assert (event.sender_user_id, event.content.text.text, event.message_id) == ("alice", "hello", reply.sent.message_id)
    assert event.sent_at_ms == reply.sent.sent_at_ms
    assert len(event.client_message_id) == 16


async def test_send_to_oneself_is_a_note(alice: Caller) -> None:
    reply = await alice.messages.SendMessage(SendMessageRequest(user_id="alice", content=text_content("milk")))
    assert reply.sent.chat_id == self_chat_id("alice")
    assert await alice.seqs(self_chat_id("alice")) == [1, 2]


async def test_a_repeated_key_is_sent_once(alice: Caller) -> None:
    request = SendMessageRequest(user_id="bob", content=text_content("once"), key=KEY)
    replies = [await alice.messages.SendMessage(request) for _ in range(2)]
    replies += await asyncio.gather(*(alice.messages.SendMessage(request) for _ in range(5)))
    assert {reply.sent.seq for reply in replies} == {2}
    assert {reply.sent.message_id for reply in replies} == {replies[0].sent.message_id}
    assert [reply.sent.duplicate for reply in replies] == [False] + 6 * [True]
    assert await alice.seqs(direct_chat_id("alice", "bob")) == [1, 2]


async def test_without_a_key_every_call_sends_another(alice: Caller) -> None:
    request = SendMessageRequest(user_id="bob", content=text_content("again"))
    assert [(await alice.messages.SendMessage(request)).sent.seq for _ in range(3)] == [2, 3, 4]


@pytest.mark.parametrize(
    "request_",
    [
        SendMessageRequest(content=text_content("to nobody")),
        SendMessageRequest(user_id="not a user", content=text_content("x")),
        SendMessageRequest(chat_id="not a chat", content=text_content("x")),
        SendMessageRequest(user_id="bob"),
        SendMessageRequest(user_id="bob", content=text_content("")),
        SendMessageRequest(user_id="bob", content=text_content("x"), key=chat_pb2.WriteKey()),
        SendMessageRequest(user_id="bob", content=text_content("x"), key=chat_pb2.WriteKey(client_message_id=bytes(15))),
        SendMessageRequest(user_id="bob", content=text_content("x"), key=chat_pb2.WriteKey(client_message_id=bytes(17))),
    ],
    ids=["nobody", "user id", "chat id", "no content", "no text", "empty key", "short key", "long key"],
)
async def test_send_refuses_malformed_requests(alice: Caller, request_: SendMessageRequest) -> None:
    assert code_of(await alice.messages.SendMessage(request_)) == "INVALID_ARGUMENT"


def _written_by_the_server() -> Iterator[content_pb2.Content]:
    for field in content_pb2.Content.DESCRIPTOR.oneofs_by_name["body"].fields:
        if field.number >= content_pb2.Content.CHAT_CREATED_FIELD_NUMBER:
            content = content_pb2.Content()
            arm: Message = getattr(content, field.name)
            arm.SetInParent()
            yield content


@pytest.mark.parametrize("content", list(_written_by_the_server()), ids=lambda content: content.WhichOneof("body"))
async def test_send_refuses_what_the_server_writes(alice: Caller, content: content_pb2.Content) -> None:
    chat_id = await alice.create_group("bob")
    reply = await alice.messages.SendMessage(SendMessageRequest(chat_id=chat_id, content=content))
    assert code_of(reply) == "UNSUPPORTED_CONTENT"
    assert await alice.seqs(chat_id) == [1]


async def test_send_hands_on_what_the_owner_refuses(alice: Caller, bob: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    send = SendMessageRequest(chat_id=chat_id, content=text_content("x"))
    assert code_of(await carol.messages.SendMessage(send)) == "NOT_A_MEMBER"
    assert (
        code_of(await carol.messages.SendMessage(SendMessageRequest(chat_id=NO_CHAT, content=text_content("x"))))
        == "NOT_A_MEMBER"
    )
    too_large = SendMessageRequest(chat_id=chat_id, content=text_content("x" * 65_537))
    assert code_of(await alice.messages.SendMessage(too_large)) == "TOO_LARGE"
    ahead = SendMessageRequest(
        chat_id=chat_id, content=text_content("x"), key=chat_pb2.WriteKey(client_message_id=bytes(16), seen_seq=99)
    )
    assert code_of(await alice.messages.SendMessage(ahead)) == "SEEN_SEQ_AHEAD"
    reaction = content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=99, emoji="👍"))
    nothing = SendMessageRequest(chat_id=chat_id, content=reaction)
    assert code_of(await alice.messages.SendMessage(nothing)) == "TARGET_NOT_FOUND"
    await alice.chats.MuteMember(
        MuteMemberRequest(chat_id=chat_id, user_id="bob", muted_until_ms=time.time_ns() // 1_000_000 + 3_600_000)
    )
    assert code_of(await bob.messages.SendMessage(send)) == "MUTED"


async def test_pages_in_both_directions(alice: Caller) -> None:
    chat_id = await alice.create_group()
    for number in range(24):
        await alice.send(chat_id, str(number))
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id)) == [list(range(25, 5, -1)), [5, 4, 3, 2, 1]]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, page_size=5, order=NEWEST)) == [
        list(range(first, first - 5, -1)) for first in (25, 20, 15, 10, 5)
    ]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, page_size=10, order=OLDEST)) == [
        list(range(1, 11)),
        list(range(11, 21)),
        list(range(21, 26)),
    ]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, page_size=10, order=OLDEST, start_seq=20)) == [
        [21, 22, 23, 24, 25]
    ]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, page_size=3, start_seq=5)) == [[4, 3, 2], [1]]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, order=OLDEST, start_seq=25)) == [[]]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, start_seq=1)) == [[]]
    assert await _pages(alice, ListMessagesRequest(chat_id=chat_id, start_seq=2**64 - 1, page_size=100)) == [
        list(range(25, 0, -1))
    ]


async def test_pages_go_on_while_messages_arrive(alice: Caller) -> None:
    chat_id = await alice.create_group()
    for number in range(5):
        await alice.send(chat_id, str(number))
    older = await alice.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=3))
    newer = await alice.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=3, order=OLDEST))
    await alice.send(chat_id, "meanwhile")
    older = await alice.messages.ListMessages(
        ListMessagesRequest(chat_id=chat_id, page_size=3, page_token=older.next_page_token)
    )
    newer = await alice.messages.ListMessages(
        ListMessagesRequest(chat_id=chat_id, page_size=9, order=OLDEST, page_token=newer.next_page_token)
    )
    assert [event.seq for event in older.events] == [3, 2, 1]
    assert [event.seq for event in newer.events] == [4, 5, 6, 7]


async def test_g6_pages_show_the_intervals_of_membership_and_nothing_else(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group()  # 1
    await alice.send(chat_id, "before bob")  # 2
    await alice.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["bob"]))  # 3
    await alice.send(chat_id, "to bob")  # 4
    await bob.chats.LeaveGroup(LeaveGroupRequest(chat_id=chat_id))  # 5
    await alice.send(chat_id, "behind bob's back")  # 6
    await alice.send(chat_id, "behind bob's back")  # 7
    assert await bob.seqs(chat_id) == [3, 4, 5]
    await alice.chats.AddMembers(AddMembersRequest(chat_id=chat_id, user_ids=["bob"]))  # 8
    await alice.send(chat_id, "to bob")  # 9
    assert await bob.seqs(chat_id) == [3, 4, 5, 8, 9]
    assert await _pages(bob, ListMessagesRequest(chat_id=chat_id, page_size=2)) == [[9, 8], [5, 4], [3]]
    await alice.chats.RemoveMember(RemoveMemberRequest(chat_id=chat_id, user_id="bob"))  # 10
    await alice.send(chat_id, "behind bob's back")  # 11
    assert await bob.seqs(chat_id) == [3, 4, 5, 8, 9, 10]
    assert await alice.seqs(chat_id) == list(range(1, 12))
    for seq in range(1, 13):
        reply = await bob.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=seq))
        if seq in {3, 4, 5, 8, 9, 10}:
            assert reply.event.seq == seq
        else:
            assert code_of(reply) == "NOT_FOUND"


async def test_a_page_ends_early_past_its_size_in_bytes(alice: Caller) -> None:
    chat_id = await alice.create_group()
    for _ in range(12):
        await alice.send(chat_id, "x" * 60_000)
    pages = await _pages(alice, ListMessagesRequest(chat_id=chat_id, page_size=100, order=OLDEST))
    assert [len(page) for page in pages] == [10, 3]  # 512 KiB are passed by the ninth message; seq 1 is small
    assert [seq for page in pages for seq in page] == list(range(1, 14))


@pytest.mark.parametrize(
    "request_",
    [
        ListMessagesRequest(chat_id="not a chat"),
        ListMessagesRequest(chat_id=NO_CHAT, page_size=-1),
        ListMessagesRequest(chat_id=NO_CHAT, order=3),  # type: ignore[arg-type]
        ListMessagesRequest(chat_id=NO_CHAT, page_token="bm90IG91cnM"),
    ],
    ids=["chat id", "page size", "order", "page token"],
)
async def test_list_refuses_malformed_requests(alice: Caller, request_: ListMessagesRequest) -> None:
    assert code_of(await alice.messages.ListMessages(request_)) == "INVALID_ARGUMENT"


async def test_a_page_token_belongs_to_its_chat_and_order(alice: Caller) -> None:
    chat_id, other_chat_id = await alice.create_group(), await alice.create_group()
    for _ in range(3):
        await alice.send(chat_id, "x")
        await alice.send(other_chat_id, "x")
    token = (await alice.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=2))).next_page_token
    for request in (
        ListMessagesRequest(chat_id=other_chat_id, page_token=token),
        ListMessagesRequest(chat_id=chat_id, order=OLDEST, page_token=token),
        ListMessagesRequest(chat_id=chat_id, page_token=token[:-1]),
        ListMessagesRequest(chat_id=chat_id, page_token=token + "A"),
    ):
        assert code_of(await alice.messages.ListMessages(request)) == "INVALID_ARGUMENT"
    named = ListMessagesRequest(chat_id=chat_id, order=NEWEST, page_token=token)
    assert [event.seq for event in (await alice.messages.ListMessages(named)).events] == [2, 1]


async def test_strangers_read_nothing(alice: Caller, carol: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for stranger_sees in (chat_id, NO_CHAT):
        listed = await carol.messages.ListMessages(ListMessagesRequest(chat_id=stranger_sees))
        assert code_of(listed) == "NOT_A_MEMBER"
        assert not listed.events
        assert code_of(await carol.messages.GetMessage(GetMessageRequest(chat_id=stranger_sees, seq=1))) == "NOT_A_MEMBER"
        assert code_of(await carol.messages.MarkRead(MarkReadRequest(chat_id=stranger_sees, seq=1))) == "NOT_A_MEMBER"


async def test_get_message_refuses_malformed_requests(alice: Caller) -> None:
    chat_id = await alice.create_group()
    assert code_of(await alice.messages.GetMessage(GetMessageRequest(chat_id=chat_id))) == "INVALID_ARGUMENT"
    assert code_of(await alice.messages.GetMessage(GetMessageRequest(chat_id="x", seq=1))) == "INVALID_ARGUMENT"
    assert code_of(await alice.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=2**64 - 1))) == "NOT_FOUND"


async def test_a_deleted_message_is_read_without_its_content(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob")
    sent = await alice.send(chat_id, "a secret")
    delete = content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=sent.seq))
    await alice.messages.SendMessage(SendMessageRequest(chat_id=chat_id, content=delete))
    event = (await bob.messages.GetMessage(GetMessageRequest(chat_id=chat_id, seq=sent.seq))).event
    assert (event.content.WhichOneof("body"), event.sender_user_id) == ("erased", "alice")


async def test_read_marks_only_rise_and_end_at_the_head(alice: Caller, bob: Caller) -> None:
    chat_id = await alice.create_group("bob")
    for _ in range(4):
        await alice.send(chat_id, "x")
    marks = []
    for seq in (2, 4, 3, 2**64 - 1):
        reply = await bob.messages.MarkRead(MarkReadRequest(chat_id=chat_id, seq=seq))
        assert (reply.receipt.chat_id, reply.receipt.user_id) == (chat_id, "bob")
        marks.append((reply.receipt.delivered_seq, reply.receipt.read_seq))
    assert marks == [(2, 2), (4, 4), (4, 4), (5, 5)]


async def test_mark_read_refuses_malformed_requests(alice: Caller) -> None:
    chat_id = await alice.create_group()
    assert code_of(await alice.messages.MarkRead(MarkReadRequest(chat_id=chat_id))) == "INVALID_ARGUMENT"
    assert code_of(await alice.messages.MarkRead(MarkReadRequest(chat_id="x", seq=1))) == "INVALID_ARGUMENT"


async def _pages(caller: Caller, request: ListMessagesRequest) -> list[list[int]]:
    """The seqs of each page."""
    pages: list[list[int]] = []
    reply = ListMessagesResponse()
    while not pages or reply.next_page_token:
        request.page_token = reply.next_page_token
        reply = await caller.messages.ListMessages(request)
        assert not reply.HasField("error"), reply
        pages.append([event.seq for event in reply.events])
    return pages


async def test_what_waits_of_a_send_keeps_nothing_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for longer than the call."""
    monkeypatch.setattr(messages, "current_claims", lambda: Claims("alice", 2**53))

    submitted: list[Write] = []

    class Owner:
        async def submit(self, write: Write) -> chat_pb2.SendResult:
            submitted.append(write)
            return chat_pb2.SendResult()

    request = SendMessageRequest(user_id="bob", content=content_pb2.Content(text=content_pb2.TextContent(text="hello")))
    service = messages.MessageService(Owner())  # type: ignore[arg-type]  # the part of a Backend that is used
    await service.SendMessage(request, None)
    request.content.text.text = "another"
    assert submitted[0].content.text.text == "hello"
