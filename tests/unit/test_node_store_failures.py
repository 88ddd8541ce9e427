"""A node whose store fails: every send is answered, none is lost or doubled, and the sender's order holds (G1, G3, M7).

The store is the real SQLite one; its failures are injected at the port, since a disk does not fail on command.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from chatgrpc.adapters.jwt import DevIssuer
from chatgrpc.adapters.sqlite.accounts import SqliteDeviceStore
from chatgrpc.adapters.sqlite.chat_log import SqliteChatLog
from chatgrpc.adapters.sqlite.receipts import SqliteReceiptStore
from chatgrpc.config import ServerSettings, Settings
from chatgrpc.core.entries import Entry, Membership, StoredChat, StoredEvent
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits
from chatgrpc.ports.errors import OutcomeUnknownError, StoreUnavailableError
from chatgrpc.ports.receipts import Mark
from chatgrpc.process.run import serving
from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.device_service_pb2 import RevokeDeviceRequest
from tests.support.callers import Caller
from tests.support.device import Device, DisconnectedError

LIMITS = Limits()


class Faults:
    """How the log's next calls fail."""

    def __init__(self) -> None:
        self.appends: list[str] = []
        """Of the next appends: `clean` (nothing stored), `stored` or `lost` (nobody knows, and it was stored or not)."""
        self.reads_fail = False
        """Reads of chats and memberships fail."""
        self.pages_fail = False
        """Reads of events fail."""
        self.marks_fail = False
        """Reads of receipts fail."""
        self.silent: set[str] = set()
        """Chats of which no read comes back while they are in it."""

    async def wait(self, chat_id: str) -> None:
        while chat_id in self.silent:
            await asyncio.sleep(0.01)

    def check(self, fails: bool) -> None:
        if fails:
            raise StoreUnavailableError("injected")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()
    append, load, read_after = SqliteChatLog.append, SqliteChatLog.load, SqliteChatLog.read_after
    memberships = SqliteChatLog.memberships
    of_user_chats = SqliteReceiptStore.of_user_chats

    async def failing_append(log: SqliteChatLog, entries: Sequence[Entry]) -> None:
        fault = faults.appends.pop(0) if faults.appends else ""
        if fault == "clean":
            raise StoreUnavailableError("injected")
        if fault == "lost":
            raise OutcomeUnknownError("injected")
        await append(log, entries)
        if fault == "stored":
            raise OutcomeUnknownError("injected")

    async def failing_load(log: SqliteChatLog, chat_id: str) -> StoredChat | None:
        faults.check(faults.reads_fail)
        await faults.wait(chat_id)
        return await load(log, chat_id)

    async def failing_read_after(
        log: SqliteChatLog, chat_id: str, after_seq: int, up_to_seq: int, limit: int, bytes_max: int
    ) -> list[StoredEvent]:
        faults.check(faults.pages_fail)
        await faults.wait(chat_id)
        return await read_after(log, chat_id, after_seq, up_to_seq, limit, bytes_max)

    async def failing_memberships(
        log: SqliteChatLog, user_id: str, after_chat_id: str, limit: int, *, present_only: bool = False
    ) -> list[Membership]:
        faults.check(faults.reads_fail)
        return await memberships(log, user_id, after_chat_id, limit, present_only=present_only)

    async def failing_of_user_chats(receipts: SqliteReceiptStore, user_id: str, since_ms: int) -> list[Mark]:
        faults.check(faults.marks_fail)
        return await of_user_chats(receipts, user_id, since_ms)

    monkeypatch.setattr(SqliteReceiptStore, "of_user_chats", failing_of_user_chats)
    monkeypatch.setattr(SqliteChatLog, "append", failing_append)
    monkeypatch.setattr(SqliteChatLog, "load", failing_load)
    monkeypatch.setattr(SqliteChatLog, "read_after", failing_read_after)
    monkeypatch.setattr(SqliteChatLog, "memberships", failing_memberships)
    return faults


@pytest.fixture
async def device_of(tmp_path: Path, faults: Faults) -> AsyncIterator[Callable[[str], Device]]:
    issuer = DevIssuer.open(tmp_path)
    devices: list[Device] = []
    async with serving(Settings(data_dir=tmp_path, server=ServerSettings(port=0, metrics_port=0))) as port:

        def device_of(user_id: str) -> Device:
            devices.append(Device(f"127.0.0.1:{port}", issuer.mint(user_id, 600, time.time_ns() // 1_000_000), "phone"))
            return devices[-1]

        yield device_of
        faults.silent.clear()  # or closing waits for what is read of them
        for device in devices:
            await device.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that waits for a read for longer than any test takes, however busy the machine is."""
    monkeypatch.setattr("chatgrpc.embedded.ordering._READ_TIMEOUT_S", 600.0)


async def until_sent(device: Device, frame: session_pb2.ClientFrame) -> chat_pb2.SendResult:
    """Sends it again for as long as reads take too long, as they may on a busy machine."""
    async with asyncio.timeout(30):
        while True:
            answer = await (await device.post(frame))
            if answer.error.code not in (chat_pb2.ERROR_CODE_UNAVAILABLE, chat_pb2.ERROR_CODE_AFTER_FAILED_SEND):
                return answer.sent


@pytest.mark.parametrize("fault", ["clean", "stored", "lost"])
async def test_a_failed_append_is_answered_and_its_repetition_commits_once_and_in_order(
    device_of: Callable[[str], Device], faults: Faults, fault: str
) -> None:
    async with device_of("alice") as alice, device_of("bob") as bob:
        first = await alice.send("bob", "before")
        faults.appends = [fault]
        frames = [alice.compose(first.chat_id, f"{number}") for number in range(20)]
        failed = [await (await alice.post(frame)) for frame in frames[:1]]
        assert [answer.error.code for answer in failed] == [chat_pb2.ERROR_CODE_UNAVAILABLE]
        assert failed[0].error.retry_after_ms > 0

        # A later one must not overtake the failed one, and gets through as soon as that one has come again (M7).
        early = await (await alice.post(frames[1]))
        assert early.error.code == chat_pb2.ERROR_CODE_AFTER_FAILED_SEND
        answers = [await answer for answer in [await alice.post(frame) for frame in frames]]
        assert [answer.sent.seq for answer in answers] == list(range(3, 23))
        assert answers[0].sent.duplicate == (fault == "stored")

        await bob.until_held(first.chat_id, 22)
        assert bob.held.texts(first.chat_id) == ["before", *(f"{number}" for number in range(20))]


async def test_sends_under_way_behind_a_failed_append_fail_with_it(device_of: Callable[[str], Device], faults: Faults) -> None:
    async with device_of("alice") as alice, device_of("bob") as bob:
        first = await alice.send("bob", "before")
        faults.appends = ["clean"] * 3
        frames = [alice.compose(first.chat_id, f"{number}") for number in range(50)]
        outstanding = list(range(50))
        for _ in range(100):
            posted = [(number, await alice.post(frames[number])) for number in outstanding]
            answers = [(number, await answer) for number, answer in posted]
            failed = [number for number, answer in answers if answer.HasField("error")]
            assert outstanding[len(outstanding) - len(failed) :] == failed, "a failed send was overtaken"
            outstanding = failed
            if not outstanding:
                break
        await bob.until_held(first.chat_id, 52)
        assert bob.held.texts(first.chat_id) == ["before", *(f"{number}" for number in range(50))]


async def test_a_chat_that_cannot_be_loaded_answers_and_loads_later(device_of: Callable[[str], Device], faults: Faults) -> None:
    async with device_of("alice") as alice:
        faults.reads_fail = True
        frame = alice.compose("bob", "hello")
        refused = await (await alice.post(frame))
        assert refused.error.code == chat_pb2.ERROR_CODE_UNAVAILABLE
        history = session_pb2.FetchHistory(chat_id="d.AAAAAAAAAAAAAAAAAAAAAA")
        page = await alice.request(session_pb2.ClientFrame(fetch_history=history))
        assert page.error.code in {chat_pb2.ERROR_CODE_UNAVAILABLE, chat_pb2.ERROR_CODE_NOT_A_MEMBER}
        assert "committed" not in page.error.message, "a page was asked for, and no write"
        faults.reads_fail = False
        assert (await (await alice.post(frame))).sent.seq == 2


@pytest.mark.parametrize("loaded", [False, True], ids=["its state", "what it sent before"])
async def test_a_read_that_never_comes_back_gives_its_writes_an_outcome(
    device_of: Callable[[str], Device], faults: Faults, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    async with device_of("alice") as alice, device_of("bob") as bob:
        chat_id = direct_chat_id("alice", "bob")
        if loaded:
            for number in range(140):  # more than an owner keeps in memory
                await alice.send("bob", f"{number}")
        faults.silent.add(chat_id)
        monkeypatch.setattr("chatgrpc.embedded.ordering._READ_TIMEOUT_S", 0.2)
        frame = alice.compose("bob", "waits")
        frame.send.key.seen_seq = 0
        refused = await (await alice.post(frame))
        assert refused.error.code == chat_pb2.ERROR_CODE_UNAVAILABLE
        assert (await until_sent(alice, alice.compose("carol", "to another chat"))).seq == 2
        faults.silent.clear()
        sent = await until_sent(alice, frame)
        await bob.until_held(chat_id, sent.seq)
        assert bob.held.texts(chat_id)[-1] == "waits"
        assert bob.held.texts(chat_id).count("waits") == 1


async def test_a_device_whose_chats_cannot_be_read_is_told_to_come_again(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    alice = device_of("alice")
    faults.reads_fail = True
    with pytest.raises(DisconnectedError) as refused:
        await alice.connect()
    assert refused.value.disconnect is not None
    assert refused.value.disconnect.code == session_pb2.DISCONNECT_CODE_UNAVAILABLE
    assert refused.value.disconnect.reconnect_after_ms > 0
    faults.reads_fail = False
    await alice.connect()


def first_is_too_many(refused: Sequence[session_pb2.ServerFrame]) -> None:
    """Of these answers the first says that there is no room, and the others that they come behind it."""
    assert chat_pb2.ErrorCode.Name(refused[0].error.code) == "ERROR_CODE_TOO_MANY_IN_FLIGHT"
    assert {chat_pb2.ErrorCode.Name(answer.error.code) for answer in refused[1:]} == {"ERROR_CODE_AFTER_FAILED_SEND"}


@pytest.mark.usefixtures("patient")
async def test_sends_that_wait_for_a_store_that_stands_still_are_bounded_in_bytes(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    async with device_of("alice") as alice:
        chat_id = direct_chat_id("alice", "bob")
        faults.silent.add(chat_id)
        frames = [alice.compose("bob", f"{number}" + "x" * 64_000) for number in range(45)]
        answers = [answer for first in (0, 15, 30) for answer in await alice.post_together(frames[first : first + 15])]
        refused = [await answer for answer in answers[32:]]
        first_is_too_many(refused)


@pytest.mark.usefixtures("patient")
async def test_sends_that_wait_for_a_store_that_stands_still_are_bounded_in_number(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    """Those above fail retryably, in order, and nothing is lost."""
    async with device_of("alice") as alice:
        faults.silent.add(direct_chat_id("alice", "bob"))
        count = LIMITS.requests_in_flight_max
        frames = [alice.compose("bob", f"{number}") for number in range(count + 10)]
        answers = await alice.post_together(frames)
        refused = [await answer for answer in answers[count:]]
        first_is_too_many(refused)
        assert all(answer.error.retry_after_ms for answer in refused)
        faults.silent.clear()
        sent = [await answer for answer in answers[:count]]
        sent += [await answer for answer in await alice.post_together(frames[count:])]
        assert [answer.sent.seq for answer in sent] == list(range(2, count + 12))


@pytest.mark.usefixtures("patient")
async def test_a_device_that_does_not_send_again_what_failed_is_disconnected(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    """Places in the order are not kept without end."""
    async with device_of("alice") as alice:
        faults.silent.add(direct_chat_id("alice", "bob"))
        for _ in range(LIMITS.sends_in_order_max // LIMITS.frames_per_batch_max):
            await alice.post_together([alice.compose("bob", "another") for _ in range(LIMITS.frames_per_batch_max)])
        await alice.heartbeat()
        await alice.post(alice.compose("bob", "one too many"))
        ended = await alice.until_ended()
        assert ended.disconnect is not None
        assert ended.disconnect.code == session_pb2.DISCONNECT_CODE_OVERLOADED
        assert ended.disconnect.message


async def test_marks_that_cannot_be_read_keep_nobody_out_and_come_with_a_later_hello(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    async with device_of("alice") as alice, device_of("bob") as bob:
        sent = await alice.send("bob", "hello")
        await alice.synced()
        told = alice.held.sync_token
        await alice.close()
        await bob.until_held(sent.chat_id, sent.seq)
        await bob.mark_read(sent.chat_id, sent.seq)
        await bob.heartbeat()
        faults.marks_fail = True
        await alice.connect()
        await alice.synced()
        assert alice.held.sync_token == told
        await alice.close()
        faults.marks_fail = False
        await alice.connect()
        await alice.synced()
        assert alice.held.receipts[sent.chat_id, "bob"].read_seq == sent.seq


async def test_catching_up_that_fails_costs_the_stream_nothing_and_goes_on_in_a_while(
    device_of: Callable[[str], Device], faults: Faults
) -> None:
    async with device_of("alice") as alice:
        sent = [await alice.send("bob", f"{number}") for number in range(10)]
    chat_id = sent[0].chat_id
    bob = device_of("bob")
    faults.pages_fail = True
    await bob.connect()
    await bob.heartbeat()
    assert bob.held.cursors.get(chat_id, 0) == 0
    faults.pages_fail = False
    await bob.until_held(chat_id, 11)
    assert bob.held.texts(chat_id) == [f"{number}" for number in range(10)]


async def test_what_a_revocation_took_away_is_looked_for_until_it_can_be_read(
    device_of: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, revoke = SqliteDeviceStore.standing, SqliteDeviceStore.revoke
    failed = 0

    async def fail(*_: object) -> None:
        nonlocal failed
        failed += 1
        raise StoreUnavailableError("injected")

    async def revoke_and_fail(store: SqliteDeviceStore, user_id: str, device_id: str, now_ms: int) -> object:
        revoked = await revoke(store, user_id, device_id, now_ms)
        monkeypatch.setattr(SqliteDeviceStore, "standing", fail)
        return revoked

    async with device_of("alice") as phone, Caller(phone.address, "alice", phone.token) as caller:
        thief = device_of("alice")
        thief.device_id = "thief"
        await thief.connect()
        monkeypatch.setattr(SqliteDeviceStore, "revoke", revoke_and_fail)
        answer = await caller.devices.RevokeDevice(RevokeDeviceRequest(device_id="phone"))
        assert answer.HasField("device")
        async with asyncio.timeout(30):
            while failed < 3:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(SqliteDeviceStore, "standing", standing)
        ended = await thief.until_ended()
        assert ended.disconnect is not None
        assert ended.disconnect.reason == "TOKEN_REVOKED"


async def test_a_newer_token_that_cannot_be_checked_now_is_no_bad_one(
    device_of: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client gives a bad token up, and fetches another one; this one it shows again."""
    standing = SqliteDeviceStore.standing

    async def fail(*_: object) -> None:
        raise StoreUnavailableError("injected")

    async with device_of("alice") as alice:
        monkeypatch.setattr(SqliteDeviceStore, "standing", fail)
        refused = await alice.refresh(alice.token)
        assert refused.error.code == chat_pb2.ERROR_CODE_UNAVAILABLE
        assert refused.error.retry_after_ms > 0
        assert "revoked cannot be read just now" in refused.error.message
        monkeypatch.setattr(SqliteDeviceStore, "standing", standing)
        assert (await alice.refresh(alice.token)).HasField("token_refreshed")
