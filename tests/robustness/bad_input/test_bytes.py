"""Bad input: bytes that are no protocol, at each layer: TCP, HTTP/2, gRPC's framing, protobuf."""

import asyncio
import os
import random
import struct
from collections.abc import Callable

import grpc
import pytest

from chatgrpc.v1 import session_pb2
from tests.contract.http2_peer import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Http2Peer,
    frame,
    grpc_message,
)
from tests.robustness.bad_input.support_http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    PING,
    PRIORITY,
    WINDOW_UPDATE,
    Sender,
    data,
    gzip_bomb,
    headers,
    preface,
)
from tests.robustness.bad_input.support_scene import MIB, Scene
from tests.robustness.bad_input.support_stream import BareStream, batch_of, hello

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOISE = random.Random(7).randbytes(64 * 1024)
_CLOSED_WITHIN_S = 20.0
"""gRPC gives a connection ten seconds to become one of HTTP/2."""

NO_CONNECTIONS = {
    "nothing": b"",
    "half a preface": PREFACE[:10],
    "noise": NOISE,
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: chat\r\n\r\n",
    "a long line": b"A" * 1_000_000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + NOISE[:506],
    "a preface, and no settings": PREFACE,
    "noise behind the preface": PREFACE + NOISE,
    "noise behind the settings": preface(NOISE),
    "a frame of 16 MB": preface((2**24 - 1).to_bytes(3) + bytes((DATA, 0)) + (1).to_bytes(4), NOISE),
    "HEADERS that no table holds": preface(frame(HEADERS, END_HEADERS, 1, b"\xff" * 50)),
    "CONTINUATION of nothing": preface(frame(CONTINUATION, END_HEADERS, 1, b"")),
    "SETTINGS cut short": preface(frame(SETTINGS, 0, 0, b"x" * 5)),
    "SETTINGS with an impossible frame size": preface(frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1))),
    "PING cut short": preface(frame(PING, 0, 0, b"x")),
    "RST_STREAM cut short": preface(headers(1), frame(RST_STREAM, 0, 1, b"x")),
}
"""What is sent on a connection that the server must close."""

TOLERATED = {
    "DATA on the connection": preface(frame(DATA, 0, 0, b"x")),
    "HEADERS on an even stream": preface(headers(2)),
    "a window that overflows": preface(*[frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1))] * 2),
    "RST_STREAM of nothing": preface(frame(RST_STREAM, 0, 1, CANCEL)),
    "GOAWAY": preface(frame(0x7, 0, 0, bytes(8))),
    "an unknown frame": preface(frame(0x77, 0xFF, 77, NOISE[:500])),
}
"""What gRPC passes over, or answers on the stream only; the connection goes when the peer does."""


async def test_what_is_no_connection_is_closed(scene: Scene) -> None:
    async def connect(script: bytes) -> bool:
        peer = await Http2Peer.connect(scene.server.port)
        try:
            async with asyncio.timeout(_CLOSED_WITHIN_S):
                await peer.send(script)
                await peer.until_closed()
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        finally:
            await peer.close()
        return True

    async with scene.attack("connections that are none"):
        tolerated = [await Http2Peer.connect(scene.server.port) for _ in TOLERATED]
        for peer, script in zip(tolerated, TOLERATED.values(), strict=True):
            await peer.send(script)
        closed = await asyncio.gather(*map(connect, NO_CONNECTIONS.values()))
        for peer in tolerated:
            await peer.close()
    assert dict(zip(NO_CONNECTIONS, closed, strict=True)) == dict.fromkeys(NO_CONNECTIONS, True)


BAD_CALLS = {
    "a message cut short": headers(1) + data(1, grpc_message(b"x" * 10, length=100), END_STREAM),
    "a message that never ends": headers(1) + data(1, grpc_message(b"x" * 10, length=100)),
    "a message of 4 GB": headers(1) + data(1, grpc_message(b"x", length=2**32 - 1)),
    "half a prefix": headers(1) + data(1, b"\0\0", END_STREAM),
    "an unknown flag": headers(1) + data(1, grpc_message(b"", compressed=7)),
    "compressed, nobody says how": headers(1) + data(1, grpc_message(b"x", compressed=1)),
    "compressed in an unknown way": headers(1, grpc_encoding="brotli") + data(1, grpc_message(b"x", compressed=1)),
    "said to be gzip": headers(1, grpc_encoding="gzip") + data(1, grpc_message(NOISE[:1000], compressed=1)),
    "no message": headers(1, flags=END_HEADERS | END_STREAM),
    "an unknown service": headers(1, path="/nobody.Knows/This"),
    "an unknown method": headers(1, path="/chatgrpc.v1.SessionService/Disconnect"),
    "no path": headers(1, path=""),
    "a path of 8 kB": headers(1, path="/" + "x" * 8_000),
    "GET": headers(1, method="GET"),
    "not gRPC": headers(1, content_type="text/html"),
    "a deadline in the past": headers(1, grpc_timeout="0n"),
    "a deadline that is none": headers(1, grpc_timeout="soon"),
    "trailers in place of a message": headers(1) + headers(1, flags=END_HEADERS | END_STREAM),
    "fields of 100 kB": headers(1, x_padding="x" * 15_000) + data(1, b""),
    "reset at once": headers(1) + frame(RST_STREAM, 0, 1, CANCEL),
    "a unary call cut short": headers(1, path="/chatgrpc.v1.ChatService/ListChats") + data(1, b"\0", END_STREAM),
    "a unary call of two messages": (
        headers(1, path="/chatgrpc.v1.ChatService/ListChats") + data(1, grpc_message(b"") * 2, END_STREAM)
    ),
    "a health check that is noise": (
        headers(1, path="/grpc.health.v1.Health/Check") + data(1, grpc_message(NOISE[:99]), END_STREAM)
    ),
    "reflection on noise": (
        headers(1, path="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        + data(1, grpc_message(NOISE[:99]), END_STREAM)
    ),
}
"""One call each. The server must end it, or its connection."""


async def test_a_call_that_breaks_grpcs_rules_is_ended(scene: Scene) -> None:
    async def call(script: bytes) -> bool:
        sender = await Sender.connect(scene.server.port)
        try:
            async with asyncio.timeout(_CLOSED_WITHIN_S):
                await sender.peer.send(script)
                if not script.endswith(CANCEL):
                    await sender.until_ended(1)
        except TimeoutError:
            return False
        finally:
            await sender.close()
        return True

    async with scene.attack("calls that break gRPC's rules"):
        ended = await asyncio.gather(*map(call, BAD_CALLS.values()))
    assert dict(zip(BAD_CALLS, ended, strict=True)) == dict.fromkeys(BAD_CALLS, True)


async def test_a_small_message_that_unfolds_to_a_huge_one_is_refused(scene: Scene) -> None:
    """A message of 260 kB which gzip makes out of 256 MiB: the limit must hold for what comes out, too."""
    bomb = gzip_bomb(256 * MIB)
    async with scene.attack("a compressed message of 256 MiB", peak_growth_max_mib=32):
        for path in ("/chatgrpc.v1.SessionService/Connect", "/chatgrpc.v1.ChatService/ListChats"):
            sender = await Sender.connect(scene.server.port)
            async with asyncio.timeout(_CLOSED_WITHIN_S):
                await sender.peer.send(headers(1, path=path, grpc_encoding="gzip"))
                await sender.send_data(1, bomb)
                await sender.until_ended(1)
            await sender.close()


FLOODS: dict[str, Callable[[], list[bytes]]] = {
    "50,000 PING": lambda: [frame(PING, 0, 0, b"12345678") * 1_000] * 50,
    "50,000 SETTINGS": lambda: [frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 1_000] * 50,
    "50,000 WINDOW_UPDATE": lambda: [frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 1_000] * 50,
    "50,000 PRIORITY": lambda: [frame(PRIORITY, 0, 1, b"\0\0\0\0\0") * 1_000] * 50,
    "50,000 empty DATA": lambda: [headers(1), *[frame(DATA, 0, 1) * 1_000] * 50],
    "64 MB of CONTINUATION": lambda: [headers(1, flags=0), *[frame(CONTINUATION, 0, 1, b"\0" * 16_384)] * 4_000],
    "fields of 64 MB": lambda: [
        headers(1, flags=0),
        *[frame(CONTINUATION, 0, 1, b"\0\x04name\x7f\x81\x7f" + b"x" * 16_000 + b"\0\x01n\x01v" * 4)] * 4_000,
    ],
    "20,000 streams opened, reset at once": lambda: [
        b"".join(headers(stream) + frame(RST_STREAM, 0, stream, CANCEL) for stream in range(first, first + 200, 2))
        for first in range(1, 40_000, 200)
    ],
    "5,000 streams opened at once": lambda: [b"".join(map(headers, range(1, 10_000, 2)))],
}
"""Frames that HTTP/2 allows, far too many of them, piece by piece."""


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_of_http2_frames(scene: Scene, name: str) -> None:
    pieces = FLOODS[name]()
    async with scene.attack(name) as sighting:
        sender = await Sender.connect(scene.server.port)
        sent = 0
        try:
            async with asyncio.timeout(_CLOSED_WITHIN_S):
                for piece in pieces:
                    await sender.peer.send(piece)
                    sent += 1
                    if sender.closed.is_set():
                        break
        except (ConnectionError, TimeoutError):
            pass
        await asyncio.sleep(0.2)
        sighting.notes["sent"] = f"{sent} of {len(pieces)}"
        sighting.notes["closed by the server"] = sender.closed.is_set()
        await sender.close()


def _nested_groups(depth: int) -> bytes:
    """Unknown groups, one within the other."""
    return b"\xa3\x06" * depth + b"\xa4\x06" * depth


_HELLO = batch_of(hello("no-token"))
NO_BATCHES = {
    "noise": NOISE[:5_000],
    "a batch cut short": _HELLO[:-3],
    "a length beyond the end": b"\x0a\x7f",
    "a length of 4 GB": b"\x0a\xff\xff\xff\xff\x0f",
    "a length of 2 to the 63": b"\x0a" + b"\xff" * 9 + b"\x01",
    "a varint without end": b"\x08" + b"\xff" * 20,
    "a tag without end": b"\xff" * 20,
    "field 0": b"\x02\x00",
    "wire type 7": b"\x0f\x00",
    "a group that does not end": b"\x0b",
    "the end of a group": b"\x0c",
    "10,000 groups in one another": _nested_groups(10_000),
    "text that is not UTF-8": batch_of(hello("token")).replace(b"token", b"\xff\xfe\xfd\xfc\xfb"),
    "half a surrogate pair": batch_of(hello("abc")).replace(b"abc", b"\xed\xa0\x80"),
}
"""What is no ConnectRequest."""


@pytest.mark.parametrize("is_open", [False, True], ids=["before the Hello", "in an open session"])
async def test_a_message_that_is_no_batch_ends_the_stream_as_malformed(scene: Scene, is_open: bool) -> None:
    async def say(batch: bytes) -> tuple[grpc.StatusCode, str, bool]:
        async with BareStream(scene.address) as stream:
            if is_open:
                await stream.open(scene.token("malformed"), device_id=f"device-{random.randrange(10)}")
            await stream.send(batch)
            outcome = await stream.outcome()
            told = outcome.disconnect is not None and outcome.disconnect.code == session_pb2.DISCONNECT_CODE_MALFORMED
            return outcome.status, outcome.reason, told

    async with scene.attack(f"messages that are none, {'open' if is_open else 'not open'}"):
        seen = {name: await say(batch) for name, batch in NO_BATCHES.items()}
    assert seen == dict.fromkeys(NO_BATCHES, (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED", True))


async def test_messages_of_random_bytes(scene: Scene) -> None:
    """200 of them, each as the first message of a stream: the stream ends with a reason, or nothing was said on it at all."""
    noise = random.Random(11)
    reasons = {"MALFORMED", "PROTOCOL_VIOLATION", "HELLO_TIMEOUT"}

    async def say(message: bytes) -> str:
        async with BareStream(scene.address) as stream:
            await stream.send(message)
            return (await stream.outcome()).reason

    async with scene.attack("200 messages of random bytes"):
        messages = [noise.randbytes(noise.choice((1, 2, 5, 20, 200, 5_000))) for _ in range(200)]
        seen = await asyncio.gather(*map(say, messages))
    assert set(seen) <= reasons
    assert seen.count("MALFORMED") > 100


async def test_an_odd_authorization_is_no_token(scene: Scene) -> None:
    """The header as people get it wrong: without the scheme, empty, twice, binary, long."""
    token = scene.token("header")
    values = (
        token,
        "Bearer",
        "Bearer ",
        "Basic " + token,
        "Bearer " + "x" * 7_000,
        "bearer " + token[:-1],
        os.urandom(20).hex(),
    )

    async def call(value: str) -> str:
        async with BareStream(scene.address, [("authorization", value)]) as stream:
            await stream.send_frames(hello(""))
            outcome = await stream.outcome()
            assert outcome.status == grpc.StatusCode.UNAUTHENTICATED
            return outcome.reason

    async with scene.attack("odd authorization headers"):
        seen = [await call(value) for value in values]
        async with BareStream(scene.address, [("authorization", "Bearer " + token)]) as stream:
            await stream.send_frames(hello(""))
            assert (await stream.until("welcome")).welcome.user_id == "header"
    assert set(seen) <= {"TOKEN_MISSING", "TOKEN_MALFORMED", "TOKEN_SIGNATURE"}


async def test_a_connection_that_opens_and_is_reset_a_thousand_times(scene: Scene) -> None:
    opening = preface(headers(1), data(1, grpc_message(batch_of(hello(scene.token("restless"), "device")))))
    async with scene.attack("1,000 connections reset"):
        for _ in range(1_000):
            peer = await Http2Peer.connect(scene.server.port)
            await peer.send(opening)
            peer.reset()
