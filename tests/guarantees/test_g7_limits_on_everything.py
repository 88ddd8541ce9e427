"""G7: everything that a peer can drive has a named limit in `core/limits.py`, and passing it gets a typed error.

Each test is named after the limit that it drives (`test_<limit>…`); the last one holds the names against the table.
"""

import asyncio
import dataclasses
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from chatgrpc.v1.chat_service_pb2 import (
    AddMembersRequest,
    CreateGroupRequest,
    CreateJoinLinkRequest,
    JoinByLinkRequest,
    ListChatsRequest,
    ListChatsResponse,
    UpdateGroupRequest,
)
from chatgrpc.v1.device_service_pb2 import ListDevicesRequest, RenameDeviceRequest, RevokeDeviceRequest
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest, SendMessageRequest
from chatgrpc.v1.user_service_pb2 import UpdateProfileRequest
from tests.support.callers import Caller, code_of, text_content
from tests.support.cast import Cast
from tests.support.contents import delete, edit, hide, reaction
from tests.support.device import Device, DisconnectedError
from tests.support.outbox import Outbox
from tests.support.past import text_to_user, write_in_the_past
from tests.support.server import ServerProcess, running_server

LIMITS = Limits()
MINUTE_MS = 60 * 1000

NOT_DRIVEN_BY_ONE_PEER = {
    "content_bytes_max": "what contents may hold is less; tests/unit/core/test_rules.py",
    "control_frames_max": "it takes thousands of chats at once; tests/unit/core/test_session.py",
    "gathered_bytes_max": "how much is sent at once; tests/robustness/bad_input/test_stalls.py, on a slow link",
    "positions_max": "what a Hello names beyond it is told anew; tests/unit/core/test_session.py",
    "nodes_listed_max": "it takes as many nodes; tests/unit/edge/services/test_nodes.py",
    "recent_events_per_chat": "how much is kept in memory; passing it costs a read (test_g3_once.py)",
    "chats_active_max": "how much is kept in memory; passing it costs a read",
    "chats_active_bytes_max": "how much is kept in memory; tests/unit/core/test_budget.py",
    "heads_remembered_max": "how much is kept in memory; tests/unit/core/test_budget.py",
    "questions_waiting_per_chat_max": "of the cluster's owner; tests/unit/core/test_bounds.py",
    "writes_waiting_bytes_per_chat_max": "it takes the store to stand still; tests/unit/core/test_door.py",
    "writes_waiting_bytes_max": "it takes the store to stand still; tests/unit/core/test_door.py",
    "writes_waiting_bytes_per_user_max": "it takes the store to stand still; tests/unit/core/test_door.py",
    "requests_in_flight_max": "it takes the store to stand still; tests/unit/test_node_store_failures.py",
    "sends_in_order_max": "it takes the store to stand still; tests/unit/test_node_store_failures.py",
    "sends_in_flight_bytes_max": "it takes the store to stand still; tests/unit/test_node_store_failures.py",
    "appends_in_flight_per_chat_max": "of the cluster's owner; tests/unit/core/test_append_pipeline.py",
    "group_entries_max": "how much is committed together; tests/unit/core/test_sequencer.py",
    "writes_waiting_per_chat_max": "it takes the store to stand still; tests/unit/core/test_sequencer.py",
    "marks_in_memory_max": "how much is kept in memory; tests/unit/core/test_receipts.py",
    "scheme_bytes_max": "tests/unit/core/test_shape.py",
    "forward_count_max": "tests/unit/core/test_shape.py",
    "mute_ms_max": "tests/unit/core/test_rules.py",
    "memberships_per_chat_max": "tests/unit/core/test_rules.py",
    "groups_by_others_max": "it takes hundreds of accounts; tests/unit/core/test_sequencer.py",
    "groups_by_contacts_max": "it takes thousands of groups; tests/unit/core/test_sequencer.py",
    "joins_rate": "tests/unit/core/test_rates.py",
    "bots": "tests/unit/core/test_rates.py",
    "bots_factor": "tests/unit/core/test_rates.py",
    "last_seen_max": "how much is kept in memory; tests/unit/core/test_presence.py",
}


of_the_past = pytest.mark.embedded_only("its users' past is written into the one process's data folder")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose users have a past: messages older than one may change, many chats, a long one."""
    server = ServerProcess(tmp_path_factory.mktemp("grown") / "data")
    cast, now_ms = Cast(server, "past"), time.time_ns() // 1_000_000
    alice, bob = cast.user("alice"), cast.user("bob")

    async def grow() -> None:
        # Within the edit window for ten minutes more: on a busy machine all this is not written, and tried, in one.
        spares_ms = (MINUTE_MS, -10 * MINUTE_MS)
        for window_ms, spare_ms in itertools.product((LIMITS.delete_window_ms, LIMITS.edit_window_ms), spares_ms):
            await write_in_the_past(server.data_dir, [text_to_user(alice, bob, "then")], now_ms - window_ms - spare_ms)
        many = (text_to_user(cast.user("popular"), f"friend{number}", "hi") for number in range(LIMITS.chats_per_user_max))
        long = (text_to_user(cast.user("carol"), bob, f"{number}") for number in range(LIMITS.dedupe_span_max + 100))
        await write_in_the_past(server.data_dir, itertools.chain(many, long), now_ms - MINUTE_MS)
        await server.start()

    try:
        asyncio.run(grow())
        yield server
    finally:
        server.close()


@pytest.fixture
async def past(grown: ServerProcess) -> AsyncIterator[Cast]:
    """The people of that server."""
    cast = Cast(grown, "past")
    yield cast
    await cast.close()


async def ended_with(device: Device) -> str:
    """The disconnect code with which the stream ended."""
    ended = await device.until_ended()
    assert ended.disconnect is not None, ended.status
    assert ended.disconnect.message
    return session_pb2.DisconnectCode.Name(ended.disconnect.code).removeprefix("DISCONNECT_CODE_")


def code_in(frame: session_pb2.ServerFrame) -> str:
    """The error code in an answer, which must say something for people."""
    assert frame.HasField("error"), frame
    assert len(frame.error.message) > 10
    return chat_pb2.ErrorCode.Name(frame.error.code).removeprefix("ERROR_CODE_")


# The stream.


async def test_batch_bytes_max(cast: Cast) -> None:
    """gRPC itself refuses the message, so there is no Disconnect; the status says it."""
    alice = await cast.online("alice")
    await alice.write(_padded(LIMITS.batch_bytes_max - 100))
    await alice.heartbeat()
    await alice.write(_padded(LIMITS.batch_bytes_max + 1))
    assert (await alice.until_ended()).status == grpc.StatusCode.RESOURCE_EXHAUSTED


def _padded(size_bytes: int) -> session_pb2.ClientFrame:
    """An ack of a chat that is not there, with a long name."""
    return session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id="x" * size_bytes))


async def test_frames_per_batch_max(cast: Cast) -> None:
    alice = await cast.online("alice")
    frame = session_pb2.ClientFrame(heartbeat=session_pb2.Heartbeat())
    await alice.write(*[frame] * LIMITS.frames_per_batch_max)
    await alice.heartbeat()
    await alice.write(*[frame] * (LIMITS.frames_per_batch_max + 1))
    assert await ended_with(alice) == "MALFORMED"


TRIES = 20
"""What is answered is in flight no more, and a turn of a busy server may end before a limit is reached."""


def any_failed(answers: Sequence[session_pb2.ServerFrame]) -> bool:
    return any(answer.HasField("error") for answer in answers)


async def test_history_requests_in_flight_max(cast: Cast) -> None:
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    count = LIMITS.history_requests_in_flight_max + 1
    for _ in range(TRIES):
        frames = [session_pb2.ClientFrame(fetch_history=session_pb2.FetchHistory(chat_id=chat_id)) for _ in range(count)]
        answers = await asyncio.gather(*await alice.post_together(frames))
        if any_failed(answers):
            break
    assert [answer.WhichOneof("body") for answer in answers[:-1]] == ["history_page"] * (count - 1)
    assert code_in(answers[-1]) == "TOO_MANY_IN_FLIGHT"


async def test_refreshes_in_flight_max(cast: Cast) -> None:
    alice = await cast.online("alice")
    count = LIMITS.refreshes_in_flight_max + 1
    refresh = session_pb2.RefreshToken(token=alice.token)
    for _ in range(TRIES):
        frames = [session_pb2.ClientFrame(refresh_token=refresh) for _ in range(count)]
        answers = await asyncio.gather(*await alice.post_together(frames))
        if any_failed(answers):
            break
    assert [answer.WhichOneof("body") for answer in answers[:-1]] == ["token_refreshed"] * (count - 1)
    assert code_in(answers[-1]) == "TOO_MANY_IN_FLIGHT"


async def test_unacknowledged_events_max(cast: Cast) -> None:
    """No error: the server waits with the next event."""
    alice, bob = await cast.online("alice"), cast.device("bob")
    chat_id = await cast.group("alice", "bob")
    bob.auto_ack = False
    await bob.connect()
    outbox = Outbox(alice, window=200)
    for number in range(LIMITS.unacknowledged_events_max + 100):
        outbox.compose(chat_id, f"{number}")
    await outbox.flush()
    await bob.until_held(chat_id, LIMITS.unacknowledged_events_max)
    await bob.heartbeat()
    assert len(bob.held.events[chat_id]) == LIMITS.unacknowledged_events_max


async def test_unacknowledged_bytes_max(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), cast.device("bob")
    chat_id = await cast.group("alice", "bob")
    bob.auto_ack = False
    await bob.connect()
    size_bytes = 60_000
    count = LIMITS.unacknowledged_bytes_max // size_bytes
    for number in range(count + 10):
        await alice.send(chat_id, "x" * size_bytes)
        if number < count:
            await bob.until_held(chat_id, number + 1)
    await bob.heartbeat()
    assert count <= len(bob.held.events[chat_id]) <= count + 3


async def test_heartbeat_heads_max(cast: Cast) -> None:
    """A heartbeat names no more chats than this, and the others later."""
    bob = cast.device("bob")
    bob.auto_ack = False
    chats = {await cast.group("alice", "bob") for _ in range(LIMITS.heartbeat_heads_max + 5)}
    await bob.connect()
    await bob.until(lambda: chats <= bob.held.cursors.keys())
    heads = (await bob.heartbeat()).heads
    assert len(heads) == LIMITS.heartbeat_heads_max
    for head in heads:
        await bob.ack(head.chat_id, head.seq)
    assert len((await bob.heartbeat()).heads) == 5


async def test_backlog_bytes_max(cast: Cast) -> None:
    """No error: the server reads nothing more from a device that does not take its answers."""
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    for _ in range(8):
        await alice.send(chat_id, "x" * 60_000)
    alice.stop_reading()
    await (await cast.online("bob")).send(chat_id, "to be acknowledged, which waits behind what alice writes below")
    page = session_pb2.ClientFrame(fetch_history=session_pb2.FetchHistory(chat_id=chat_id, limit=8))
    answers: list[asyncio.Future[session_pb2.ServerFrame]] = []
    for _ in range(500):  # 50 MB are far more than lies on the way
        writing = asyncio.create_task(alice.post_together([page, _padded(100_000)]))
        done, _ = await asyncio.wait({writing}, timeout=1)
        if not done:
            break
        answers += writing.result()
    else:
        pytest.fail("the server reads on without end from a device that does not read")
    alice.read_on()
    answers += await writing
    kinds = {(await answer).WhichOneof("body") for answer in answers}
    assert kinds <= {"history_page", "error"}
    await alice.heartbeat()


async def test_watched_chats_max(cast: Cast) -> None:
    """More are cut: nobody of them is shown."""
    alice = await cast.online("alice")
    chats, names = [], [f"friend{number:02}" for number in range(LIMITS.watched_chats_max + 2)]
    for name in names:
        sent = await alice.send(cast.user(name), "hello")
        await alice.until_held(sent.chat_id, 2)
        chats.append(sent.chat_id)
    alice.taken()
    await alice.watch(*chats)
    await alice.send(alice.user_id, "what was to be shown goes out with the next event")
    await alice.heartbeat()
    shown = {frame.presence.user_id for frame in alice.taken() if frame.HasField("presence")}
    assert shown == {cast.user(name) for name in names[: LIMITS.watched_chats_max]}


async def test_typing_interval_ms(cast: Cast) -> None:
    """Typing more often than this is shown once."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = await cast.group("alice", "bob")
    for device in (alice, bob):
        await device.until_held(chat_id, 1)
    kinds = [session_pb2.TYPING_KIND_TEXT, session_pb2.TYPING_KIND_RECORDING] * 50
    await alice.write(*(session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=chat_id, kind=kind)) for kind in kinds))
    await alice.send(chat_id, "behind the typing")
    await bob.until_held(chat_id, 2)
    assert [frame.typing.kind for frame in bob.taken() if frame.HasField("typing")] == [session_pb2.TYPING_KIND_TEXT]


# Sizes of what is said: at the limit it is taken, one above it is refused.


def _encrypted(size_bytes: int) -> content_pb2.Content:
    return content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="x", ciphertext=b"x" * (size_bytes - 1)))


def _with_unknown_field(size_bytes: int) -> content_pb2.Content:
    """Of so many bytes beyond those that the server knows."""
    content = text_content("x")
    known_bytes = content.ByteSize()
    header = b"\x82\x7d"  # field 2000, of bytes, which no version knows
    padding = size_bytes - len(header) - 2
    content.MergeFromString(header + bytes([padding & 0x7F | 0x80, padding >> 7]) + b"x" * padding)
    assert content.ByteSize() == known_bytes + size_bytes
    return content


def _emoji(size: int) -> str:
    """One emoji of so many bytes: the flag of a region with a long name."""
    flag = "\N{WAVING BLACK FLAG}" + "\N{TAG LATIN SMALL LETTER A}" * (size // 4 - 2) + "\N{CANCEL TAG}"
    return flag + "x" * (size % 4)


SIZES: dict[str, tuple[int, Callable[[str, int], content_pb2.Content]]] = {
    "text_bytes_max, of a text": (LIMITS.text_bytes_max, lambda _, size: text_content("x" * size)),
    "text_bytes_max, of two bytes a letter": (
        LIMITS.text_bytes_max,
        lambda _, size: text_content("é" * (size // 2) + "x" * (size % 2)),
    ),
    "text_bytes_max, of an edit": (LIMITS.text_bytes_max, lambda _, size: edit(2, "x" * size)),
    "text_bytes_max, of a ciphertext": (LIMITS.text_bytes_max, lambda _, size: _encrypted(size)),
    "unknown_bytes_max": (LIMITS.unknown_bytes_max, lambda _, size: _with_unknown_field(size)),
    "reaction_bytes_max": (LIMITS.reaction_bytes_max, lambda _, size: reaction(2, _emoji(size))),
    "hide_seqs_max": (LIMITS.hide_seqs_max, lambda chat_id, size: hide(chat_id, *range(1, size + 1))),
}


@pytest.mark.parametrize("size", SIZES)
async def test_sizes_of_content(cast: Cast, size: str) -> None:
    alice = await cast.online("alice")
    chat_id = (await alice.send(cast.user("bob"), "first")).chat_id
    to = (await alice.send(alice.user_id, "note")).chat_id if size == "hide_seqs_max" else chat_id
    limit, make = SIZES[size]
    assert (await alice.send_content(to, make(chat_id, limit))).HasField("sent")
    assert code_in(await alice.send_content(to, make(chat_id, limit + 1))) == "TOO_LARGE"
    by_call = SendMessageRequest(chat_id=to, content=make(chat_id, limit + 1))
    assert code_of(await cast.caller("alice").messages.SendMessage(by_call)) == "TOO_LARGE"


FIELDS: dict[str, tuple[int, Callable[[Caller, str, int], Awaitable[Any]]]] = {
    "title_chars_max, of a new group": (
        LIMITS.title_chars_max,
        lambda it, _, size: it.chats.CreateGroup(CreateGroupRequest(title="é" * size)),
    ),
    "title_chars_max, of a group": (
        LIMITS.title_chars_max,
        lambda it, chat_id, size: it.chats.UpdateGroup(UpdateGroupRequest(chat_id=chat_id, title="é" * size)),
    ),
    "picture_url_bytes_max, of a group": (
        LIMITS.picture_url_bytes_max,
        lambda it, chat_id, size: it.chats.UpdateGroup(
            UpdateGroupRequest(chat_id=chat_id, picture_url="https://p.example/".ljust(size, "x"))
        ),
    ),
    "picture_url_bytes_max, of a user": (
        LIMITS.picture_url_bytes_max,
        lambda it, _, size: it.users.UpdateProfile(UpdateProfileRequest(picture_url="https://p.example/".ljust(size, "x"))),
    ),
    "display_name_chars_max": (
        LIMITS.display_name_chars_max,
        lambda it, _, size: it.users.UpdateProfile(UpdateProfileRequest(display_name="é" * size)),
    ),
    "about_chars_max": (
        LIMITS.about_chars_max,
        lambda it, _, size: it.users.UpdateProfile(UpdateProfileRequest(about="é" * size)),
    ),
    "device_name_bytes_max": (
        LIMITS.device_name_bytes_max,
        lambda it, _, size: it.devices.RenameDevice(RenameDeviceRequest(device_id="phone", name="x" * size)),
    ),
}


@pytest.mark.parametrize("field", FIELDS)
async def test_sizes_of_fields(cast: Cast, field: str) -> None:
    await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    limit, call = FIELDS[field]
    assert not (await call(cast.caller("alice"), chat_id, limit)).HasField("error")
    assert code_of(await call(cast.caller("alice"), chat_id, limit + 1)) == "TOO_LARGE"


async def test_device_name_bytes_max_in_a_hello(cast: Cast) -> None:
    """It is cut, at a whole letter: a device must not be kept out by its name."""
    alice = cast.device("alice")
    alice.name = "x" + "é" * LIMITS.device_name_bytes_max
    await alice.connect()
    listed = await cast.caller("alice").devices.ListDevices(ListDevicesRequest())
    assert listed.devices[0].name == "x" + "é" * ((LIMITS.device_name_bytes_max - 1) // 2)


# Counts.


async def test_group_members_max(cast: Cast) -> None:
    alice = cast.caller("alice")
    others = [f"member{number}" for number in range(LIMITS.group_members_max)]
    too_many = CreateGroupRequest(title="Too many", member_user_ids=map(cast.user, others))
    assert code_of(await alice.chats.CreateGroup(too_many)) == "LIMIT_EXCEEDED"
    chat_id = await cast.group("alice", *others[:-1])
    one_more = AddMembersRequest(chat_id=chat_id, user_ids=[cast.user(others[-1])])
    assert code_of(await alice.chats.AddMembers(one_more)) == "LIMIT_EXCEEDED"
    link = await alice.chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id))
    by_link = JoinByLinkRequest(token=link.join_link.token)
    assert code_of(await cast.caller(others[-1]).chats.JoinByLink(by_link)) == "LIMIT_EXCEEDED"
    assert len((await alice.summary(chat_id)).chat.members) == LIMITS.group_members_max


async def test_join_requests_max(cast: Cast) -> None:
    chat_id = await cast.group("alice", "bob")
    link = await cast.caller("alice").chats.CreateJoinLink(CreateJoinLinkRequest(chat_id=chat_id, approval_required=True))
    names = [f"guest{number}" for number in range(LIMITS.join_requests_max)]
    outcomes: list[str] = []
    for number in range(0, len(names), 32):
        some = [cast.caller(name) for name in names[number : number + 32]]
        outcomes += await asyncio.gather(*(caller.join(link.join_link.token) for caller in some))
    assert outcomes == ["pending"] * LIMITS.join_requests_max
    one_more = JoinByLinkRequest(token=link.join_link.token)
    assert code_of(await cast.caller("late").chats.JoinByLink(one_more)) == "LIMIT_EXCEEDED"


async def test_small_group_members_max(cast: Cast) -> None:
    """No error: above it, marks of others are not pushed, but one's own are; and the summary holds one's own only."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    laptop = await cast.online("bob", "laptop")
    others = [f"member{number}" for number in range(LIMITS.small_group_members_max - 1)]
    chat_id = await cast.group("alice", "bob", *others)
    sent = await alice.send(chat_id, "hello")
    await bob.until_held(chat_id, sent.seq)
    await bob.mark_read(chat_id, sent.seq)
    await laptop.until(lambda: (chat_id, bob.user_id) in laptop.receipts)
    await alice.send(alice.user_id, "what was to be shown goes out with the next event")
    await alice.heartbeat()
    assert (chat_id, bob.user_id) not in alice.receipts
    assert [mark.user_id for mark in (await cast.caller("bob").summary(chat_id)).receipts] == [bob.user_id]


@of_the_past
async def test_chats_per_user_max(past: Cast) -> None:
    """Thousands of direct chats, which anybody can begin, keep nobody from anything."""
    popular, bob = await past.online("popular"), await past.online("bob")
    assert (await popular.send(past.user("bob"), "one more")).seq == 2
    assert (await bob.send(popular.user_id, "hello")).seq == 3
    assert (await bob.send(past.user("friend0"), "hello")).seq == 2
    bobs = past.caller("bob")
    chat_id = await past.group("bob", "popular")
    await past.group("popular", "bob")
    another = await past.group("bob", "alice")
    added = await bobs.chats.AddMembers(AddMembersRequest(chat_id=another, user_ids=[popular.user_id]))
    assert added.HasField("committed"), added
    assert (await popular.send(chat_id, "hello")).seq == 2


async def test_groups_rate(cast: Cast) -> None:
    """Whoever makes groups without end is told to wait, and so is who draws others into them; nobody else is concerned.

    Each node counts what it owns of the new groups, whose ids are random.
    """
    eve, nodes = cast.caller("eve"), len(cast.server.addresses)
    request = CreateGroupRequest(title="Spam", member_user_ids=[cast.user("alice")])
    outcomes = [await eve.chats.CreateGroup(request) for _ in range(nodes * LIMITS.groups_rate.burst + 5)]
    refused = [reply for reply in outcomes if reply.HasField("error")]
    assert len(refused) >= 3, "some may have been filled up again meanwhile"
    assert len(refused) <= 5 or nodes > 1
    assert {code_of(reply) for reply in refused} == {"RATE_LIMITED"}
    assert all(0 < reply.error.retry_after_ms <= LIMITS.groups_rate.interval_ms + 1 for reply in refused)
    assert (await (await cast.online("bob")).send(cast.user("alice"), "hello")).seq == 2
    await cast.group("alice", "bob")


@pytest.mark.embedded_only("the rates of a server are settings")
async def test_additions_rate_direct_chats_rate(tmp_path: Path) -> None:
    """The rates that an operator set hold; each refusal says for how long; a bot of the operator's may do it more often."""
    rates = {"ADDITIONS_BURST": "3", "ADDITIONS_INTERVAL_S": "60", "FIRST_MESSAGES_BURST": "2", "BOTS": "bot.rates"}
    async with running_server(tmp_path / "data", {f"CHATGRPC_RATES__{name}": value for name, value in rates.items()}) as server:
        cast = Cast(server, "rates")
        try:
            refused: dict[str, list[chat_pb2.Error]] = {"eve": [], "bot": []}
            for name, errors in refused.items():
                caller = cast.caller(name)
                chat_id = await cast.group(name, "alice")  # the first of three additions
                for number in range(3):
                    added = AddMembersRequest(chat_id=chat_id, user_ids=[cast.user(f"friend{number}")])
                    sent = SendMessageRequest(user_id=cast.user(f"friend{number}"), content=text_content("hello"))
                    for reply in (await caller.chats.AddMembers(added), await caller.messages.SendMessage(sent)):
                        errors.extend([reply.error] if reply.HasField("error") else [])
            assert refused["bot"] == []
            assert [chat_pb2.ErrorCode.Name(error.code) for error in refused["eve"]] == ["ERROR_CODE_RATE_LIMITED"] * 2
            assert [error.retry_after_ms > 0 for error in refused["eve"]] == [True] * 2
            assert refused["eve"][0].retry_after_ms <= 60_001
            assert refused["eve"][1].retry_after_ms <= 30_001
        finally:
            await cast.close()


async def test_unknown_revocations_rate(cast: Cast) -> None:
    """Of ids that no device has so many are revoked at each node, and then no more."""
    burst = LIMITS.unknown_revocations_rate.burst * len(cast.server.addresses)
    devices = cast.caller("alice").devices
    outcomes = [code_of(await devices.RevokeDevice(RevokeDeviceRequest(device_id=f"made-up-{n}"))) for n in range(burst + 1)]
    assert outcomes[: LIMITS.unknown_revocations_rate.burst] == ["NOT_FOUND"] * LIMITS.unknown_revocations_rate.burst
    assert "RATE_LIMITED" in outcomes


async def test_chats_per_user_max_in_a_hello(cast: Cast) -> None:
    """Positions of more chats than there can be, past ones included, are passed over: they must not shut a device out."""
    alice = cast.device("alice")
    alice.held.cursors = {f"g.{number:022}": 1 for number in range(2 * LIMITS.chats_per_user_max + 1)}
    await alice.connect()
    await alice.synced()
    sent = await alice.send(cast.user("bob"), "hello")
    await alice.until_held(sent.chat_id, sent.seq)


async def test_devices_per_user_max(cast: Cast) -> None:
    """One more is refused until one is revoked."""
    for number in range(LIMITS.devices_per_user_max):
        await (await cast.online("alice", f"device{number}")).close()
    with pytest.raises(DisconnectedError) as refused:
        await cast.device("alice", "one-more").connect()
    assert refused.value.disconnect is not None
    assert refused.value.disconnect.code == session_pb2.DISCONNECT_CODE_TOO_MANY_DEVICES
    await cast.online("alice", "device0")
    await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id="device1"))
    await cast.online("alice", "one-more")


# Pages.


async def test_history_page_default_and_max(cast: Cast) -> None:
    """More than the most is cut to it."""
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    outbox = Outbox(alice, window=200)
    for number in range(LIMITS.history_page_max + 50):
        outbox.compose(chat_id, f"{number}")
    await outbox.flush()
    for wanted, got in ((0, LIMITS.history_page_default), (10_000, LIMITS.history_page_max)):
        page = (await alice.history(session_pb2.FetchHistory(chat_id=chat_id, limit=wanted))).history_page
        assert (len(page.events), page.more_before) == (got, True)
        listed = await cast.caller("bob").messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=wanted))
        assert len(listed.events) == got
        assert listed.next_page_token


async def test_page_bytes_max(cast: Cast) -> None:
    """A page of large events ends early, and the next one goes on behind it."""
    alice = await cast.online("alice")
    chat_id = await cast.group("alice", "bob")
    for _ in range(12):
        await alice.send(chat_id, "x" * 60_000)
    page = (await alice.history(session_pb2.FetchHistory(chat_id=chat_id, limit=100))).history_page
    assert page.more_before
    assert LIMITS.page_bytes_max - 60_000 < page.ByteSize() < LIMITS.page_bytes_max + 2 * 60_000
    assert await cast.caller("bob").seqs(chat_id) == list(range(1, 14))


@of_the_past
async def test_chats_page_default_and_max(past: Cast) -> None:
    popular = past.caller("popular")
    for wanted, got in ((0, LIMITS.chats_page_default), (10_000, LIMITS.chats_page_max)):
        page = await popular.chats.ListChats(ListChatsRequest(page_size=wanted))
        assert len(page.chats) == got
        assert page.next_page_token
    seen: list[str] = []
    page = ListChatsResponse()
    while not seen or page.next_page_token:
        page = await popular.chats.ListChats(ListChatsRequest(page_size=100, page_token=page.next_page_token))
        seen += [summary.chat.chat_id for summary in page.chats]
    assert len(seen) == len(set(seen)) >= LIMITS.chats_per_user_max
    assert seen == sorted(seen)


# Times.


@of_the_past
async def test_edit_window_ms(past: Cast) -> None:
    """Of alice's four messages, of before and after each window, only the last may still be edited."""
    alice = await past.online("alice")
    chat_id = (await alice.send(past.user("bob"), "now")).chat_id
    assert [await _outcome(alice, chat_id, edit(seq, "changed")) for seq in (2, 3, 4, 5)] == [
        "WINDOW_PASSED",
        "WINDOW_PASSED",
        "WINDOW_PASSED",
        "sent",
    ]


@of_the_past
async def test_delete_window_ms(past: Cast) -> None:
    alice = await past.online("alice")
    chat_id = (await alice.send(past.user("bob"), "now")).chat_id
    assert [await _outcome(alice, chat_id, delete(seq)) for seq in (2, 3)] == ["WINDOW_PASSED", "sent"]


async def _outcome(device: Device, chat_id: str, content: content_pb2.Content) -> str:
    answer = await device.send_content(chat_id, content)
    return "sent" if answer.HasField("sent") else code_in(answer)


@of_the_past
async def test_dedupe_span_max(past: Cast) -> None:
    carol = await past.online("carol")
    chat_id = (await carol.send(past.user("bob"), "now")).chat_id
    head = LIMITS.dedupe_span_max + 102
    await carol.until_held(chat_id, head)
    for seen_seq, outcome in ((head - LIMITS.dedupe_span_max - 1, "SEEN_SEQ_TOO_OLD"), (head - LIMITS.dedupe_span_max, "sent")):
        frame = carol.compose(chat_id, "behind", os.urandom(16))
        frame.send.key.seen_seq = seen_seq
        answer = await carol.request(frame)
        assert ("sent" if answer.HasField("sent") else code_in(answer)) == outcome


# The table itself.


def test_every_limit_is_driven_here_or_it_is_said_why_not() -> None:
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    driven = [*tests, *SIZES, *FIELDS]
    names = {field.name for field in dataclasses.fields(Limits)}
    missing = {name for name in names if not any(name in what for what in driven)} - NOT_DRIVEN_BY_ONE_PEER.keys()
    missing -= {"history_page_max", "chats_page_max"}  # test_…_page_default_and_max
    assert not missing
    assert names > NOT_DRIVEN_BY_ONE_PEER.keys()


async def test_the_welcome_tells_the_limits_in_force(cast: Cast) -> None:
    assert (await cast.device("alice").connect()).limits == LIMITS.frame()
