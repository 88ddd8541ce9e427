"""The client library on a real server."""

import asyncio
import contextlib
import gc
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.v1 import chat_pb2, content_pb2, session_pb2
from chatgrpc_client import (
    ChatChange,
    Client,
    ConnectionChanged,
    ConnectionState,
    Deletion,
    Edit,
    LogEvent,
    Message,
    MessageFailed,
    PresenceChanged,
    Reaction,
    ReceiptChanged,
    TypingChanged,
)
from chatgrpc_client.exceptions import (
    ClientClosedError,
    DataDirLockedError,
    DeviceRevokedError,
    NotAMemberError,
    ReplacedError,
    TargetNotFoundError,
    UnauthenticatedError,
    WrongUserError,
)
from tests.support.device import Device, DisconnectedError
from tests.support.server import ServerProcess

from .conftest import Home, until, watching
from .shell import TIMEOUT_S

Names = tuple[str, str, str]


async def texts(client: Client, chat_id: str) -> list[str]:
    """Everything that was said in a chat, by pages back to its beginning."""
    found: list[str] = []
    before = 0
    while True:
        page = await client.history(chat_id, before=before, limit=50)
        found = [event.content.text.text for event in page.events if event.content.HasField("text")] + found
        if not page.more_before or not page.events:
            return found
        before = page.events[0].seq


async def test_a_message_goes_from_sent_to_delivered_to_read(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob, watching(alice) as seen, watching(bob) as got:
        await bob.wait_until_live(TIMEOUT_S)  # a new device begins with the next event
        result = await (await alice.send("hello", user_id=bob_id)).sent
        await got.until(lambda: bool(got.of(Message)))
        (message,) = got.of(Message)
        assert (message.text, message.seq, message.chat_id) == ("hello", result.seq, result.chat_id)
        assert message.chat_id == bob.direct_chat_id(alice_id) == alice.direct_chat_id(bob_id)

        def mark(name: str) -> int:
            return max((getattr(r.receipt, name) for r in seen.of(ReceiptChanged) if r.receipt.user_id == bob_id), default=0)

        await seen.until(lambda: mark("delivered_seq") == result.seq)
        assert mark("read_seq") == 0
        await bob.mark_read(message.chat_id, message.seq)
        await seen.until(lambda: mark("read_seq") == result.seq)
        state = await alice.chat(result.chat_id)
        assert state is not None
        assert state.receipts[bob_id].read_seq == result.seq


async def test_replies_edits_reactions_deletions_and_forwards_reach_the_other_side(home: Home, names: Names) -> None:
    alice_id, bob_id, carol_id = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob, watching(bob) as got:
        await bob.wait_until_live(TIMEOUT_S)  # a new device begins with the next event
        first = await (await alice.send("frist", user_id=bob_id)).sent
        chat_id = first.chat_id
        await (await alice.edit(chat_id, first.seq, "first")).sent
        await (await alice.send("second", chat_id=chat_id, reply_to_seq=first.seq)).sent
        await got.until(lambda: len(got.of(Message)) == 2)
        await (await bob.react(chat_id, first.seq, "👍")).sent
        gone = await (await alice.send("gone", chat_id=chat_id)).sent
        await (await alice.delete(chat_id, gone.seq)).sent
        await got.until(lambda: bool(got.of(Deletion)))
        assert [(e.target_seq, e.text) for e in got.of(Edit)] == [(first.seq, "first")]
        assert [(e.target_seq, e.emoji) for e in got.of(Reaction)] == [(first.seq, "👍")]
        assert got.of(Message)[1].event.content.reply_to_seq == first.seq
        erased = await bob.message(chat_id, gone.seq)
        assert erased is not None
        assert erased.content.WhichOneof("body") == "erased"

        forwarded = await (await bob.forward(got.of(Message)[1].event, user_id=carol_id)).sent
        copy = await bob.history(forwarded.chat_id)
        assert [(e.content.text.text, e.content.forward_count) for e in copy.events[-1:]] == [("second", 1)]


async def test_a_refused_message_fails_with_its_reason_and_later_ones_go_on(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, watching(alice) as seen:
        await (await alice.send("hello", user_id=bob_id)).sent
        chat_id = alice.direct_chat_id(bob_id)
        bad = await alice.edit(chat_id, 999, "what?")
        good = await alice.send("still here", chat_id=chat_id)
        with pytest.raises(TargetNotFoundError):
            await bad.sent
        await good.sent
        (failed,) = await alice.failed_messages()
        assert failed.client_message_id == bad.client_message_id
        await seen.until(lambda: bool(seen.of(MessageFailed)))
        assert isinstance(seen.of(MessageFailed)[0].error, TargetNotFoundError)
        await alice.discard(bad.client_message_id)
        assert await alice.failed_messages() == []
        with pytest.raises(NotAMemberError):
            await (await alice.send("x", chat_id="g.aaaaaaaaaaaaaaaaaaaaaa")).sent


async def test_two_devices_of_one_user_end_in_equal_states(home: Home, names: Names) -> None:
    """M10: sends, reads, edits, deletes and hides of one device reach the other, online or offline in random turns."""
    alice_id, bob_id, _ = names
    rng = random.Random(4)
    phone, laptop, bob = home.device(alice_id, "phone"), home.device(alice_id, "laptop"), home.device(bob_id)
    async with bob, phone:
        first = await (await phone.send("0", user_id=bob_id)).sent
        chat_id = first.chat_id
        async with laptop:
            await laptop.wait_until_live(TIMEOUT_S)
        for number in range(1, 6):
            device = home.device(alice_id, "laptop")
            async with device:
                writer = rng.choice([phone, device])
                sent = await (await writer.send(f"{number}", chat_id=chat_id)).sent
                await (await writer.react(chat_id, sent.seq, "👍")).sent
                if number == 3:
                    await (await writer.edit(chat_id, sent.seq, "three")).sent
                    await (await writer.hide(chat_id, [first.seq])).sent
                await writer.mark_read(chat_id, sent.seq)
            await (await bob.send(f"answer {number}", user_id=alice_id)).sent
            await (await phone.send(f"offline {number}", chat_id=chat_id)).sent
        async with home.device(alice_id, "laptop") as device:
            await device.wait_until_live(TIMEOUT_S)
            reference = await phone.chat(chat_id)
            assert reference is not None

            async def equal() -> bool:
                mine, theirs = await phone.chat(chat_id), await device.chat(chat_id)
                return (
                    mine is not None
                    and theirs is not None
                    and (mine.chat, mine.seq) == (theirs.chat, theirs.seq)
                    and mine.receipts[alice_id].read_seq == theirs.receipts[alice_id].read_seq
                )

            async with asyncio.timeout(TIMEOUT_S):
                while not await equal():
                    await asyncio.sleep(0.02)
            pages = [await d.history(chat_id, limit=100) for d in (phone, device)]
            assert [e.SerializeToString() for e in pages[0].events] == [e.SerializeToString() for e in pages[1].events]
            assert first.seq not in {e.seq for e in pages[1].events}, "hidden on both"


async def test_a_new_device_begins_at_the_head_and_reads_history_by_pages(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice:
        for number in range(30):
            outgoing = await alice.send(f"{number}", user_id=bob_id)
        await outgoing.sent
    async with home.device(bob_id) as bob, watching(bob) as got:
        await bob.wait_until_live(TIMEOUT_S)
        chat_id = bob.direct_chat_id(alice_id)
        newest = await bob.history(chat_id)
        assert [e.content.text.text for e in newest.events] == [str(n) for n in range(10, 30)]
        older = await bob.history(chat_id, before=newest.events[0].seq, limit=8)
        assert [e.content.text.text for e in older.events] == [str(n) for n in range(2, 10)]
        around = await bob.history(chat_id, around=15, limit=4)
        assert 15 in {e.seq for e in around.events}
        after = await bob.history(chat_id, after=5, limit=3)
        assert [e.seq for e in after.events] == [6, 7, 8]
        assert await texts(bob, chat_id) == [str(n) for n in range(30)]
        assert got.of(LogEvent) == [], "nothing of it was pushed"


async def test_a_consumer_that_comes_late_and_is_slow_gets_every_event_once(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob:
        await bob.wait_until_live(TIMEOUT_S)
        for number in range(600):
            outgoing = await alice.send(f"{number}", user_id=bob_id)
        await outgoing.sent
        chat_id = bob.direct_chat_id(alice_id)
        async with asyncio.timeout(TIMEOUT_S):
            while (state := await bob.chat(chat_id)) is None or state.seq < 601:
                await asyncio.sleep(0.02)
        stream = bob.events()
        held = sum(isinstance(value, LogEvent) for value in stream._ready)
        assert held == 0, "what waits is on disk"
        seqs = []
        async for event in stream:
            assert len(stream._ready) <= 256
            if isinstance(event, LogEvent):
                seqs.append(event.seq)
            if len(seqs) == 601:
                break
        assert seqs == list(range(1, 602))
        await stream.aclose()


async def test_groups(home: Home, names: Names) -> None:
    alice_id, bob_id, carol_id = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob, home.device(carol_id) as carol, watching(bob) as got:
        await bob.wait_until_live(TIMEOUT_S)
        group = await alice.groups.create("Books", [bob_id])
        chat_id = group.chat_id
        await alice.groups.update(chat_id, title="Book club")
        await alice.groups.set_role(chat_id, bob_id, content_pb2.MEMBER_ROLE_ADMIN)
        link = await alice.groups.create_link(chat_id, approval_required=True)
        assert (await carol.groups.join(link.token)).HasField("pending")
        await bob.groups.answer_request(chat_id, carol_id, approve=True)
        await (await carol.send("hi all", chat_id=chat_id)).sent
        await bob.groups.mute(chat_id, carol_id, time.time_ns() // 1_000_000 + 3_600_000)
        await bob.groups.remove(chat_id, carol_id)
        await got.until(lambda: any(e.event.content.HasField("member_removed") for e in got.of(ChatChange)))
        state = await bob.chat(chat_id)
        assert state is not None
        assert state.chat.title == "Book club"
        assert [m.user_id for m in state.chat.members] == [alice_id, bob_id]
        assert [e.seq for e in got.of(LogEvent)] == list(range(1, 10))

        fresh = home.device(bob_id, "second")
        async with fresh:
            await fresh.wait_until_live(TIMEOUT_S)
            snapshot = await fresh.chat(chat_id)
            assert snapshot is not None
            assert snapshot.chat == state.chat, "apply(events, stale) == fresh"


async def test_presence_and_typing_of_a_watched_chat(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, watching(alice) as seen:
        await (await alice.send("hello", user_id=bob_id)).sent
        chat_id = alice.direct_chat_id(bob_id)
        alice.watch([chat_id])
        async with home.device(bob_id) as bob:
            await bob.wait_until_live(TIMEOUT_S)
            await seen.until(lambda: any(e.presence.online for e in seen.of(PresenceChanged)))
            bob.typing(chat_id)
            await seen.until(lambda: bool(seen.of(TypingChanged)))
            assert seen.of(TypingChanged)[0].typing.user_id == bob_id
        await seen.until(lambda: not seen.of(PresenceChanged)[-1].presence.online)
        assert seen.of(PresenceChanged)[-1].presence.last_seen_ms > 0


async def test_a_token_is_renewed_in_band_before_it_expires(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id, ttl_s=4) as alice, watching(alice) as seen:
        await alice.wait_until_live(TIMEOUT_S)
        await until(lambda: len(home.minted) >= 3)
        await (await alice.send("still here", user_id=bob_id)).sent
        states = [e.state for e in seen.of(ConnectionChanged)]
        assert ConnectionState.WAITING not in states, "one stream all along"


async def test_a_token_that_is_not_valid_stops_the_client(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    alice = home.device(alice_id)

    async def forged() -> str:
        return "not.a.token"

    alice._token = forged
    async with alice:
        outgoing = await alice.send("kept", user_id=bob_id)
        with pytest.raises(UnauthenticatedError):
            await outgoing.sent
        with pytest.raises(UnauthenticatedError):
            async for _ in alice.events():
                pass
    async with home.device(alice_id) as alice:
        await alice.wait_until_sent(TIMEOUT_S)
        assert await texts(alice, alice.direct_chat_id(bob_id)) == ["kept"]


async def test_revoked_replaced_and_mistaken_devices_stop(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id, "phone") as phone, home.device(alice_id, "laptop") as laptop:
        await phone.wait_until_live(TIMEOUT_S)
        await laptop.wait_until_live(TIMEOUT_S)
        assert {d.name for d in await phone.devices.list()} == {"phone", "laptop"}
        await phone.devices.rename(laptop.device_id, "old laptop")
        await phone.devices.revoke(laptop.device_id)
        with pytest.raises(DeviceRevokedError):
            async for _ in laptop.events():
                pass
        await _live_again(phone)  # a revocation ends the streams of all older tokens that any device could have used
        twin = home.device(alice_id, "twin", device_id=phone.device_id)
        async with twin:
            with pytest.raises(ReplacedError):
                async for _ in phone.events():
                    pass
        with pytest.raises(DataDirLockedError):
            await home.device(alice_id, "phone").__aenter__()
    stranger = home.device(alice_id, "third")
    stranger._token = home.device(bob_id)._token
    async with stranger:
        with pytest.raises(WrongUserError, match=bob_id):
            await stranger.wait_until_live(TIMEOUT_S)
        with pytest.raises(WrongUserError, match=bob_id):  # nor is a group made, which would be bob's
            await stranger.groups.create("whose?", [])


async def _live_again(client: Client) -> None:
    """Reads events up to that which says that the client is live for the second time."""
    times = 0
    async for event in client.events():
        times += isinstance(event, ConnectionChanged) and event.state is ConnectionState.LIVE
        if times == 2:
            return


async def test_a_hello_that_was_long_under_way_does_not_end_the_stream_that_the_device_opened_since(
    home: Home, names: Names
) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id, "phone") as phone, home.device(bob_id, "phone") as bob:
        await phone.wait_until_live(TIMEOUT_S)
        late = Device(home.server.address, await phone._token(), phone.device_id)
        late.connection_number = 1
        with pytest.raises(DisconnectedError) as ended:
            await late.connect()
        await late.close()
        assert ended.value.disconnect is not None
        assert ended.value.disconnect.code == session_pb2.DISCONNECT_CODE_REPLACED
        outgoing = await bob.send("it goes on", user_id=alice_id)
        await outgoing.sent
        async for event in phone.events():
            if isinstance(event, Message):
                break
        assert phone.connection.state is ConnectionState.LIVE


async def test_a_device_fetches_a_newer_token_when_another_was_revoked_and_goes_on(home: Home, names: Names) -> None:
    """Its own was void with the other's. The issuer counts seconds, as most do: one of the same second is void too."""
    alice_id, _, _ = names
    issuer = DevIssuer.open(home.server.data_dir)
    minted: list[str] = []

    async def token() -> str:
        minted.append(issuer.mint(alice_id, 3600, int(time.time()) * 1000))
        return minted[-1]

    laptop = home.device(alice_id, "laptop")
    laptop._token = token
    async with home.device(alice_id, "phone") as phone, laptop, watching(laptop) as seen:
        await phone.wait_until_live(TIMEOUT_S)
        await laptop.wait_until_live(TIMEOUT_S)
        before = len(minted)
        await laptop.devices.revoke(phone.device_id)
        await seen.until(lambda: any("revoked" in e.message for e in seen.of(ConnectionChanged)) or len(minted) > before + 1)
        await laptop.wait_until_live(TIMEOUT_S)
        await (await laptop.send("goes on", user_id=alice_id)).sent
        assert ConnectionState.STOPPED not in [e.state for e in seen.of(ConnectionChanged)]


async def test_an_outcome_that_nobody_waits_for_is_no_complaint_of_asyncio(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    alice = home.device(alice_id)
    async with alice, watching(alice) as seen:
        refused = await alice.edit(alice.direct_chat_id(bob_id), 2, "not mine")
        assert not refused.sent.done()
        await seen.until(lambda: bool(seen.of(MessageFailed)))
        assert refused.settled
        _ = refused.sent
        await asyncio.sleep(0)
    alice = home.device(alice_id)
    alice._token = _never
    async with alice:
        waiting = await alice.send("waits", user_id=bob_id)
        _ = waiting.sent
    assert waiting.settled
    await asyncio.sleep(0)
    del refused, waiting
    gc.collect()
    assert complaints == []


async def _never() -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def test_profiles(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob:
        await alice.profiles.update(display_name="Alice", about="reads")
        profile = await bob.profiles.get(alice_id)
        assert (profile.display_name, profile.about) == ("Alice", "reads")


async def test_manual_acknowledgement_neither_skips_nor_repeats_across_restarts(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    got: list[int] = []
    async with home.device(alice_id) as alice:
        for number in range(40):
            outgoing = await alice.send(f"{number}", user_id=bob_id)
        await outgoing.sent
        for stop_after in (1, 7, 12, 100):
            async with home.device(bob_id, manual_ack=True, replay_all=True) as bob:
                taken = 0
                async for event in bob.events():
                    if not isinstance(event, LogEvent):
                        continue
                    if taken == stop_after:
                        break  # yielded, but not acknowledged
                    got.append(event.seq)
                    taken += 1
                    await bob.acknowledge(event)
                    if event.seq == 41:
                        break
    assert got == list(range(1, 42))


# --- the server is killed


async def test_what_is_sent_while_the_server_is_down_goes_out_once_in_order_after_a_restart_of_both(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    home = Home(own_server, tmp_path / "home")
    async with home.device("alice") as alice:
        await (await alice.send("0", user_id="bob")).sent
        own_server.kill()
        outgoing = [await alice.send(f"{number}", user_id="bob") for number in range(1, 6)]
    assert all(o.settled for o in outgoing), "closing settles what waits: it is kept on disk"
    for one in outgoing:
        with pytest.raises(ClientClosedError):
            await one.sent
    alice = home.device("alice")
    async with alice:
        assert len(await alice.waiting_messages()) == 5
        await alice.send("6", user_id="bob")
        await own_server.start()
        await alice.wait_until_sent(TIMEOUT_S)
        assert await texts(alice, alice.direct_chat_id("bob")) == [str(n) for n in range(7)]


async def test_a_server_killed_again_and_again_under_load_commits_each_message_once_in_order(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    """G1, G2, G3, M7 seen from the client: two senders, one receiver, kill -9 at random moments."""
    home = Home(own_server, tmp_path / "home")
    rng = random.Random(7)
    acknowledged: dict[str, dict[str, int]] = {"alice": {}, "carol": {}}
    stop = asyncio.Event()

    async with home.device("alice") as alice, home.device("carol") as carol, home.device("bob", replay_all=True) as bob:
        group = await alice.groups.create("under fire", ["bob", "carol"])
        chat_id = group.chat_id

        async def note(sender: str, text: str, sent: "asyncio.Future[chat_pb2.SendResult]") -> None:
            acknowledged[sender][text] = (await sent).seq

        async def send_on(client: Client) -> None:
            async with asyncio.TaskGroup() as notes:
                for number in itertools.count():
                    if stop.is_set():
                        return
                    text = f"{client.user_id} {number}"
                    outgoing = await client.send(text, chat_id=chat_id)
                    notes.create_task(note(client.user_id, text, outgoing.sent))
                    await asyncio.sleep(0.004)

        async with watching(bob) as got, asyncio.TaskGroup() as senders:
            senders.create_task(send_on(alice))
            senders.create_task(send_on(carol))
            for _ in range(4):
                await asyncio.sleep(rng.uniform(0.3, 1.0))
                own_server.kill()
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                await own_server.start()
            await asyncio.sleep(0.5)
            stop.set()
            await alice.wait_until_sent(TIMEOUT_S)
            await carol.wait_until_sent(TIMEOUT_S)
            total = sum(len(sent) for sent in acknowledged.values())
            await got.until(lambda: len(got.of(Message)) >= total)
            await asyncio.sleep(0.2)
            messages = got.of(Message)

    assert total > 100
    assert [e.seq for e in got.of(LogEvent)] == list(range(1, len(got.of(LogEvent)) + 1))
    for sender, sent in acknowledged.items():
        received = [(m.text, m.seq) for m in messages if m.sender_user_id == sender]
        assert received == [(f"{sender} {n}", sent[f"{sender} {n}"]) for n in range(len(sent))]


async def test_a_client_that_is_cancelled_as_it_opens_or_closes_leaves_its_folder_to_the_next_one(
    home: Home, names: Names
) -> None:
    alice, bob, _ = names

    async def visit(closing: asyncio.Event) -> None:
        async with home.device(alice) as client:
            await client.wait_until_live(TIMEOUT_S)
            await (await client.send("hello", user_id=bob)).sent
            closing.set()

    for yields in range(40):  # each cancels a little later: as the folder and the store open, and as they close
        closing = asyncio.Event()
        task = asyncio.create_task(visit(closing))
        if yields % 2:
            await closing.wait()
        for _ in range(yields // 2):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        async with home.device(alice) as client:
            assert client.device_id


async def test_whoever_marks_more_as_read_than_there_is_has_not_read_what_comes_later(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice, home.device(bob_id) as bob, watching(bob) as seen:
        await bob.wait_until_live(TIMEOUT_S)
        chat_id = (await (await alice.send("one", user_id=bob_id)).sent).chat_id
        await seen.until(lambda: bool(seen.of(Message)))
        await bob.mark_read(chat_id, 1_000_000)
        assert await bob.unread(chat_id) == 0
        await (await alice.send("two", user_id=bob_id)).sent
        await seen.until(lambda: len(seen.of(Message)) == 2)
        assert await bob.unread(chat_id) == 1


async def test_a_page_of_nothing_is_a_mistake_and_a_closed_stream_yields_nothing_more(home: Home, names: Names) -> None:
    alice_id, bob_id, _ = names
    async with home.device(alice_id) as alice:
        for text in "abc":
            sent = await (await alice.send(text, user_id=bob_id)).sent
        stream = alice.events()
        async for event in stream:
            if isinstance(event, Message):
                break
        await stream.aclose()
        assert [event async for event in stream] == []
        for page in ({"limit": 0}, {"limit": -1}, {"before": -1}):
            with pytest.raises(ValueError, match="at least one event"):
                await alice.history(sent.chat_id, **page)
