"""Bad input: batches that were good once, and were mutated at random. The stream goes on, or ends with a reason (X6).

Each iteration is a seed of its own, so one that fails is run again by its number, and the same bytes are sent.
`--fuzz-iterations` says how many there are.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.v1 import content_pb2, session_pb2
from tests.robustness.bad_input.support_http2 import RawStream
from tests.robustness.bad_input.support_scene import Scene
from tests.robustness.bad_input.support_stream import batch_of, fetch, heartbeat, hello, send
from tests.support.device import Device

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits()
AT_ONCE = 20
"""Streams that are tried at the same time, each of a user of its own: of one device, the later would replace the earlier."""
LAST_REQUEST_ID = 2**64 - 1
ENDINGS = {"MALFORMED", "PROTOCOL_VIOLATION", "OVERLOADED", "TOO_MANY_DEVICES", "UNAUTHENTICATED", "TOO LARGE"}
"""Why a stream may end. A defect would end it as INTERNAL; TOO LARGE is gRPC's own doing, and without a Disconnect."""

_INTERESTING = (0, 1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_STRINGS = ("", "x", "healthy-ann", "d." + "A" * 22, "\0", "\n", "\U0001f600" * 20, "x" * 70, "y" * 70_000, "s.\u0000")


async def test_mutated_batches(scene: Scene, fuzz_iterations: int) -> None:
    seen: Counter[str] = Counter()
    tokens = [scene.token(f"fuzz-{number}") for number in range(AT_ONCE)]

    async def run(seeds: list[int]) -> None:
        for seed in seeds:
            seen[await _iterate(scene, seed, tokens)] += 1

    async with scene.attack(f"{fuzz_iterations} mutated batches", growth_max_mib=48) as sighting:
        seeds = list(range(fuzz_iterations))
        await asyncio.gather(*(run(seeds[start::AT_ONCE]) for start in range(AT_ONCE)))
        for number, token in enumerate(tokens):  # whatever they have written, their logs are whole
            async with Device(scene.address, token, "device-0") as device:
                await device.until(lambda device=device: bool(device.held.sync_token))  # type: ignore[misc]
                assert device.user_id == f"fuzz-{number}"
        sighting.notes |= dict(seen.most_common())
    assert seen.keys() <= ENDINGS | {"alive"}
    assert seen["alive"] > 0
    assert seen["MALFORMED"] > 0


async def _iterate(scene: Scene, seed: int, tokens: list[str]) -> str:
    """Sends some mutated batches on a new stream; returns how it ended, or that it did not."""
    noise = random.Random(seed)
    number = seed % AT_ONCE
    is_open = noise.random() < 0.7
    valid = _valid_batches(noise, f"fuzz-{number}", tokens[number])
    if is_open and noise.random() < 0.9:
        del valid[0]  # a second Hello ends it, whatever else is said
    chosen = sorted(noise.sample(range(len(valid)), noise.randint(1, 4)))  # in this order their request ids rise
    batches = [_mutated(noise, valid[index], valid) for index in chosen]
    try:
        async with await RawStream.connect(scene.server.port) as stream:
            if is_open:
                await stream.open(tokens[number], f"device-{seed // AT_ONCE % 8}")
            return await _say(stream, batches)
    except Exception as error:
        sent = " ".join(batch.hex()[:4_000] for batch in batches)
        raise AssertionError(f"seed {seed}, {'open' if is_open else 'not open'}: {error!r}; sent {sent}") from error


async def _say(stream: RawStream, batches: list[bytes]) -> str:
    await stream.send(*batches)
    await stream.send_frames(heartbeat(LAST_REQUEST_ID))
    last = session_pb2.ServerFrame()
    while (frame := await stream.next_frame()) is not None:
        if frame.request_id == LAST_REQUEST_ID and frame.HasField("heartbeat"):
            return "alive"
        last = frame
    if not last.HasField("disconnect"):
        assert max(map(len, batches)) > LIMITS.batch_bytes_max, "the stream ended without a Disconnect"
        return "TOO LARGE"
    code = session_pb2.DisconnectCode.Name(last.disconnect.code).removeprefix("DISCONNECT_CODE_")
    assert code in ENDINGS, last
    return code


def _valid_batches(noise: random.Random, user_id: str, token: str) -> list[bytes]:
    """What a client could say."""
    chat_id = direct_chat_id(user_id, f"fuzz-{noise.randrange(AT_ONCE)}")
    frame = session_pb2.ClientFrame
    position = session_pb2.ChatPosition(chat_id=chat_id, seq=3, read_seq=2)
    contents = (
        content_pb2.Content(text=content_pb2.TextContent(text="hello"), reply_to_seq=2),
        content_pb2.Content(reaction=content_pb2.ReactionContent(target_seq=2, emoji="\U0001f44d")),
        content_pb2.Content(edit=content_pb2.EditContent(target_seq=2, text="hello again")),
        content_pb2.Content(delete=content_pb2.DeleteContent(target_seq=2)),
        content_pb2.Content(encrypted=content_pb2.EncryptedContent(scheme="x", ciphertext=b"sealed")),
        content_pb2.Content(hide=content_pb2.HideContent(chat_id=chat_id, seqs=[1, 2, 3])),
        content_pb2.Content(chat_settings=content_pb2.ChatSettingsContent(chat_id=chat_id, archived=True)),
        content_pb2.Content(chat_created=content_pb2.ChatCreatedContent(kind=content_pb2.CHAT_KIND_GROUP, title="x")),
    )
    written = frame(request_id=4)
    written.send.CopyFrom(session_pb2.SendMessage(chat_id=chat_id, content=noise.choice(contents)))
    written.send.key.client_message_id = noise.randbytes(16)
    return [
        batch_of(hello(token, "device-0", positions=[position], features=["x"], sync_token="1")),
        batch_of(send(f"fuzz-{noise.randrange(AT_ONCE)}", "hello", 2, client_message_id=noise.randbytes(16)), heartbeat(3)),
        batch_of(written, frame(ack=session_pb2.Ack(chat_id=chat_id, seq=1))),
        batch_of(fetch(chat_id, 5), frame(mark_read=session_pb2.MarkRead(chat_id=chat_id, seq=1))),
        batch_of(
            frame(typing=session_pb2.Typing(chat_id=chat_id)), frame(watch_chats=session_pb2.WatchChats(chat_ids=[chat_id]))
        ),
        batch_of(frame(request_id=6, refresh_token=session_pb2.RefreshToken(token=token))),
    ]


def _mutated(noise: random.Random, batch: bytes, others: list[bytes]) -> bytes:
    """The batch, changed field by field or byte by byte."""
    if noise.random() < 0.85:
        message = session_pb2.ConnectRequest.FromString(batch)
        for _ in range(noise.randint(1, 4)):
            _mutate_field(noise, message)
        batch = message.SerializeToString()
        if noise.random() < 0.9:
            return batch
    changed = bytearray(batch)
    for _ in range(noise.randint(1, 4)):
        _mutate_bytes(noise, changed, others)
    return bytes(changed)


def _mutate_bytes(noise: random.Random, changed: bytearray, others: list[bytes]) -> None:
    at = noise.randrange(len(changed) + 1)
    match noise.randrange(7):
        case 0 if at < len(changed):
            changed[at] ^= 1 << noise.randrange(8)
        case 1 if at < len(changed):
            changed[at] = noise.choice((0, 1, 0x7F, 0x80, 0xFF))
        case 2:
            del changed[at : at + noise.randint(1, 8)]
        case 3:
            changed[at:at] = noise.randbytes(noise.randint(1, 8))
        case 4:
            changed[at:at] = changed[: noise.randint(1, 50)]
        case 5:
            other = noise.choice(others)
            changed[at:] = other[noise.randrange(len(other)) :]
        case _:
            changed[at:at] = b"\xff" * noise.randint(1, 12)


def _mutate_field(noise: random.Random, message: Message) -> None:
    """Changes one field somewhere below the message."""
    descriptor: Any = noise.choice(message.DESCRIPTOR.fields)
    if descriptor.message_type is not None:
        if descriptor.is_repeated:
            elements = getattr(message, descriptor.name)
            if not elements or noise.random() < 0.1:
                elements.add()
            _mutate_field(noise, noise.choice(elements))
            return
        present = [field for field, _ in message.ListFields() if field.message_type is not None and not field.is_repeated]
        target = noise.choice(present).name if present and noise.random() < 0.8 else descriptor.name
        inner = getattr(message, target)
        inner.SetInParent()
        if inner.DESCRIPTOR.fields:
            _mutate_field(noise, inner)
        return
    value = _value(noise, descriptor)
    if descriptor.is_repeated:
        getattr(message, descriptor.name).extend([value] * noise.choice((1, 1, 2, 300)))
    else:
        setattr(message, descriptor.name, value)


def _value(noise: random.Random, field: FieldDescriptor) -> object:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return noise.choice(_STRINGS)
        case FieldDescriptor.TYPE_BYTES:
            return noise.randbytes(noise.choice((0, 1, 15, 16, 17, 70_000)))
        case FieldDescriptor.TYPE_BOOL:
            return noise.random() < 0.5
        case FieldDescriptor.TYPE_UINT64:
            return noise.choice(_INTERESTING)
        case FieldDescriptor.TYPE_UINT32:
            return noise.choice(_INTERESTING) % 2**32
        case _:  # int64 and enums, which are open
            return noise.choice(_INTERESTING) % 2**31 - noise.choice((0, 2**31))
