"""Bad input: well-formed requests, far too many of them. The pair chats on, and the server's memory stays bounded."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.edge.errors import error_info_of
from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.message_service_pb2 import ListMessagesRequest
from tests.robustness.bad_input.support_http2 import RawStream
from tests.robustness.bad_input.support_scene import Scene, Sighting
from tests.robustness.bad_input.support_stream import BareStream, FrameStream, batch_of, fetch, heartbeat, hello, send
from tests.robustness.bad_input.support_tokens import forged_token
from tests.support.callers import Caller
from tests.support.server import channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits()
COUNT = 10_000
PER_BATCH = 100
_STALL_S = 1.0
"""A writer that gets nothing away for as long has been stopped by flow control."""


async def test_ten_thousand_sends_without_reading(scene: Scene) -> None:
    """Past the sends whose order the session keeps, the stream ends. What was answered stands, in the order of sending."""
    chat_id = direct_chat_id("flooder", "flooded")
    async with scene.attack("10,000 sends, nothing read") as sighting, await RawStream.connect(scene.server.port) as stream:
        await stream.open(scene.token("flooder"))
        await _pour(stream, (send("flooded", f"number {number}", number) for number in range(2, COUNT + 2)), sighting)
        answers, last = await _until_the_end(stream)
        seen = Counter(_name(answer) for answer in answers.values())
        sighting.notes["answers"] = dict(seen)
        assert last.disconnect.code == session_pb2.DISCONNECT_CODE_OVERLOADED
        assert "TOO_MANY_IN_FLIGHT" in seen
        assert seen.keys() <= {"sent", "TOO_MANY_IN_FLIGHT", "AFTER_FAILED_SEND"}
    async with Caller(scene.address, "flooder", scene.token("flooder")) as caller:
        seqs = await caller.seqs(chat_id)
        assert seqs == list(range(1, len(seqs) + 1))
        page = await caller.messages.ListMessages(ListMessagesRequest(chat_id=chat_id, page_size=100))
    sent = {request_id: answer.sent.seq for request_id, answer in answers.items() if answer.HasField("sent")}
    assert sorted(sent.values()) == [seq for _, seq in sorted(sent.items())] == list(range(2, len(sent) + 2))
    assert len(seqs) - 1 - len(sent) <= LIMITS.requests_in_flight_max, "committed, and the answer came too late for the stream"
    numbers = [int(event.content.text.text.split()[1]) for event in page.events]
    assert numbers == sorted(set(numbers), reverse=True), "newest first, none twice"


async def test_ten_thousand_requests_for_history_without_reading(scene: Scene) -> None:
    """Pages of half a megabyte: 5 GB if all were read at once. The server reads on when the device does; each is answered."""
    async with Caller(scene.address, "librarian", scene.token("librarian")) as caller:
        chat_id = await caller.create_group(title="Long texts")
        await asyncio.gather(*(caller.send(chat_id, "x" * 5_000) for _ in range(100)))
    async with (
        scene.attack("10,000 requests for history, nothing read") as sighting,
        await RawStream.connect(scene.server.port) as stream,
    ):
        await stream.send_frames(hello(scene.token("librarian"), start_at=session_pb2.START_AT_HEAD))
        await stream.until("sync_complete")
        pouring = await _pour(stream, (fetch(chat_id, number) for number in range(2, COUNT + 2)), sighting)
        assert not pouring.done(), "the server has read them all, and holds the answers"
        answers = await _answers(stream, COUNT)
        await pouring
        assert sorted(answers) == list(range(2, COUNT + 2))
        seen = Counter(_name(answer) for answer in answers.values())
        assert seen.keys() == {"history_page", "TOO_MANY_IN_FLIGHT"}
        assert all(len(answer.history_page.events) > 0 for answer in answers.values() if answer.HasField("history_page"))
        sighting.notes["answers"] = dict(seen)


async def test_heartbeats_of_a_device_that_is_behind_in_many_chats(scene: Scene) -> None:
    """A small question with a large answer: it names heads of chats, but not more than so many."""
    async with (
        scene.attack("20,000 heartbeats, behind in 100 chats") as sighting,
        await RawStream.connect(scene.server.port) as stream,
    ):
        await stream.open(scene.token("popular"))
        for number in range(100):
            await stream.send_frames(send(f"admirer-{number}", "hello", 2 + number))
            assert (await stream.answer(2 + number)).HasField("sent")
        frames = (heartbeat(number) for number in range(1_000, 21_000))
        pouring = await _pour(stream, frames, sighting, per_batch=500)
        assert not pouring.done(), "the server has read them all, and holds the answers"
        answers = await _answers(stream, 20_000)
        await pouring
        assert sorted(answers) == list(range(1_000, 21_000))
        assert {len(answer.heartbeat.heads) for answer in answers.values()} == {LIMITS.heartbeat_heads_max}


async def test_typing_in_a_group(scene: Scene) -> None:
    """Typing is shown to all members, at most once a second per chat, whatever is said to be typed."""
    members = [f"member-{number}" for number in range(100)]
    async with Caller(scene.address, "typist", scene.token("typist")) as caller:
        chat_id = await caller.create_group(*members)
    kinds = (session_pb2.TYPING_KIND_TEXT, session_pb2.TYPING_KIND_STOPPED, session_pb2.TYPING_KIND_STOPPED)
    async with scene.attack("20,000 typing frames in a group of 100") as sighting, channel(scene.address) as shared:
        streams = [BareStream(scene.address, shared_channel=shared) for _ in members]
        tokens = map(scene.token, members)
        await asyncio.gather(*(stream.open(token) for stream, token in zip(streams, tokens, strict=True)))
        async with await RawStream.connect(scene.server.port) as typist:
            await typist.open(scene.token("typist"))
            typing = (
                session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=chat_id, kind=kind))
                for kind, _ in zip(itertools.cycle(kinds), range(20_000), strict=False)
            )
            await (await _pour(typist, typing, sighting, per_batch=500))
            await typist.send_frames(heartbeat(2))
            await typist.answer(2)
        assert (await streams[0].until("typing")).typing.user_id == "typist"
        for stream in streams:
            await stream.close()


async def test_refreshing_the_token_again_and_again(scene: Scene) -> None:
    """A session has one token looked at at a time, and is answered for each."""
    tokens = (scene.token("refresher"), forged_token("refresher"), "x" * 5_000)

    def refresh(number: int) -> session_pb2.ClientFrame:
        return session_pb2.ClientFrame(request_id=2 + number, refresh_token=session_pb2.RefreshToken(token=tokens[number % 3]))

    async with scene.attack("10,000 refreshes of the token") as sighting, BareStream(scene.address) as stream:
        await stream.open(scene.token("refresher"))
        pouring = await _pour(stream, map(refresh, range(COUNT)), sighting)
        answers = await _answers(stream, COUNT)
        await pouring
        assert sorted(answers) == list(range(2, COUNT + 2))
        seen = Counter(_name(answer) for answer in answers.values())
        assert seen.keys() <= {"token_refreshed", "TOKEN_INVALID", "TOO_MANY_IN_FLIGHT"}
        for number, name in ((15_000, "token_refreshed"), (15_001, "TOKEN_INVALID")):
            await stream.send_frames(refresh(number))
            assert _name(await stream.answer(2 + number)) == name
        sighting.notes["answers"] = dict(seen)


async def test_sends_to_chats_that_do_not_exist(scene: Scene) -> None:
    """Each is refused. What a session must remember of them, since their order counts, is bounded: then the stream ends."""
    async with scene.attack("20,000 sends to as many chats") as sighting, await RawStream.connect(scene.server.port) as stream:
        await stream.open(scene.token("stray"))
        frames = (send(f"g.{number:022}", "anybody there?", number) for number in range(2, 20_002))
        await _pour(stream, frames, sighting, per_batch=500)
        answers, last = await _until_the_end(stream)
        seen = Counter(_name(answer) for answer in answers.values())
        sighting.notes["answers"] = dict(seen)
        assert last.disconnect.code == session_pb2.DISCONNECT_CODE_OVERLOADED
        assert {"NOT_A_MEMBER", "TOO_MANY_IN_FLIGHT"} >= seen.keys()


async def test_sends_to_chats_that_do_not_exist_one_by_one(scene: Scene) -> None:
    """Who waits for each answer is refused as often as they like, and nothing is remembered."""
    async with scene.attack("200 sends to as many chats, one by one", growth_max_mib=4), BareStream(scene.address) as stream:
        await stream.open(scene.token("patient"))
        for number in range(2, 202):
            await stream.send_frames(send(f"g.{number:022}", "anybody there?", number))
            assert _name(await stream.answer(number)) == "NOT_A_MEMBER"


@pytest.mark.parametrize("kind", ["heartbeat", "watch_chats", "refresh_token"])
async def test_many_streams_that_flood_at_once(scene: Scene, kind: str) -> None:
    """Twenty devices pour frames as fast as they can for two seconds: work is shared fairly, stream by stream."""
    user_id = f"crowd-{kind}"  # one user may not draw so many into groups at once
    async with Caller(scene.address, user_id, scene.token(user_id)) as caller:
        friends = [f"friend-{number}" for number in range(30)]
        chat_ids = [await caller.create_group("flood", *friends, title=f"Group {number}") for number in range(20)]
    frames = {
        "heartbeat": heartbeat(),
        "watch_chats": session_pb2.ClientFrame(watch_chats=session_pb2.WatchChats(chat_ids=chat_ids)),
        "refresh_token": session_pb2.ClientFrame(refresh_token=session_pb2.RefreshToken(token=scene.token(user_id))),
    }
    batch = batch_of(*[frames[kind]] * LIMITS.frames_per_batch_max)
    counts: list[int] = []

    async def flood(stream: RawStream) -> None:
        until_s, count = time.monotonic() + 2, 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while time.monotonic() < until_s:
                    await stream.send(batch)
                    count += 1
        counts.append(count * LIMITS.frames_per_batch_max)

    # The attackers share a process with the pair, whose loop they keep busy as well: what the server does to others in such a
    # time is a matter of benchmarks; that it does not stand still is asked here.
    async with (
        scene.attack(f"20 streams that pour {kind} for 2 s", p99_max_s=5.0) as sighting,
        contextlib.AsyncExitStack() as stack,
    ):
        streams = [await stack.enter_async_context(await RawStream.connect(scene.server.port)) for _ in range(20)]
        for number, stream in enumerate(streams):
            await stream.open(scene.token("flood" if number < 10 else user_id), f"device-{number % 10}")
        await asyncio.gather(*map(flood, streams))
        sighting.notes["frames"] = sum(counts)


async def test_hellos_with_forged_tokens(scene: Scene) -> None:
    """Each costs the server a look at a signature, and is told what is wrong."""
    forged = forged_token("nobody")

    async def knock(shared: grpc.aio.Channel, count: int) -> None:
        for _ in range(count):
            stream = BareStream(scene.address, shared_channel=shared)
            await stream.send_frames(hello(forged))
            outcome = await stream.outcome()
            assert outcome.status == grpc.StatusCode.UNAUTHENTICATED
            assert outcome.reason == "TOKEN_KEY_UNKNOWN"
            assert outcome.disconnect is not None
            assert outcome.disconnect.code == session_pb2.DISCONNECT_CODE_UNAUTHENTICATED

    async with scene.attack("2,000 Hellos with forged tokens") as sighting, channel(scene.address) as shared:
        started_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(knock(shared, 100) for _ in range(20)))
        sighting.notes["per second"] = round(2_000 / (asyncio.get_running_loop().time() - started_s))


async def test_large_hellos_with_forged_tokens_leave_nothing(scene: Scene) -> None:
    """200 MB of Hellos that are refused."""
    frame = hello(forged_token("nobody"))
    for number in range(3_900):
        frame.hello.positions.add(chat_id=f"d.{number:022}", seq=number)
        frame.hello.features.append(f"{number:04}" * 50)
    batch = batch_of(frame)
    assert 900_000 < len(batch) < 1024 * 1024

    async def knock(shared: grpc.aio.Channel) -> None:
        for _ in range(20):
            stream = BareStream(scene.address, shared_channel=shared)
            await stream.send(batch)
            assert (await stream.outcome()).reason == "TOKEN_KEY_UNKNOWN"

    async with scene.attack("200 Hellos of 1 MB with forged tokens", growth_max_mib=32), channel(scene.address) as shared:
        await asyncio.gather(*(knock(shared) for _ in range(10)))


async def test_more_calls_at_once_than_the_node_takes(scene: Scene) -> None:
    """Past the limit a call is refused with a status that explains itself; the others are answered."""
    seen: Counter[str] = Counter()
    metadata = (("authorization", f"Bearer {scene.token('caller')}"),)

    async def call(shared: grpc.aio.Channel) -> None:
        method: Any = shared.unary_unary("/chatgrpc.v1.ChatService/ListChats")
        try:
            await method(b"", metadata=metadata, timeout=60)
            seen["OK"] += 1
        except grpc.aio.AioRpcError as error:
            info = error_info_of(error.trailing_metadata())
            seen[info.reason if info is not None else f"{error}"] += 1

    async with scene.attack("3,000 calls at once", growth_max_mib=64) as sighting:
        channels = [channel(scene.address) for _ in range(30)]
        await asyncio.gather(*(call(shared) for shared in channels for _ in range(100)))
        await asyncio.gather(*(shared.close() for shared in channels))
        sighting.notes["answers"] = dict(seen)
    assert seen.keys() <= {"OK", "TOO_MANY_CALLS"}
    assert seen["OK"] > 0


async def _pour(
    stream: FrameStream, frames: Iterable[session_pb2.ClientFrame], sighting: Sighting, per_batch: int = PER_BATCH
) -> "asyncio.Task[None]":
    """Sends frames until all are away or flow control stops it; returns the task, which goes on when it may."""
    progress = 0
    stalled_since_s = time.monotonic()

    async def pour() -> None:
        nonlocal progress, stalled_since_s
        source = iter(frames)
        while batch := list(itertools.islice(source, per_batch)):
            await stream.send_frames(*batch)
            progress += len(batch)
            stalled_since_s = time.monotonic()

    pouring = asyncio.create_task(pour())
    while not pouring.done() and time.monotonic() < stalled_since_s + _STALL_S:
        await asyncio.wait([pouring], timeout=_STALL_S / 10)
    sighting.notes["sent before reading"] = progress
    return pouring


async def _answers(stream: FrameStream, count: int) -> dict[int, session_pb2.ServerFrame]:
    """The next answers, by request id; none may come twice."""
    answers: dict[int, session_pb2.ServerFrame] = {}
    async for frame in _answered(stream):
        assert frame.request_id not in answers, f"answered twice: {frame}"
        answers[frame.request_id] = frame
        if len(answers) == count:
            break
    return answers


async def _until_the_end(stream: FrameStream) -> tuple[dict[int, session_pb2.ServerFrame], session_pb2.ServerFrame]:
    """All answers, by request id, and the last frame, which must be a Disconnect."""
    answers: dict[int, session_pb2.ServerFrame] = {}
    last = session_pb2.ServerFrame()
    while (frame := await stream.next_frame()) is not None:
        last = frame
        if frame.request_id:
            assert frame.request_id not in answers, f"answered twice: {frame}"
            answers[frame.request_id] = frame
    assert last.HasField("disconnect"), f"the stream ended without a Disconnect: {last}"
    return answers, last


async def _answered(stream: FrameStream) -> AsyncIterator[session_pb2.ServerFrame]:
    while (frame := await stream.next_frame()) is not None:
        if frame.request_id:
            yield frame


def _name(answer: session_pb2.ServerFrame) -> str:
    if answer.HasField("error"):
        return chat_pb2.ErrorCode.Name(answer.error.code).removeprefix("ERROR_CODE_")
    return answer.WhichOneof("body") or ""
