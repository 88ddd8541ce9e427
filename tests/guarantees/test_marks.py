"""Ticks (M4): a message is sent, then delivered to a device, then read; the sender learns each, live or when they come back."""

import asyncio
from pathlib import Path

import pytest

from chatgrpc.v1 import chat_pb2
from chatgrpc.v1.message_service_pb2 import MarkReadRequest
from tests.support.callers import Caller
from tests.support.cast import Cast
from tests.support.device import TIMEOUT_S, Device
from tests.support.server import running_server


async def until_mark(device: Device, chat_id: str, user_id: str, delivered_seq: int, read_seq: int) -> None:
    """Waits until the device holds a user's marks, exactly these."""
    wanted = chat_pb2.Receipt(chat_id=chat_id, user_id=user_id, delivered_seq=delivered_seq, read_seq=read_seq)
    await device.until(lambda: device.receipts.get((chat_id, user_id)) == wanted)


async def stored_mark(caller: Caller, wanted: chat_pb2.Receipt) -> chat_pb2.Receipt:
    """A user's marks as a unary call tells them, once they are at least these; other nodes tell what is stored."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            receipts = (await caller.summary(wanted.chat_id)).receipts
            mark = next((mark for mark in receipts if mark.user_id == wanted.user_id), chat_pb2.Receipt())
            if mark.delivered_seq >= wanted.delivered_seq and mark.read_seq >= wanted.read_seq:
                return mark
            await asyncio.sleep(0.05)


async def test_ticks_go_from_sent_to_delivered_to_read(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), cast.device("bob")
    sent = await alice.send(bob.user_id, "hello")
    await alice.heartbeat()
    assert (sent.chat_id, bob.user_id) not in alice.receipts, "nobody has it yet"
    await bob.connect()
    await until_mark(alice, sent.chat_id, bob.user_id, delivered_seq=2, read_seq=0)
    await bob.until_held(sent.chat_id, 2)
    await bob.mark_read(sent.chat_id, 2)
    await until_mark(alice, sent.chat_id, bob.user_id, delivered_seq=2, read_seq=2)


async def test_a_sender_who_comes_while_they_are_being_stored_learns_the_ticks(cast: Cast) -> None:
    """Too late to be shown them live, and, on another node, too early to find them in the store."""
    alice, bob = await cast.online("alice"), await cast.online("bob")
    for seq in (2, 3):
        sent = await alice.send(bob.user_id, "hello")
        await alice.close()
        await bob.until_held(sent.chat_id, seq)
        await bob.mark_read(sent.chat_id, seq)
        await bob.heartbeat()
        await alice.connect()
        await until_mark(alice, sent.chat_id, bob.user_id, delivered_seq=seq, read_seq=seq)


@pytest.mark.embedded_only("nodes store marks within a second; what they learn then is the test above")
async def test_a_sender_who_was_away_learns_the_ticks_at_once(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    sent = await alice.send(bob.user_id, "hello")
    await alice.close()
    await bob.until_held(sent.chat_id, 2)
    await bob.mark_read(sent.chat_id, 2)
    await bob.heartbeat()
    await alice.connect()
    await alice.synced()
    assert alice.receipts[sent.chat_id, bob.user_id].read_seq == 2
    fresh = await cast.online("alice", "fresh")
    assert fresh.receipts[sent.chat_id, bob.user_id].read_seq == 2


async def test_what_did_not_change_since_the_last_sync_is_not_told_again(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    sent = await alice.send(bob.user_id, "hello")
    await bob.until_held(sent.chat_id, 2)
    await alice.until_held(sent.chat_id, 2)
    await until_mark(alice, sent.chat_id, bob.user_id, delivered_seq=2, read_seq=0)
    await asyncio.sleep(11)  # receipts of the ten seconds before a sync are told again, for clocks that differ
    await alice.close()
    await alice.connect()
    await alice.synced()
    await asyncio.sleep(2)  # were a mark changed by the Hello, it would be stored by now
    await alice.close()
    alice.taken()
    await alice.connect()
    await alice.synced()
    assert not [frame for frame in alice.taken() if frame.HasField("receipt")]


async def test_delivered_means_to_any_device_and_read_counts_as_delivered(cast: Cast) -> None:
    alice, phone, laptop = await cast.online("alice"), await cast.online("bob"), cast.device("bob", "laptop")
    sent = await alice.send(phone.user_id, "one")
    await until_mark(alice, sent.chat_id, phone.user_id, delivered_seq=2, read_seq=0)
    await phone.close()
    await alice.send(sent.chat_id, "two")
    await laptop.connect()
    await until_mark(alice, sent.chat_id, phone.user_id, delivered_seq=3, read_seq=0)
    await laptop.close()
    await alice.send(sent.chat_id, "three")
    read = await cast.caller("bob").messages.MarkRead(MarkReadRequest(chat_id=sent.chat_id, seq=4))
    assert (read.receipt.delivered_seq, read.receipt.read_seq) == (4, 4)
    await until_mark(alice, sent.chat_id, phone.user_id, delivered_seq=4, read_seq=4)


async def test_marks_only_rise_and_end_at_the_head(cast: Cast) -> None:
    alice, bob = await cast.online("alice"), await cast.online("bob")
    chat_id = (await alice.send(bob.user_id, "one")).chat_id
    await alice.send(chat_id, "two")
    await bob.until_held(chat_id, 3)
    await bob.mark_read(chat_id, 3)
    await until_mark(alice, chat_id, bob.user_id, delivered_seq=3, read_seq=3)
    await bob.mark_read(chat_id, 1)
    await bob.ack(chat_id, 1)
    await bob.mark_read(chat_id, 10**9)
    await bob.heartbeat()
    assert (await cast.caller("alice").messages.MarkRead(MarkReadRequest(chat_id=chat_id, seq=10**9))).receipt.read_seq == 3
    highest = chat_pb2.Receipt(chat_id=chat_id, user_id=bob.user_id, delivered_seq=3, read_seq=3)
    assert await stored_mark(cast.caller("alice"), highest) == highest


async def test_in_a_group_each_member_has_marks_of_their_own(cast: Cast) -> None:
    alice, bob, carol = [await cast.online(name) for name in ("alice", "bob", "carol")]
    chat_id = await cast.group("alice", "bob", "carol")
    sent = await alice.send(chat_id, "hello")
    for reader in (bob, carol):
        await reader.until_held(chat_id, sent.seq)
        await until_mark(alice, chat_id, reader.user_id, delivered_seq=2, read_seq=0)
    await carol.mark_read(chat_id, 2)
    await until_mark(alice, chat_id, carol.user_id, delivered_seq=2, read_seq=2)
    assert alice.receipts[chat_id, bob.user_id].read_seq == 0


@pytest.mark.embedded_only("it kills the one process on its data folder")
async def test_marks_come_through_a_kill(tmp_path: Path) -> None:
    """They are stored within a second, and at any Hello; what was not stored yet, the reader's device repeats."""
    async with running_server(tmp_path / "data") as server:
        cast = Cast(server, "marks")
        alice, bob = await cast.online("alice"), await cast.online("bob")
        for stored in (True, False):
            sent = await alice.send(bob.user_id, "hello")
            await alice.close()
            await bob.until_held(sent.chat_id, sent.seq)
            await bob.mark_read(sent.chat_id, sent.seq)
            await bob.heartbeat()
            if stored:
                await (await cast.online("carol")).close()
            server.kill()
            await server.start()
            if not stored:
                await bob.connect()
                await bob.heartbeat()
            await alice.connect()
            await until_mark(alice, sent.chat_id, bob.user_id, delivered_seq=sent.seq, read_seq=sent.seq)
            await bob.connect()
        await cast.close()
