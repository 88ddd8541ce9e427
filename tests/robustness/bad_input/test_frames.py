"""Bad input: frames that are well formed and wrong. Each gets the error or the disconnect that docs/protocol.md promises."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

from chatgrpc.core.ids import direct_chat_id, self_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from tests.robustness.bad_input.support_http2 import RawStream
from tests.robustness.bad_input.support_scene import Scene
from tests.robustness.bad_input.support_stream import BareStream, Outcome, batch_of, fetch, heartbeat, hello, send

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits()
UINT64_MAX = 2**64 - 1
PAIRS_CHAT = direct_chat_id("healthy-ann", "healthy-ben")
_SILENCE_S = 0.4
_BARRIER = 1_000
UNKNOWN_ARM = session_pb2.ClientFrame.FromString(b"\x9a\x06\x01x")  # field 99

Content = content_pb2.Content

KINDS: dict[str, Callable[[str], session_pb2.ClientFrame]] = {
    "hello": lambda _: hello("no-token"),
    "send": lambda user_id: send(user_id, "to myself"),
    "send to others": lambda _: send(PAIRS_CHAT, "let me in"),
    "ack": lambda _: session_pb2.ClientFrame(ack=session_pb2.Ack(chat_id=PAIRS_CHAT, seq=UINT64_MAX)),
    "mark_read": lambda _: session_pb2.ClientFrame(mark_read=session_pb2.MarkRead(chat_id=PAIRS_CHAT, seq=UINT64_MAX)),
    "typing": lambda _: session_pb2.ClientFrame(typing=session_pb2.Typing(chat_id=PAIRS_CHAT, user_id="healthy-ann")),
    "heartbeat": lambda _: heartbeat(),
    "fetch_history of others": lambda _: fetch(PAIRS_CHAT),
    "refresh_token": lambda _: session_pb2.ClientFrame(refresh_token=session_pb2.RefreshToken(token="no-token")),
    "watch_chats": lambda _: session_pb2.ClientFrame(watch_chats=session_pb2.WatchChats(chat_ids=[PAIRS_CHAT])),
    "nothing": lambda _: session_pb2.ClientFrame(),
    "unknown arm": lambda _: session_pb2.ClientFrame.FromString(UNKNOWN_ARM.SerializeToString()),
}
"""A frame of each kind, by the user who sends it; without a request id."""

ANSWERS = {
    "hello": "PROTOCOL_VIOLATION",
    "send": "sent",
    "send to others": "ERROR_CODE_NOT_A_MEMBER",
    "ack": "",
    "mark_read": "",
    "typing": "",
    "heartbeat": "heartbeat",
    "fetch_history of others": "ERROR_CODE_NOT_A_MEMBER",
    "refresh_token": "ERROR_CODE_TOKEN_INVALID",
    "watch_chats": "",
    "nothing": "ERROR_CODE_INVALID_ARGUMENT",
    "unknown arm": "ERROR_CODE_INVALID_ARGUMENT",
}
"""What an open session answers to a frame with a request id: an arm, an error, the end of the stream, or nothing."""

UNNUMBERED = dict.fromkeys(KINDS, "") | {
    "hello": "PROTOCOL_VIOLATION",
    "send": "PROTOCOL_VIOLATION",
    "send to others": "PROTOCOL_VIOLATION",
    "fetch_history of others": "PROTOCOL_VIOLATION",
}
"""The same without a request id: no answer is wanted, and what cannot do without one is against the protocol."""


async def test_before_the_hello_every_other_frame_ends_the_stream(scene: Scene) -> None:
    async def say(kind: str) -> str:
        async with BareStream(scene.address) as stream:
            await stream.send_frames(KINDS[kind]("early"), hello(scene.token("early")))
            return _ending(await stream.outcome())

    async with scene.attack("frames before the Hello"):
        seen = await _each(say, [kind for kind in KINDS if kind != "hello"])
    assert seen == dict.fromkeys(seen, "PROTOCOL_VIOLATION")


@pytest.mark.parametrize("numbered", [True, False], ids=["with request id", "without request id"])
async def test_in_an_open_session_every_frame_has_its_answer(scene: Scene, numbered: bool) -> None:
    answers = ANSWERS if numbered else UNNUMBERED

    async def say(kind: str) -> str:
        user_id = f"open-{list(KINDS).index(kind)}"
        async with BareStream(scene.address) as stream:
            await stream.open(scene.token(user_id))
            frame = KINDS[kind](user_id)
            frame.request_id = 2 if numbered else 0
            await stream.send_frames(frame)
            return await _answer_to(stream, frame.request_id, is_expected=bool(answers[kind]))

    async with scene.attack(f"every frame in an open session, {'' if numbered else 'not '}numbered"):
        seen = await _each(say, list(KINDS))
    assert seen == answers


async def test_frames_right_behind_the_hello_are_answered_once_the_session_is_open(scene: Scene) -> None:
    async def say(kind: str) -> str:
        user_id = f"opening-{list(KINDS).index(kind)}"
        frame = KINDS[kind](user_id)
        frame.request_id = 2
        async with BareStream(scene.address) as stream:
            await stream.send_frames(hello(scene.token(user_id)), frame)
            await stream.until("welcome")
            return await _answer_to(stream, 2, is_expected=bool(ANSWERS[kind]))

    async with scene.attack("frames right behind the Hello"):
        seen = await _each(say, list(KINDS))
    assert seen == ANSWERS


async def test_nothing_counts_after_the_frame_that_ends_the_stream(scene: Scene) -> None:
    """By bytes: grpc.aio drops what a stream has said before its end when a write comes behind that."""
    async with scene.attack("frames after the end"):
        async with await RawStream.connect(scene.server.port) as raw:
            await raw.open(scene.token("after-the-end"))
            await raw.send_frames(hello("again"), send("after-the-end", "too late", request_id=2))
            await raw.send_frames(send("after-the-end", "much too late", request_id=3))
            said = []
            while (frame := await raw.next_frame()) is not None:
                said.append(frame)
        assert said[-1].disconnect.code == session_pb2.DISCONNECT_CODE_PROTOCOL_VIOLATION
        assert not [frame for frame in said if frame.request_id in {2, 3}]
        async with BareStream(scene.address) as stream:
            await stream.open(scene.token("after-the-end"))
            await stream.send_frames(fetch(self_chat_id("after-the-end"), request_id=2))
            answer = await stream.answer(2)
    assert answer.error.code == chat_pb2.ERROR_CODE_NOT_A_MEMBER, "a send behind the end was committed"


async def test_request_ids_must_rise(scene: Scene) -> None:
    async with scene.attack("request ids that do not rise"):
        for request_ids in ((2, 2), (5, 4), (1,), (UINT64_MAX, UINT64_MAX), (UINT64_MAX, 1)):
            async with BareStream(scene.address) as stream:
                await stream.open(scene.token("numbers"))
                await stream.send_frames(*(heartbeat(request_id) for request_id in request_ids))
                outcome = await stream.outcome()
            assert _ending(outcome) == "PROTOCOL_VIOLATION"
            answered = [frame.request_id for frame in outcome.frames if frame.HasField("heartbeat")]
            assert answered == list(request_ids[:-1])


async def test_batches_have_their_limits(scene: Scene) -> None:
    frames_max, bytes_max = LIMITS.frames_per_batch_max, LIMITS.batch_bytes_max
    async with scene.attack("batches of no, 512, 513 frames and of more than 1 MiB"):
        async with BareStream(scene.address) as stream:
            await stream.open(scene.token("batches"))
            await stream.send(b"", b"", b"")
            await stream.send_frames(*(heartbeat(2 + number) for number in range(frames_max)))
            assert (await stream.answer(1 + frames_max)).HasField("heartbeat")
            await stream.send_frames(*(heartbeat() for _ in range(frames_max + 1)))
            outcome = await stream.outcome()
            assert _ending(outcome) == "MALFORMED"
            assert outcome.disconnect is not None
            assert str(frames_max) in outcome.disconnect.message
        async with BareStream(scene.address) as stream:
            await stream.open(scene.token("batches"))
            padding = bytes_max - len(batch_of(heartbeat(2))) - len(_unknown_field(0)) - 2  # its length takes two bytes more
            largest = batch_of(heartbeat(2)) + _unknown_field(padding)
            assert len(largest) == bytes_max
            await stream.send(largest)
            assert (await stream.answer(2)).HasField("heartbeat")
            await stream.send(b"\0" * (bytes_max + 1))
            outcome = await stream.outcome()
            assert outcome.status == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert outcome.disconnect is None, "gRPC itself refuses what is too long"


BAD_SENDS: dict[str, tuple[str, Callable[[session_pb2.SendMessage], object]]] = {
    "no key": ("INVALID_ARGUMENT", lambda it: it.ClearField("key")),
    "short client_message_id": ("INVALID_ARGUMENT", lambda it: _set(it.key, client_message_id=b"x" * 15)),
    "long client_message_id": ("INVALID_ARGUMENT", lambda it: _set(it.key, client_message_id=b"x" * 500_000)),
    "nobody": ("INVALID_ARGUMENT", lambda it: it.ClearField("to")),
    "malformed chat id": ("INVALID_ARGUMENT", lambda it: _set(it, chat_id="d.short")),
    "chat id with a newline": ("INVALID_ARGUMENT", lambda it: _set(it, chat_id=PAIRS_CHAT + "\n")),
    "long chat id": ("INVALID_ARGUMENT", lambda it: _set(it, chat_id="d." + "x" * 500_000)),
    "malformed user id": ("INVALID_ARGUMENT", lambda it: _set(it, user_id="-x")),
    "user id of other letters": ("INVALID_ARGUMENT", lambda it: _set(it, user_id="\N{CYRILLIC SMALL LETTER A}lice")),
    "someone else's chat": ("NOT_A_MEMBER", lambda it: _set(it, chat_id=PAIRS_CHAT)),
    "someone else's self chat": ("NOT_A_MEMBER", lambda it: _set(it, chat_id=self_chat_id("healthy-ann"))),
    "a chat that does not exist": ("NOT_A_MEMBER", lambda it: _set(it, chat_id="g." + "A" * 22)),
    "seen_seq ahead": ("SEEN_SEQ_AHEAD", lambda it: _set(it.key, seen_seq=3)),
    "seen_seq far ahead": ("SEEN_SEQ_AHEAD", lambda it: _set(it.key, seen_seq=UINT64_MAX)),
    "no content": ("UNSUPPORTED_CONTENT", lambda it: it.ClearField("content")),
    "unknown content": ("UNSUPPORTED_CONTENT", lambda it: it.content.ParseFromString(b"\x9a\x06\x01x")),
    "chat_created": ("UNSUPPORTED_CONTENT", lambda it: it.content.chat_created.SetInParent()),
    "members_added": ("UNSUPPORTED_CONTENT", lambda it: it.content.members_added.user_ids.append("bad-sends")),
    "member_removed": ("UNSUPPORTED_CONTENT", lambda it: _set(it.content.member_removed, user_id="healthy-ann")),
    "erased": ("UNSUPPORTED_CONTENT", lambda it: it.content.erased.SetInParent()),
    "empty text": ("INVALID_ARGUMENT", lambda it: _set(it.content.text, text="")),
    "long text": ("TOO_LARGE", lambda it: _set(it.content.text, text="x" * (LIMITS.text_bytes_max + 1))),
    "long text by its bytes": ("TOO_LARGE", lambda it: _set(it.content.text, text="\u20ac" * 21_900)),
    "long unknown field": ("TOO_LARGE", lambda it: it.content.MergeFromString(_unknown_field(500_000))),
    "long unknown field within": ("TOO_LARGE", lambda it: it.content.text.MergeFromString(_unknown_field(500_000))),
    "long ciphertext": ("TOO_LARGE", lambda it: _set(it.content.encrypted, scheme="x", ciphertext=b"x" * 65_536)),
    "reply to nothing": ("TARGET_NOT_FOUND", lambda it: _set(it.content, reply_to_seq=UINT64_MAX)),
    "reaction to nothing": ("TARGET_NOT_FOUND", lambda it: _set(it.content.reaction, target_seq=UINT64_MAX, emoji="👍")),
    "no emoji": ("INVALID_ARGUMENT", lambda it: _set(it.content.reaction, target_seq=2, emoji="notanemoji")),
    "two emojis": ("INVALID_ARGUMENT", lambda it: _set(it.content.reaction, target_seq=2, emoji="😀🎉")),
    "forwarded four billion times": ("INVALID_ARGUMENT", lambda it: _set(it.content, forward_count=2**32 - 1)),
    "long name of a scheme": ("TOO_LARGE", lambda it: _set(it.content.encrypted, scheme="x" * 65)),
    "long reaction": ("TOO_LARGE", lambda it: _set(it.content.reaction, target_seq=1, emoji="x" * 65)),
    "edit of nothing": ("TARGET_NOT_FOUND", lambda it: _set(it.content.edit, target_seq=UINT64_MAX, text="x")),
    "edit without target": ("INVALID_ARGUMENT", lambda it: _set(it.content.edit, text="x")),
    "delete of nothing": ("TARGET_NOT_FOUND", lambda it: _set(it.content.delete, target_seq=UINT64_MAX)),
    "delete of the creation": ("TARGET_NOT_FOUND", lambda it: _set(it.content.delete, target_seq=1)),
    "hide in a direct chat": ("UNSUPPORTED_CONTENT", lambda it: _hide(it.content, [1])),
    "hide of 101": ("TOO_LARGE", lambda it: _hide(it.content, range(101))),
}
"""What is wrong with a text that `bad-sends` sends to `bad-peer` as the second message of their chat, and its error code."""


async def test_a_send_that_breaks_a_rule_is_refused_and_the_session_goes_on(scene: Scene) -> None:
    async with scene.attack("sends that break a rule"), BareStream(scene.address) as stream:
        await stream.open(scene.token("bad-sends"))
        await stream.send_frames(send("bad-peer", "first", request_id=2))
        assert (await stream.answer(2)).sent.seq == 2
        seen = {}
        for request_id, (name, (_, spoil)) in enumerate(BAD_SENDS.items(), 3):
            frame = send("bad-peer", "fine but for one thing", request_id, seen_seq=2)
            spoil(frame.send)
            await stream.send_frames(frame)
            answer = await stream.answer(request_id)
            assert answer.error.message, f"{name}: {answer}"
            seen[name] = chat_pb2.ErrorCode.Name(answer.error.code).removeprefix("ERROR_CODE_")
        await stream.send_frames(send("bad-peer", "last", request_id=1_000, seen_seq=2))
        assert (await stream.answer(1_000)).sent.seq == 3, "one of the refused was committed"
    assert seen == {name: code for name, (code, _) in BAD_SENDS.items()}


async def test_unknown_fields_are_no_error_and_stay_where_newer_clients_put_them(scene: Scene) -> None:
    async with scene.attack("unknown fields"), BareStream(scene.address) as stream:
        await stream.open(scene.token("newer"))
        frame = send("newer", "from a newer client", request_id=2)
        frame.send.content.text.MergeFromString(_unknown_field(100))
        frame.send.MergeFromString(_unknown_field(100))
        frame.MergeFromString(_unknown_field(100))
        await stream.send(batch_of(frame) + _unknown_field(100))
        assert (await stream.answer(2)).sent.seq == 2
        await stream.send_frames(fetch(self_chat_id("newer"), request_id=3))
        page = (await stream.answer(3)).history_page
    assert _unknown_field(100) in page.events[-1].content.text.SerializeToString()


BAD_HELLOS: dict[str, tuple[str, Callable[[session_pb2.Hello], object]]] = {
    "no device id": ("PROTOCOL_VIOLATION", lambda it: it.ClearField("device_id")),
    "long device id": ("PROTOCOL_VIOLATION", lambda it: _set(it, device_id="x" * 65)),
    "device id of other letters": ("PROTOCOL_VIOLATION", lambda it: _set(it, device_id="a/b")),
    "device id with a newline": ("PROTOCOL_VIOLATION", lambda it: _set(it, device_id="a\n")),
    "no token": ("TOKEN_MISSING", lambda it: it.ClearField("token")),
    "10,000 positions": ("", lambda it: _positions(it, 10_000)),
    "200,000 empty positions": ("PROTOCOL_VIOLATION", lambda it: it.positions.extend([session_pb2.ChatPosition()] * 200_000)),
    "4,000 positions in chats of others": ("", lambda it: _positions(it, 4_000)),
    "positions beyond the log": ("", lambda it: it.positions.add(chat_id=PAIRS_CHAT, seq=UINT64_MAX, read_seq=UINT64_MAX)),
    "long device name": ("", lambda it: _set(it, device_name="\u20ac" * 100_000)),
    "10,000 features": ("", lambda it: it.features.extend(f"feature-{number}" for number in range(10_000))),
    "11,000 short features": ("PROTOCOL_VIOLATION", lambda it: it.features.extend(["feature"] * 11_000)),
    "odd sync token": ("", lambda it: _set(it, sync_token="\u0662" * 10_000)),
    "sync token of the future": ("", lambda it: _set(it, sync_token="9" * 15)),
    "unknown start_at": ("", lambda it: _set(it, start_at=99)),
    "empty chat id": ("", lambda it: it.positions.add()),
}
"""What is odd about a Hello, and how the stream ends; empty = it is let in."""


async def test_odd_hellos(scene: Scene) -> None:
    async def say(name: str) -> str:
        frame = hello(scene.token("odd-hello"), device_id=f"device-{list(BAD_HELLOS).index(name) % 8}")
        BAD_HELLOS[name][1](frame.hello)
        async with BareStream(scene.address) as stream:
            await stream.send_frames(frame, heartbeat(2))
            first = await stream.next_frame()
            if first is not None and first.HasField("welcome"):
                assert (await stream.answer(2)).HasField("heartbeat")
                return ""
            return _ending(await stream.outcome())

    async with scene.attack("odd Hellos"):
        seen = {name: await say(name) for name in BAD_HELLOS}
    assert seen == {name: ending for name, (ending, _) in BAD_HELLOS.items()}


async def test_one_user_has_as_many_devices_as_allowed(scene: Scene) -> None:
    devices_max = LIMITS.devices_per_user_max

    async def connect(device_id: str) -> str:
        async with BareStream(scene.address) as stream:
            await stream.send_frames(hello(scene.token("many-devices"), device_id))
            first = await stream.next_frame()
            return "" if first is not None and first.HasField("welcome") else _ending(await stream.outcome())

    async with scene.attack("100 devices of one user"):
        seen = [await connect(f"device-{number}") for number in range(devices_max)]
        seen_later = await _each(connect, [f"device-{number}" for number in range(devices_max, 100)])
        assert await connect("device-0") == "", "a device that is registered comes in"
    assert seen == [""] * devices_max
    assert seen_later == dict.fromkeys(seen_later, "TOO_MANY_DEVICES")


async def test_nothing_of_someone_elses_chat_reaches_an_outsider(scene: Scene) -> None:
    """Every way to ask for the pair's chat, while the pair is writing in it: refused, or answered by nothing (G6)."""
    async with scene.attack("asking for someone else's chat"), BareStream(scene.address) as stream:
        await stream.send_frames(
            hello(scene.token("outsider"), positions=[session_pb2.ChatPosition(chat_id=PAIRS_CHAT, seq=1)])
        )
        await stream.until("welcome")
        for request_id, kind in enumerate((kind for kind in KINDS if kind not in {"hello", "nothing", "send"}), 2):
            frame = KINDS[kind]("outsider")
            frame.request_id = request_id
            await stream.send_frames(frame)
        await stream.send_frames(fetch(self_chat_id("healthy-ann"), request_id=100), heartbeat(101))
        await asyncio.sleep(1)
        await stream.send_frames(heartbeat(102), hello("the end"))
        outcome = await stream.outcome()
    allowed = {"welcome", "sync_complete", "error", "heartbeat", "disconnect"}
    assert set(outcome.kinds()) <= allowed
    assert not [frame for frame in outcome.frames if PAIRS_CHAT in str(frame)]
    codes = {frame.error.code for frame in outcome.frames if frame.HasField("error")}
    assert chat_pb2.ERROR_CODE_NOT_A_MEMBER in codes


async def _each(say: Callable[[str], Awaitable[str]], names: list[str]) -> dict[str, str]:
    """Runs it for all names at once; returns what each saw."""
    return dict(zip(names, await asyncio.gather(*map(say, names)), strict=True))


async def _answer_to(stream: BareStream, request_id: int, is_expected: bool) -> str:
    """What is answered to a request: an arm, an error code, or the end of the stream; empty if nothing comes.

    That nothing comes is known after a while and a heartbeat there and back.
    """
    if not is_expected:
        await asyncio.sleep(_SILENCE_S)
        await stream.send_frames(heartbeat(_BARRIER))
    while (frame := await stream.next_frame()) is not None:
        if frame.request_id == _BARRIER:
            return ""
        if frame.HasField("error"):
            assert frame.request_id == request_id != 0, f"an error of no request: {frame}"
            return chat_pb2.ErrorCode.Name(frame.error.code)
        if request_id and frame.request_id == request_id:
            return frame.WhichOneof("body") or ""
    return _ending(await stream.outcome())


def _ending(outcome: Outcome) -> str:
    """The reason for which a stream ended, which its Disconnect and its status must both tell."""
    assert outcome.disconnect is not None, f"{outcome.status} without a Disconnect"
    assert outcome.kinds().count("disconnect") == 1
    assert outcome.disconnect.message
    assert outcome.status != grpc.StatusCode.OK
    code = session_pb2.DisconnectCode.Name(outcome.disconnect.code).removeprefix("DISCONNECT_CODE_")
    assert outcome.reason == code or code == "UNAUTHENTICATED"
    return outcome.reason


def _set(message: object, **values: object) -> None:
    for name, value in values.items():
        setattr(message, name, value)


def _hide(content: Content, seqs: "range | list[int]") -> None:
    content.hide.chat_id = PAIRS_CHAT
    content.hide.seqs.extend(seqs)


def _positions(it: session_pb2.Hello, count: int) -> None:
    for number in range(count):
        it.positions.add(chat_id=f"d.{number:022}", seq=UINT64_MAX, read_seq=UINT64_MAX)


def _unknown_field(size: int) -> bytes:
    """A field 2,000 of this many bytes."""
    return b"\x82\x7d" + _varint(size) + b"x" * size


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
