"""What a working server rarely or never does: a scripted one loses its log, leaves gaps, falls silent, on demand."""

import asyncio
import contextlib
import json
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    content_pb2,
    message_service_pb2,
    message_service_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from chatgrpc_client import Client, ClientConfig, LogEvent, MessageDelayed, engine, protocol
from chatgrpc_client.cli.room import Room
from chatgrpc_client.cli.send import NOT_SENT, REFUSED, _Sender
from chatgrpc_client.client import CONTENT_BYTES_MAX
from chatgrpc_client.exceptions import (
    ChatDamagedError,
    ClientClosedError,
    DeviceRevokedError,
    DiskError,
    ForbiddenError,
    RateLimitedError,
    RequestTimeoutError,
    TemporaryError,
)
from chatgrpc_client.outbox import OutboxEntry
from chatgrpc_client.store import QueuedMessage, Store
from chatgrpc_client.unary import Groups

from . import frames
from .conftest import watching
from .frames import frame, text, welcome
from .known_tokens import know_tokens
from .shell import TIMEOUT_S

CHAT = direct_chat_id("alice", "bob")
GROUP = "g.aaaaaaaaaaaaaaaaaaaaaa"
SOONER_S = 40.0
"""A stream on which nothing goes either way is given up after 75 s."""
event = partial(frames.event, chat_id=CHAT)
opened = partial(frames.opened, chat_id=CHAT)


class Stream:
    """One stream, as the script sees it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._frames: list[session_pb2.ClientFrame] = []
        self.hello = session_pb2.Hello()

    async def read(self, arm: str) -> session_pb2.ClientFrame:
        """The next frame of this kind; others are passed over."""
        while True:
            while self._frames:
                found = self._frames.pop(0)
                if found.WhichOneof("body") == arm:
                    return found
            request = await self._context.read()
            if not isinstance(request, session_pb2.ConnectRequest):
                raise ConnectionResetError
            self._frames += request.frames

    async def write(self, *frames: session_pb2.ServerFrame) -> None:
        """Sends frames in one batch."""
        await self._context.write(session_pb2.ConnectResponse(frames=frames))

    async def welcome(self, *frames: session_pb2.ServerFrame) -> None:
        """Reads the Hello, and answers with a Welcome, these frames, and the end of the synchronization."""
        self.hello = (await self.read("hello")).hello
        await self.write(welcome(), *frames, frame(session_pb2.SyncComplete(sync_token="t")))

    async def stay(self) -> None:
        """Keeps the stream open until the client ends it."""
        await self.read("hello")


Script = Callable[[Stream], Awaitable[None]]


class ScriptedServer(session_pb2_grpc.SessionServiceServicer):
    """Runs one script per stream, in order."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.streams = 0
        self.failures: list[BaseException] = []

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Runs the next script; the stream ends with it."""
        script = self._scripts[min(self.streams, len(self._scripts) - 1)]
        self.streams += 1
        try:
            await script(Stream(context))
        except ConnectionResetError:
            return
        except AssertionError as error:
            self.failures.append(error)


class Chats(chat_service_pb2_grpc.ChatServiceServicer):
    """A group that its creator made a link for, as event 2, and that a user joined, by event 3."""

    async def CreateJoinLink(self, request: Any, context: Any) -> chat_service_pb2.CreateJoinLinkResponse:
        """Makes the link."""
        committed = chat_pb2.SendResult(chat_id=request.chat_id, seq=2)
        return chat_service_pb2.CreateJoinLinkResponse(join_link=content_pb2.JoinLink(token="secret"), committed=committed)

    async def JoinByLink(self, request: Any, context: Any) -> chat_service_pb2.JoinByLinkResponse:
        """Lets the caller in."""
        return chat_service_pb2.JoinByLinkResponse(joined=chat_pb2.Chat(chat_id=GROUP, as_of_seq=3))


class Messages(message_service_pb2_grpc.MessageServiceServicer):
    """The first event of that group."""

    async def ListMessages(self, request: Any, context: Any) -> message_service_pb2.ListMessagesResponse:
        """Where it ends, for who asks before the link is made."""
        return message_service_pb2.ListMessagesResponse(events=[frames.event(1, chat_id=GROUP)])


@contextlib.asynccontextmanager
async def client_of(tmp_path: Path, *scripts: Script, **settings: Any) -> AsyncIterator[tuple[Client, ScriptedServer]]:
    scripted = ScriptedServer(*scripts)
    server = grpc.aio.server()
    session_pb2_grpc.add_SessionServiceServicer_to_server(scripted, server)
    chat_service_pb2_grpc.add_ChatServiceServicer_to_server(Chats(), server)  # type: ignore[abstract]  # all that is asked
    message_service_pb2_grpc.add_MessageServiceServicer_to_server(Messages(), server)  # type: ignore[abstract]  # as above
    know_tokens(server, "alice")
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def token() -> str:
        return "token"

    config = ClientConfig(
        address=f"127.0.0.1:{port}",
        user_id="alice",
        data_dir=tmp_path / "alice",
        **({"backoff_cap_s": 0.1, "own_ack_delay_s": 0.05} | settings),
    )
    try:
        async with asyncio.timeout(TIMEOUT_S), Client(config, token) as client:
            yield client, scripted
    finally:
        await server.stop(0)
    if scripted.failures:
        raise scripted.failures[0]


def answer(request: session_pb2.ClientFrame, body: chat_pb2.SendResult | chat_pb2.Error) -> session_pb2.ServerFrame:
    if isinstance(body, chat_pb2.Error):
        return session_pb2.ServerFrame(request_id=request.request_id, error=body)
    return session_pb2.ServerFrame(request_id=request.request_id, sent=body)


def result(seq: int) -> chat_pb2.SendResult:
    return chat_pb2.SendResult(chat_id=CHAT, seq=seq, message_id=b"m" * 16)


async def committing(stream: Stream) -> None:
    """Commits what comes, from seq 100 on."""
    await stream.welcome()
    for seq in range(100, 200):
        await stream.write(answer(await stream.read("send"), result(seq)))


@pytest.mark.parametrize("was_committed", [False, True])
async def test_a_message_whose_key_is_too_old_gets_a_new_one_only_if_it_is_not_in_the_log(
    tmp_path: Path, was_committed: bool
) -> None:
    keys: list[chat_pb2.WriteKey] = []

    async def far_behind(stream: Stream) -> None:
        await stream.welcome(frame(opened(11, head_seq=10)))
        send = await stream.read("send")
        keys.append(send.send.key)
        error = chat_pb2.Error(code=chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD)
        await stream.write(answer(send, error))
        fetch = await stream.read("fetch_history")
        head = event(12)
        page = session_pb2.HistoryPage(chat_id=CHAT, events=[head])
        await stream.write(session_pb2.ServerFrame(request_id=fetch.request_id, history_page=page))
        own_id = send.send.key.client_message_id if was_committed else b"o" * 16
        await stream.write(frame(event(11, text("x"), sender="alice", client_message_id=own_id)), frame(head))
        again = await stream.read("send")
        keys.append(again.send.key)
        await stream.write(answer(again, result(13)))
        await stream.stay()

    async with client_of(tmp_path, far_behind) as (client, _):
        await client.wait_until_live(TIMEOUT_S)
        sent = await (await client.send("hello", chat_id=CHAT)).sent
        if was_committed:
            assert sent.seq == 11
            assert len(keys) == 1
        else:
            assert sent.seq == 13
            assert [key.seen_seq for key in keys] == [10, 12]
            assert keys[0].client_message_id == keys[1].client_message_id


async def test_a_server_that_lost_its_log_is_taken_as_it_is(tmp_path: Path) -> None:
    keys: list[chat_pb2.WriteKey] = []

    async def before_the_loss(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), *(frame(event(n)) for n in range(1, 6)))
        while (await stream.read("ack")).ack.seq < 5:
            pass

    async def after_it(stream: Stream) -> None:
        await stream.welcome()
        send = await stream.read("send")
        keys.append(send.send.key)
        await stream.write(answer(send, chat_pb2.Error(code=chat_pb2.ERROR_CODE_SEEN_SEQ_AHEAD)))
        await stream.stay()

    async def resumed(stream: Stream) -> None:
        await stream.welcome(frame(opened(1, head_seq=0)))
        assert not stream.hello.positions, "the chat is not held any more"
        send = await stream.read("send")
        keys.append(send.send.key)
        await stream.write(answer(send, result(1)))
        await stream.stay()

    async with client_of(tmp_path, before_the_loss, after_it, resumed) as (client, server):
        while server.streams < 2:
            await asyncio.sleep(0.01)
        await (await client.send("hello", chat_id=CHAT)).sent
        assert [key.seen_seq for key in keys] == [5, 0]
        assert keys[0].client_message_id == keys[1].client_message_id


async def test_a_gap_is_repaired_by_resuming_at_the_last_event_held(tmp_path: Path) -> None:
    async def with_a_gap(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), frame(event(1)), frame(event(3)))
        await stream.stay()

    async def whole(stream: Stream) -> None:
        await stream.welcome(*(frame(event(n)) for n in (2, 3)))
        assert [(p.chat_id, p.seq) for p in stream.hello.positions] == [(CHAT, 1)]
        await stream.stay()

    async with client_of(tmp_path, with_a_gap, whole) as (client, _), watching(client) as got:
        await got.until(lambda: len(got.of(LogEvent)) == 3)
        assert [e.seq for e in got.of(LogEvent)] == [1, 2, 3]


async def test_a_failed_send_goes_again_with_the_same_key_before_later_ones(tmp_path: Path) -> None:
    sends: list[tuple[str, bytes]] = []

    async def failing(stream: Stream) -> None:
        await stream.welcome()
        for number in range(4):
            send = await stream.read("send")
            sends.append((send.send.content.text.text, send.send.key.client_message_id))
            failure = chat_pb2.Error(code=chat_pb2.ERROR_CODE_UNAVAILABLE, retry_after_ms=20)
            await stream.write(answer(send, failure if number == 0 else result(number)))
        await stream.stay()

    async with client_of(tmp_path, failing) as (client, _):
        outgoing = [await client.send(value, user_id="bob") for value in ("one", "two", "three")]
        for each in outgoing:
            await each.sent
    assert [value for value, _ in sends] == ["one", "one", "two", "three"]
    assert sends[0] == sends[1]


@pytest.mark.parametrize(("code", "raised"), [("RATE_LIMITED", RateLimitedError), ("CHAT_DAMAGED", ChatDamagedError)])
async def test_who_waits_for_a_rate_or_a_mend_is_told_so_and_the_message_goes_out_by_itself(
    tmp_path: Path, code: str, raised: type[TemporaryError]
) -> None:
    may_pass = asyncio.Event()

    async def script(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)))
        failure = chat_pb2.Error(code=f"ERROR_CODE_{code}", message="Wait for 2 minutes.", retry_after_ms=20)  # type: ignore[arg-type]
        first = send = await stream.read("send")
        while not may_pass.is_set():
            await stream.write(answer(send, failure))
            send = await stream.read("send")
            assert send.send.key == first.send.key
        await stream.write(answer(send, result(2)))
        await stream.stay()

    async with client_of(tmp_path, script) as (client, _), watching(client) as got:
        outgoing = await client.send("hi", chat_id=CHAT)
        await got.until(lambda: len(got.of(MessageDelayed)) > 0)
        delayed = got.of(MessageDelayed)[0]
        assert type(delayed.error) is raised
        assert delayed.client_message_id == outgoing.client_message_id
        with pytest.raises(RequestTimeoutError, match="Wait for 2 minutes"):
            await client.wait_until_sent(0.1)
        may_pass.set()
        assert (await outgoing.sent).seq == 2
        assert client.why_waiting == ""


async def test_a_stream_that_just_ends_or_owes_an_answer_is_replaced_and_everything_sent_again(tmp_path: Path) -> None:
    async def ends(stream: Stream) -> None:
        await stream.welcome()
        await stream.read("send")

    async def is_mute(stream: Stream) -> None:
        await stream.welcome()
        await stream.read("send")
        await stream.stay()

    async with client_of(tmp_path, ends, is_mute, committing, answer_timeout_s=0.3) as (client, server):
        assert (await (await client.send("hello", user_id="bob")).sent).seq == 100
        assert server.streams >= 3  # more, if an answer takes long on a busy machine


async def test_a_drained_stream_is_left_with_everything_acknowledged(tmp_path: Path) -> None:
    acks: list[int] = []

    async def draining(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), frame(event(1, sender="alice")))
        await stream.write(frame(session_pb2.Drain(reconnect_after_ms=10)))
        acks.append((await stream.read("ack")).ack.seq)
        await stream.stay()

    async with client_of(tmp_path, draining, committing, own_ack_delay_s=60.0) as (client, server):
        await (await client.send("hello", user_id="bob")).sent
        assert server.streams == 2
    assert acks == [1]


async def test_the_last_acknowledgements_leave_with_the_client(tmp_path: Path) -> None:
    acks: list[int] = []

    async def server(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), frame(event(1, sender="alice")))
        acks.append((await stream.read("ack")).ack.seq)
        await stream.stay()

    async with client_of(tmp_path, server, own_ack_delay_s=60.0) as (client, _), watching(client) as got:
        await got.until(lambda: bool(got.of(LogEvent)))
        assert not acks
    assert acks == [1]


async def test_a_read_mark_made_offline_goes_with_the_next_hello(tmp_path: Path) -> None:
    hellos: list[session_pb2.Hello] = []

    async def first(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), frame(event(1)))
        await stream.read("ack")

    async def second(stream: Stream) -> None:
        await stream.welcome()
        hellos.append(stream.hello)
        await stream.stay()

    async with client_of(tmp_path, first, second) as (client, server), watching(client) as got:
        await got.until(lambda: bool(got.of(LogEvent)))
        await client.mark_read(CHAT, 1)
        while not hellos:
            await asyncio.sleep(0.01)
        assert server.streams == 2
        read = {p.chat_id: p.read_seq for p in hellos[0].positions}
        assert read == {CHAT: 1}


async def test_the_number_of_a_stream_is_stored_before_its_hello_and_rises_over_a_restart(tmp_path: Path) -> None:
    numbers: list[int] = []

    async def noting(stream: Stream) -> None:
        hello = (await stream.read("hello")).hello
        with contextlib.closing(sqlite3.connect(tmp_path / "alice" / "store.sqlite3")) as stored:
            (value,) = stored.execute("SELECT value FROM device WHERE name = 'connection_number'").fetchone()
        assert hello.connection_number == int(value)
        numbers.append(hello.connection_number)

    for _ in range(2):
        expected = len(numbers) + 2
        async with client_of(tmp_path, noting):
            while len(numbers) < expected:
                await asyncio.sleep(0.01)
    assert numbers == sorted(set(numbers)), "each stream has a number of its own, above the earlier ones"


async def revoked(stream: Stream) -> None:
    """Sends the device away for good."""
    await stream.read("hello")
    code = session_pb2.DISCONNECT_CODE_DEVICE_REVOKED
    await stream.write(session_pb2.ServerFrame(disconnect=session_pb2.Disconnect(code=code, message="revoked")))


async def test_a_message_for_a_client_that_has_stopped_waits_and_never_counts_as_sent(tmp_path: Path) -> None:
    async with client_of(tmp_path, revoked) as (client, _):
        with pytest.raises(DeviceRevokedError):
            await client.wait_until_live(TIMEOUT_S)
        outgoing = await client.send("hello", user_id="bob")
        with pytest.raises(DeviceRevokedError):
            await outgoing.sent
        with pytest.raises(DeviceRevokedError):
            await client.wait_until_sent(TIMEOUT_S)
        assert [message.content.text.text for message in await client.waiting_messages()] == ["hello"]


async def test_an_acknowledged_message_is_in_the_history_though_its_event_has_not_come(tmp_path: Path) -> None:
    let_it_come = asyncio.Event()

    async def slow_event(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), frame(event(1)))
        send = await stream.read("send")
        await stream.write(answer(send, result(2)))
        own = event(2, text("mine"), sender="alice", client_message_id=send.send.key.client_message_id)
        fetch = await stream.read("fetch_history")
        page = session_pb2.HistoryPage(chat_id=CHAT, events=[event(1), own])
        await stream.write(session_pb2.ServerFrame(request_id=fetch.request_id, history_page=page))
        await let_it_come.wait()
        await stream.write(frame(own))
        await stream.stay()

    async with client_of(tmp_path, slow_event) as (client, _), watching(client) as seen:
        await seen.until(lambda: len(seen.of(LogEvent)) == 1)
        await (await client.send("mine", chat_id=CHAT)).sent
        assert [e.seq for e in (await client.history(CHAT)).events] == [1, 2]
        reading = asyncio.create_task(client.message(CHAT, 2))
        let_it_come.set()
        message = await reading
        assert message is not None
        assert message.content.text.text == "mine"
        await seen.until(lambda: len(seen.of(LogEvent)) == 2)
        assert [e.seq for e in (await client.history(CHAT)).events] == [1, 2], "from disk, and once"


async def waits(reading: "asyncio.Task[Any]", client: Client) -> bool:
    """Whether it waits for more than the disk."""
    await asyncio.sleep(0)
    await client.waiting_messages()  # the disk reads in order, so what was asked of it before is read
    await asyncio.sleep(0)
    return not reading.done()


@pytest.mark.parametrize("read", [Client.history, Client.held_history, Client.unread])
async def test_what_was_hidden_is_not_seen_again_though_the_event_of_it_has_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Client, str], Awaitable[Any]]
) -> None:
    monkeypatch.setattr(engine, "OWN_EVENT_TIMEOUT_S", TIMEOUT_S)
    notes = self_chat_id("alice")
    let_it_come = asyncio.Event()

    async def slow_event(stream: Stream) -> None:
        first = frames.event(1, text("a note"), sender="alice", chat_id=notes)
        await stream.welcome(frame(opened(1)), frame(event(1)), frame(frames.opened(1, chat_id=notes)), frame(first))
        send = await stream.read("send")
        await stream.write(answer(send, chat_pb2.SendResult(chat_id=notes, seq=2)))
        await let_it_come.wait()
        key = send.send.key.client_message_id
        await stream.write(frame(frames.event(2, send.send.content, sender="alice", chat_id=notes, client_message_id=key)))
        await stream.stay()

    async with client_of(tmp_path, slow_event) as (client, _), watching(client) as seen:
        await seen.until(lambda: len(seen.of(LogEvent)) == 2)
        assert await client.unread(CHAT) == 1
        await (await client.hide(CHAT, [1])).sent
        reading = asyncio.ensure_future(read(client, CHAT))
        assert await waits(reading, client)
        let_it_come.set()
        left = await reading
        assert not (left if isinstance(left, int) else left.events)


@pytest.mark.parametrize("change", [lambda groups: groups.join("secret"), lambda groups: groups.create_link(GROUP)])
async def test_whoever_joins_a_group_or_makes_a_link_finds_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Groups], Awaitable[Any]]
) -> None:
    monkeypatch.setattr(engine, "OWN_EVENT_TIMEOUT_S", TIMEOUT_S)
    let_it_come = asyncio.Event()

    async def slow_events(stream: Stream) -> None:
        await stream.welcome()
        await let_it_come.wait()
        # The device begins behind the change: no event of that comes.
        await stream.write(frame(frames.opened(4, chat_id=GROUP, head_seq=3)))
        await stream.stay()

    async with client_of(tmp_path, slow_events) as (client, _):
        await client.wait_until_live(TIMEOUT_S)
        await change(client.groups)
        reading = asyncio.create_task(client.chat(GROUP))
        assert await waits(reading, client)
        let_it_come.set()
        assert await reading is not None


async def test_a_chat_that_is_over_is_not_named_in_the_hello_and_repeats_nothing(tmp_path: Path) -> None:
    group = GROUP
    mine = frames.created("alice", "bob", chat_id=group, title="Trip")
    removal = content_pb2.Content(member_removed=content_pb2.MemberRemovedContent(user_id="alice"))
    gone = frames.event(2, removal, chat_id=group)
    hellos: list[session_pb2.Hello] = []

    async def removed(stream: Stream) -> None:
        await stream.welcome(
            frame(opened(1)), frame(event(1)), frame(frames.opened(1, chat_id=group)), frame(mine), frame(gone)
        )
        while (await stream.read("ack")).ack.chat_id != group:
            pass

    async def again(stream: Stream) -> None:
        # The server did not store the acknowledgement, and begins anew with the chat.
        await stream.welcome(frame(frames.opened(1, chat_id=group, head_seq=2)), frame(mine), frame(gone), frame(event(2)))
        hellos.append(stream.hello)
        while (await stream.read("ack")).ack.chat_id != group:
            pass
        await stream.stay()

    async with client_of(tmp_path, removed, again) as (client, _), watching(client) as seen:
        await seen.until(lambda: len(seen.of(LogEvent)) == 4)
        assert [position.chat_id for position in hellos[0].positions] == [CHAT]
        assert [(e.chat_id, e.seq) for e in seen.of(LogEvent)] == [(CHAT, 1), (group, 1), (group, 2), (CHAT, 2)]


async def test_of_more_chats_than_fit_into_a_hello_the_longest_are_named_and_none_repeats_what_is_held(tmp_path: Path) -> None:
    (tmp_path / "alice").mkdir()
    store = Store(tmp_path / "alice" / "store.sqlite3", "alice", "phone")
    peers = [f"peer{number}" for number in range(protocol.POSITIONS_MAX + 1)]
    chat_ids = [direct_chat_id("alice", peer) for peer in peers]
    store.apply([frames.opened(2**62 - number, chat_id=chat_id) for number, chat_id in enumerate(chat_ids)], [], "token")
    store.apply(
        [frames.opened(1, chat_id=CHAT), event(1)],
        [chat_pb2.Receipt(chat_id=c, user_id="alice", read_seq=2**62) for c in chat_ids],
        None,
    )
    store.close()
    hellos: list[session_pb2.Hello] = []

    async def many(stream: Stream) -> None:
        # As to a job, whose acknowledgements are not kept: what Hello does not name begins anew.
        await stream.welcome(frame(opened(1, head_seq=2)), frame(event(1)), frame(event(2)))
        hellos.append(stream.hello)
        await stream.stay()

    async with client_of(tmp_path, many) as (client, _), watching(client) as seen:
        await seen.until(lambda: bool(seen.of(LogEvent)))
        assert [e.seq for e in seen.of(LogEvent)] == [2]
    assert {position.chat_id for position in hellos[0].positions} == set(chat_ids[: protocol.POSITIONS_MAX])
    assert hellos[0].ByteSize() < 1024 * 1024


async def test_what_was_answered_is_told_also_if_the_session_ends_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer takes a message out of the outbox; were its storing cut off, nothing would wait and nobody would be told."""
    settling, may_settle = threading.Event(), threading.Event()
    settle = Store.settle

    def slow_settle(store: Store, *args: Any) -> None:
        settling.set()
        may_settle.wait(10)
        settle(store, *args)

    monkeypatch.setattr(Store, "settle", slow_settle)

    async def drains(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)))
        send = await stream.read("send")
        await stream.write(frame(session_pb2.Drain(reconnect_after_ms=1)), answer(send, result(1)))
        await stream.stay()

    async def next_node(stream: Stream) -> None:
        await stream.welcome()
        await stream.stay()

    async with client_of(tmp_path, drains, next_node) as (client, server):
        outgoing = await client.send("hello", chat_id=CHAT)
        await asyncio.to_thread(settling.wait, 10)
        with pytest.raises(RequestTimeoutError):
            await client.wait_until_sent(0.2)  # long enough for the drain's time to come
        may_settle.set()
        assert (await outgoing.sent).seq == 1
        await client.wait_until_sent(TIMEOUT_S)
        assert server.streams <= 2


def failing_once(monkeypatch: pytest.MonkeyPatch, method: str) -> list[str]:
    """Has the disk fail a method of the store at its next call, which is then in the list."""
    works: Callable[..., Any] = getattr(Store, method)
    failed: list[str] = []

    def fail_once(store: Store, *args: Any) -> Any:
        if not failed:
            failed.append(method)
            raise sqlite3.OperationalError("disk I/O error")
        return works(store, *args)

    monkeypatch.setattr(Store, method, fail_once)
    return failed


async def test_a_disk_that_cannot_be_read_for_a_message_to_send_ends_the_session_and_it_goes_out_on_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing would be sent on a stream that looks alive."""
    async with client_of(tmp_path, committing) as (client, server):
        await client.wait_until_live(TIMEOUT_S)
        failed = failing_once(monkeypatch, "queued")
        async with asyncio.timeout(SOONER_S):
            assert (await (await client.send("hello", user_id="bob")).sent).seq == 100
        assert failed
        assert server.streams == 2


async def test_what_the_disk_did_not_take_is_acknowledged_by_the_next_call_and_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def three_events(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)), *(frame(event(n)) for n in (1, 2, 3)))
        await stream.stay()

    async with client_of(tmp_path, three_events, manual_ack=True) as (client, _), watching(client) as got:
        await got.until(lambda: len(got.of(LogEvent)) == 3)
        first, second, third = got.of(LogEvent)
        await client.acknowledge(first)
        failing_once(monkeypatch, "apply")
        with pytest.raises(DiskError):
            await client.acknowledge(second)
        await client.acknowledge(second)
        page = await client.held_history(CHAT)
        assert page is not None
        assert [e.seq for e in page.events] == [1, 2]
        await client.acknowledge(third)
        assert [e.seq for e in (await client.history(CHAT)).events] == [1, 2, 3]


async def test_what_is_acknowledged_while_the_client_reconnects_is_told_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the event comes again, counts as a duplicate, and waits for the next one of its chat."""
    positions, reconnects, read, goes_on = Store.positions, threading.Event(), threading.Event(), threading.Event()
    told: asyncio.Future[session_pb2.Ack] = asyncio.get_running_loop().create_future()

    def slowly(store: Store) -> dict[str, tuple[int, int]]:
        found = positions(store)
        if reconnects.is_set():
            read.set()
            goes_on.wait(TIMEOUT_S)
        return found

    async def one_event(stream: Stream) -> None:
        await stream.welcome(frame(opened(1, head_seq=1)), frame(event(1)))
        reconnects.set()

    async def again(stream: Stream) -> None:
        await stream.welcome(frame(event(1)))
        assert [(position.chat_id, position.seq) for position in stream.hello.positions] == [(CHAT, 0)]
        told.set_result((await stream.read("ack")).ack)
        await stream.stay()

    monkeypatch.setattr(Store, "positions", slowly)
    async with client_of(tmp_path, one_event, again, manual_ack=True) as (client, _), watching(client) as got:
        await got.until(lambda: len(got.of(LogEvent)) == 1)
        await asyncio.to_thread(read.wait, TIMEOUT_S)
        acknowledging = asyncio.create_task(client.acknowledge(got.of(LogEvent)[0]))
        await asyncio.sleep(0.05)  # it is in the queue of the disk
        goes_on.set()
        await acknowledging
        async with asyncio.timeout(SOONER_S):
            assert (await told).seq == 1


async def test_a_chat_whose_opening_the_disk_did_not_take_is_held_once_its_events_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_once(monkeypatch, "apply")

    async def from_the_beginning(stream: Stream) -> None:
        await stream.welcome(frame(opened(1, head_seq=2)), frame(event(1)), frame(event(2)))
        await stream.stay()

    async with client_of(tmp_path, from_the_beginning, manual_ack=True) as (client, server), watching(client) as got:
        await got.until(lambda: len(got.of(LogEvent)) == 2)
        await client.wait_until_live(TIMEOUT_S)
        assert (failed, server.streams) == (["apply"], 2)
        await client.acknowledge(got.of(LogEvent)[-1])
        assert await client.chat(CHAT) is not None
        assert [e.seq for e in (await client.history(CHAT)).events] == [1, 2]


async def test_a_disk_that_does_not_take_a_new_key_ends_the_session_and_the_message_gets_one_on_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done meanwhile may fail too, and would hold the chat's messages back for as long as the stream lives."""

    async def far_behind(stream: Stream) -> None:
        await stream.welcome(frame(opened(11, head_seq=11)), frame(event(11)))
        send = await stream.read("send")
        failing_once(monkeypatch, "set_seen_seq")
        await stream.write(answer(send, chat_pb2.Error(code=chat_pb2.ERROR_CODE_SEEN_SEQ_TOO_OLD)))
        fetch = await stream.read("fetch_history")
        page = session_pb2.HistoryPage(chat_id=CHAT, events=[event(11)])
        await stream.write(session_pb2.ServerFrame(request_id=fetch.request_id, history_page=page))
        await stream.stay()

    async with client_of(tmp_path, far_behind, committing) as (client, server):
        await client.wait_until_live(TIMEOUT_S)
        async with asyncio.timeout(SOONER_S):
            assert (await (await client.send("hello", chat_id=CHAT)).sent).seq == 100
        assert server.streams == 2


async def test_a_disk_that_takes_a_message_and_not_its_key_does_not_say_that_the_message_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its author would send it again, and it goes out by itself."""
    async with client_of(tmp_path, committing) as (client, server):
        await client.wait_until_live(TIMEOUT_S)
        failed = failing_once(monkeypatch, "set_seen_seq")
        outgoing = await client.send("hello", user_id="bob")
        async with asyncio.timeout(SOONER_S):
            assert (await outgoing.sent).seq == 100
        assert failed
        assert server.streams == 2


@pytest.mark.parametrize("is_refused", [False, True])
@pytest.mark.parametrize("drains", [False, True])
async def test_a_message_whose_answer_the_disk_did_not_take_waits_and_is_answered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool, drains: bool
) -> None:
    """An answer takes it out of memory before the disk knows. With the stream's end at that very moment, too."""
    body = chat_pb2.Error(code=chat_pb2.ERROR_CODE_FORBIDDEN) if is_refused else result(1)
    keys: list[chat_pb2.WriteKey] = []
    settles = Store.settle
    may_fail = threading.Event()

    def fails_once(store: Store, *args: Any) -> None:
        if may_fail.is_set():
            return settles(store, *args)
        may_fail.wait(0.3)  # the drain's time comes meanwhile
        may_fail.set()
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "settle", fails_once)

    async def answering(stream: Stream) -> None:
        await stream.welcome()
        send = await stream.read("send")
        keys.append(send.send.key)
        if drains and not may_fail.is_set():
            await stream.write(frame(session_pb2.Drain(reconnect_after_ms=1)), answer(send, body))
        else:
            await stream.write(answer(send, body))
        await stream.stay()

    async with client_of(tmp_path, answering) as (client, server):
        outgoing = await client.send("hello", user_id="bob")
        if is_refused:
            with pytest.raises(ForbiddenError):
                await outgoing.sent
        else:
            assert (await outgoing.sent).seq == 1
        await client.wait_until_sent(TIMEOUT_S)
        assert server.streams == 2
        assert keys[0] == keys[1]


def sender_of(client: Client, to: str, chat: str, timeout_s: float, *, as_json: bool) -> _Sender:
    """`chatgrpc send` with a client that is open already."""
    sender = _Sender(client, to, chat, timeout_s, as_json=as_json)
    sender._open = lambda: asyncio.sleep(0)  # type: ignore[method-assign]  # it would open the client once more
    return sender


async def test_send_never_ends_with_0_when_the_client_stopped_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client_of(tmp_path, revoked) as (client, _):
        with pytest.raises(DeviceRevokedError):
            await client.wait_until_live(TIMEOUT_S)
        # The race as it was: the client stops between the opening of the device and the queuing of the message.
        sender = sender_of(client, "bob", "", 10.0, as_json=False)
        assert await sender.run("hello") == NOT_SENT
    assert "not sent yet: this device was revoked" in capsys.readouterr().err


async def test_send_says_what_became_of_earlier_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def refusing_the_first(stream: Stream) -> None:
        await stream.welcome(frame(opened(1)))
        error = chat_pb2.Error(code=chat_pb2.ERROR_CODE_MUTED, message="You are muted.")
        await stream.write(answer(await stream.read("send"), error))
        await stream.write(answer(await stream.read("send"), result(1)))
        await stream.stay()

    async with client_of(tmp_path, refusing_the_first) as (client, _):
        await client.send("earlier", chat_id=CHAT)
        sender = sender_of(client, "", CHAT, 10.0, as_json=False)
        assert await sender.run("hello") == REFUSED
    out, err = capsys.readouterr()
    assert "as #1" in out
    assert "sent too" not in out
    assert "a message that waited from earlier was refused: You are muted." in err


async def test_a_client_that_closes_cancels_nobody_who_waits_for_an_answer(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def never_answered(request: Any, context: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    server = grpc.aio.server()
    know_tokens(server, "alice")
    methods: dict[str, Any] = {"ListDevices": grpc.unary_unary_rpc_method_handler(never_answered)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("chatgrpc.v1.DeviceService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def token() -> str:
        return "token"

    try:
        async with Client(ClientConfig(address=f"127.0.0.1:{port}", user_id="alice", data_dir=tmp_path / "a"), token) as client:
            listing = asyncio.create_task(client.devices.list())
            await asked.wait()
        with pytest.raises(ClientClosedError):
            await listing
        with pytest.raises(ClientClosedError):
            await client.devices.list()
    finally:
        await server.stop(None)


async def test_a_change_of_a_chat_that_is_not_held_yet_keeps_one_key_through_all_tries(tmp_path: Path) -> None:
    tries: list[chat_service_pb2.AddMembersRequest] = []

    async def add_members(request: chat_service_pb2.AddMembersRequest, context: Any) -> chat_service_pb2.AddMembersResponse:
        tries.append(request)
        if len(tries) == 1:  # it was committed, and the answer is lost
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node goes away")
        return chat_service_pb2.AddMembersResponse(committed=chat_pb2.SendResult(chat_id=request.chat_id, seq=8))

    async def list_messages(request: Any, context: Any) -> message_service_pb2.ListMessagesResponse:
        return message_service_pb2.ListMessagesResponse(events=[event(7)])

    server = grpc.aio.server()
    chats: dict[str, Any] = {
        "AddMembers": grpc.unary_unary_rpc_method_handler(
            add_members,
            chat_service_pb2.AddMembersRequest.FromString,
            chat_service_pb2.AddMembersResponse.SerializeToString,
        )
    }
    messages: dict[str, Any] = {
        "ListMessages": grpc.unary_unary_rpc_method_handler(
            list_messages,
            message_service_pb2.ListMessagesRequest.FromString,
            message_service_pb2.ListMessagesResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("chatgrpc.v1.ChatService", chats),
            grpc.method_handlers_generic_handler("chatgrpc.v1.MessageService", messages),
        )
    )
    know_tokens(server, "alice")
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def token() -> str:
        return "token"

    try:
        config = ClientConfig(address=f"127.0.0.1:{port}", user_id="alice", data_dir=tmp_path / "a", backoff_base_s=0.01)
        async with Client(config, token) as client:
            assert (await client.groups.add(CHAT, ["bob"])).seq == 8
    finally:
        await server.stop(None)
    first, second = tries
    assert first.key.seen_seq == 7
    assert first.key.client_message_id
    assert second.key == first.key


async def mute(stream: Stream) -> None:
    """Takes what comes, and answers nothing."""
    await stream.welcome()
    await stream.stay()


FULL = sqlite3.OperationalError("database or disk is full")
DAMAGED = sqlite3.DatabaseError("database disk image is malformed")


@pytest.mark.parametrize("failure", [None, FULL, DAMAGED])
async def test_lines_that_are_not_kept_are_named_and_not_said_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: sqlite3.Error | None
) -> None:
    queue = Store.queue

    def fails_at_the_third(store: Store, message: QueuedMessage) -> OutboxEntry:
        if failure is not None and message.content.text.text == "three":
            raise failure
        return queue(store, message)

    async def lines() -> AsyncIterator[str]:
        for line in ("one", "", "two", "three", "four"):
            yield line

    monkeypatch.setattr(sys.modules[_Sender.__module__], "stdin_lines", lines)
    monkeypatch.setattr(Store, "queue", fails_at_the_third)
    async with client_of(tmp_path, mute, outbox_messages_max=10 if failure else 2) as (client, _):
        sender = sender_of(client, "bob", "", 0.2, as_json=True)
        assert await sender.run("-") == NOT_SENT
    out, err = capsys.readouterr()
    not_kept, *waiting = [json.loads(line) for line in out.splitlines()]
    assert (not_kept["chat_id"], not_kept["line"], not_kept["status"]) == (CHAT, 4, "not kept")
    assert [line["status"] for line in waiting] == ["queued", "queued"]
    assert "line 4 of standard input and those behind it are not sent, and not kept: " in err
    assert "2 messages kept on disk" in err
    assert "do not send these again" in err


@pytest.mark.parametrize("answers", [True, False])
async def test_who_interrupts_lines_that_wait_is_told_at_once_from_which_one_on_none_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: bool
) -> None:
    async def lines() -> AsyncIterator[str]:
        for line in ("one", "", "two", "three", "four"):
            yield line
        if answers:  # all that came so far is committed, and whoever writes them may go on
            await asyncio.Event().wait()

    monkeypatch.setattr(sys.modules[_Sender.__module__], "stdin_lines", lines)
    async with client_of(tmp_path, committing if answers else mute, sends_in_flight_max=2) as (client, _):
        sender = sender_of(client, "bob", "", 10 * TIMEOUT_S, as_json=False)
        sending = asyncio.create_task(sender.run("-"))
        out = ""
        while out.count("sent to") < 4 if answers else len(await client.waiting_messages()) < 2:
            await asyncio.sleep(0.01)
            out += capsys.readouterr().out
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    err = capsys.readouterr().err
    line = 6 if answers else 4
    assert f"line {line} of standard input and those behind it are not sent, and not kept: interrupted" in err
    assert ("2 messages kept on disk" in err) is not answers
    assert ("do not send these again" in err) is not answers


async def test_a_line_that_is_being_kept_as_it_is_interrupted_is_not_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, at_the_disk, goes_on = Store.queue, threading.Event(), threading.Event()

    def slowly(store: Store, message: QueuedMessage) -> OutboxEntry:
        at_the_disk.set()
        goes_on.wait(TIMEOUT_S)
        return queue(store, message)

    async def lines() -> AsyncIterator[str]:
        for line in ("one", "two"):
            yield line

    monkeypatch.setattr(sys.modules[_Sender.__module__], "stdin_lines", lines)
    monkeypatch.setattr(Store, "queue", slowly)
    async with client_of(tmp_path, mute) as (client, _):
        sender = sender_of(client, "bob", "", TIMEOUT_S, as_json=False)
        sending = asyncio.create_task(sender.run("-"))
        await asyncio.to_thread(at_the_disk.wait, TIMEOUT_S)
        sending.cancel()
        await asyncio.sleep(0)
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
    err = capsys.readouterr().err
    assert "line 2 of standard input and those behind it are not sent, and not kept" in err
    assert "1 message kept on disk" in err


@pytest.mark.parametrize("failure", [FULL, DAMAGED])
@pytest.mark.parametrize("script", [mute, revoked])
async def test_a_text_that_the_store_does_not_take_is_not_said_to_be_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: sqlite3.Error,
    script: Script,
) -> None:
    def fails(store: Store, message: QueuedMessage) -> OutboxEntry:
        raise failure

    monkeypatch.setattr(Store, "queue", fails)
    async with client_of(tmp_path, script) as (client, _):
        sender = sender_of(client, "bob", "", TIMEOUT_S, as_json=True)
        assert await sender.run("hello") == NOT_SENT
    out, err = capsys.readouterr()
    (said,) = [json.loads(line) for line in out.splitlines()]
    assert (said["chat_id"], said["status"], "line" in said) == (CHAT, "not kept", False)
    assert str(failure) in said["error"]
    assert f"not sent, and not kept: {said['error']}" in err
    assert "kept on disk" not in err
    assert "again" not in err


async def test_a_text_that_the_full_outbox_does_not_take_is_said_not_to_be_kept_and_what_waits_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it did not go out, the outbox would be full at the next try too."""
    may_answer = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await stream.welcome()
        waiting = await stream.read("send")
        await may_answer.wait()
        await stream.write(answer(waiting, result(1)))
        await stream.stay()

    async with client_of(tmp_path, slow, outbox_messages_max=1) as (client, _):
        earlier = await client.send("earlier", user_id="bob")
        sends = client.send

        async def send_and_be_answered(*args: Any, **options: Any) -> Any:
            try:
                return await sends(*args, **options)
            finally:
                may_answer.set()

        monkeypatch.setattr(client, "send", send_and_be_answered)
        sender = sender_of(client, "bob", "", TIMEOUT_S, as_json=False)
        assert await sender.run("hello") == NOT_SENT
        assert earlier.settled
    out, err = capsys.readouterr()
    assert "not sent, and not kept: 1 message" in err
    assert "kept on disk" not in err
    assert "1 message that waited from earlier: sent too" in out


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_text_that_no_message_can_hold_is_refused_and_not_said_to_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    async with client_of(tmp_path, committing) as (client, _):
        sender = sender_of(client, "bob", "", TIMEOUT_S, as_json=as_json)
        assert await sender.run("x" * (CONTENT_BYTES_MAX + 1)) == REFUSED
    out, err = capsys.readouterr()
    assert "kept on disk" not in err
    if as_json:
        said = json.loads(out)
        assert (said["chat_id"], said["status"]) == (CHAT, "refused")
    else:
        assert "refused: the message is larger" in err


@pytest.mark.parametrize(
    ("failure", "is_refused"),
    [
        (chat_pb2.Error(code=chat_pb2.ERROR_CODE_FORBIDDEN, message="Not this one."), True),
        (chat_pb2.Error(code=chat_pb2.ERROR_CODE_RATE_LIMITED, message="Not now.", retry_after_ms=60_000), False),
        (None, False),
    ],
)
async def test_a_chat_whose_history_is_refused_counts_as_refused_and_one_whose_history_is_late_does_not(
    tmp_path: Path, failure: chat_pb2.Error | None, is_refused: bool
) -> None:
    """What is typed may be committed all the same, and the exit code is about that."""

    async def failing(stream: Stream) -> None:
        await stream.welcome()
        fetch = await stream.read("fetch_history")
        if failure is not None:
            await stream.write(answer(fetch, failure))
        await stream.stay()

    screen = Mock()
    async with client_of(tmp_path, failing, request_timeout_s=0.5) as (client, _):
        room = Room(client, screen)
        await room.enter(CHAT, "bob")
        assert room.refused is is_refused
    assert f"no history: {failure.message if failure else ''}" in str(screen.show.call_args)


async def test_a_chat_of_which_the_device_holds_nothing_is_not_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device begins at the end of the chats that there are."""
    monkeypatch.setattr(sys.modules[Room.__module__], "CONNECT_PATIENCE_S", 0.1)
    is_back = asyncio.Event()

    async def at_the_end(stream: Stream) -> None:
        await stream.welcome(frame(opened(11)))

    async def later(stream: Stream) -> None:
        await is_back.wait()
        await stream.welcome()
        fetch = await stream.read("fetch_history")
        assert not fetch.fetch_history.before_seq
        page = session_pb2.HistoryPage(chat_id=CHAT, events=[event(9), event(10)], more_before=True)
        await stream.write(session_pb2.ServerFrame(request_id=fetch.request_id, history_page=page))
        await stream.stay()

    screen = Mock()
    async with client_of(tmp_path, at_the_end, later) as (client, server):
        while server.streams < 2:
            await asyncio.sleep(0.01)
        room = Room(client, screen)
        await room.enter(CHAT, "bob")
        said = str(screen.show.call_args_list)
        assert "bob: nothing of this chat is on this device yet; /older shows it once there is a connection" in said
        assert "nothing said yet" not in said
        is_back.set()
        await client.wait_until_live(TIMEOUT_S)
        await room.older()
    said = str(screen.show.call_args_list)
    assert "newest messages, #9 to #10" in said
    assert "text 10" in said
    assert "the beginning of the chat" not in said
