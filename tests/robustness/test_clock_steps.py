"""The wall clock of a running server is stepped, forth and back, while people chat: that is seen in stamps, and nowhere else.

On a cluster the clocks are stepped one after the other, so that for a while the nodes differ by the whole step.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatgrpc.edge.revocations import KNOWN_FOR_S
from chatgrpc.v1 import chat_pb2, session_pb2
from chatgrpc.v1.device_service_pb2 import RevokeDeviceRequest
from tests.support.callers import Caller
from tests.support.cast import Cast
from tests.support.conversation import Conversation
from tests.support.device import TIMEOUT_S, Device, DisconnectedError, next_frame
from tests.support.services.cassandra import CassandraCluster
from tests.support.services.etcd import EtcdCluster
from tests.support.services.redis import RedisServer
from tests.support.stepped_clock import NoCompilerError, SteppedClock, build
from tests.support.stepped_servers import Place, one_stepped_server, three_stepped_nodes

pytestmark = pytest.mark.timeout(600)

STEPS_S = (-5.0, -3600.0, 120.0, 7200.0, 0.0)
"""How far the clock is ahead after each step; the last one sets it right."""
PAIRS = 2
MESSAGES = 5
"""So many more of everybody, and the conversation goes on."""
CLOCKS_DIFFER_MS = 1_000
"""An event may take the stamp of the one before it if that is later by no more (core/sequencer.py)."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What shifts the clock of a process."""
    if sys.platform != "linux":
        pytest.skip("NOT TESTED: a clock is stepped so on Linux only")
    try:
        return build(tmp_path_factory.mktemp("stepped-clock"))
    except NoCompilerError as error:
        pytest.skip(f"NOT TESTED: {error}")


async def test_one_server_whose_clock_is_stepped(tmp_path: Path, library: Path) -> None:
    async with one_stepped_server(tmp_path, library) as place:
        await steps_are_seen_in_stamps_only(place)


async def test_one_server_that_is_started_again_while_its_clock_is_wrong(tmp_path: Path, library: Path) -> None:
    async with one_stepped_server(tmp_path, library) as place:
        cast = Cast(place.served, "clock")
        try:
            witnesses = await Witnesses.of(cast)
            for ahead_s in (-3600.0, 7200.0, 0.0):
                await witnesses.see_a_restart_in_a_step(place, ahead_s)
        finally:
            await cast.close()


async def test_a_revocation_while_the_clock_is_ahead_locks_nobody_out_once_it_is_right(tmp_path: Path, library: Path) -> None:
    async with one_stepped_server(tmp_path, library) as place:
        cast = Cast(place.served, "clock")
        try:
            stolen = cast.token("alice")
            alice = await cast.online("alice")
            place.clocks[0].step(1800.0)
            revoked = await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id=alice.device_id))
            assert revoked.HasField("device")
            await alice.until_ended()
            place.clocks[0].step(0.0)
            for token, comes_in in ((stolen, False), (cast.token("alice"), True)):
                device = cast.device("alice", "laptop")
                device.token = token
                if comes_in:
                    async with asyncio.timeout(TIMEOUT_S):
                        while not await lets_in(device):
                            device.token = cast.token("alice")  # the first one may be of the same second
                else:
                    assert not await lets_in(device)
        finally:
            await cast.close()


@pytest.mark.parametrize(
    ("revoked_ahead_s", "then_ahead_s"), [(-3600.0, 0.0), (0.0, -3600.0)], ids=["behind", "set back later"]
)
async def test_a_clock_that_is_behind_lets_no_token_in_that_was_taken_away(
    tmp_path: Path, library: Path, revoked_ahead_s: float, then_ahead_s: float
) -> None:
    async with one_stepped_server(tmp_path, library) as place:
        cast = Cast(place.served, "clock")
        try:
            stolen = cast.token("alice")
            alice = await cast.online("alice")
            place.clocks[0].step(revoked_ahead_s)
            thief = cast.device("alice", "laptop")
            thief.token = stolen
            await thief.connect()
            revoked = await cast.caller("alice").devices.RevokeDevice(RevokeDeviceRequest(device_id=alice.device_id))
            assert revoked.HasField("device")
            ended = await thief.until_ended()
            assert ended.disconnect is not None
            assert ended.disconnect.reason == "TOKEN_REVOKED"
            for ahead_s in (revoked_ahead_s, then_ahead_s):
                place.clocks[0].step(ahead_s)
                await asyncio.sleep(KNOWN_FOR_S)  # what was read before the step is not believed any more
                thief = cast.device("alice", "tablet")
                thief.token = stolen
                assert not await lets_in(thief)
        finally:
            await cast.close()


async def lets_in(device: Device) -> bool:
    try:
        await device.connect()
    except DisconnectedError as refused:
        if refused.disconnect is None or refused.disconnect.reason != "TOKEN_REVOKED":
            raise
        return False
    return True


@pytest.mark.slow
async def test_nodes_whose_clocks_are_stepped(
    tmp_path: Path,
    library: Path,
    shared_etcd: EtcdCluster,
    cluster_redis: RedisServer,
    shared_cassandra: CassandraCluster,
    long: bool,
) -> None:
    async with three_stepped_nodes(tmp_path, library, shared_etcd, cluster_redis, shared_cassandra) as place:
        await steps_are_seen_in_stamps_only(place, STEPS_S if long else (-3600.0, 7200.0, 0.0))


async def steps_are_seen_in_stamps_only(place: Place, steps_s: Sequence[float] = STEPS_S) -> None:
    """G1 to G4 hold, no stream ends, and presence, marks and repetitions are as without steps; so also after a restart."""
    cast = Cast(place.served, "clock")
    try:
        conversation = Conversation(cast, PAIRS, seed=5)
        witnesses = await Witnesses.of(cast)
        async with asyncio.timeout(500), conversation.going_on():
            await goes_on(conversation)
            streams_ended = endings(conversation)
            for ahead_s in steps_s:
                for clock in place.clocks:
                    await witnesses.see_a_step(clock, ahead_s)
                await stamps_are_of_the_clock(witnesses, ahead_s)
                await goes_on(conversation)
            assert endings(conversation) == streams_ended, "a step ended a stream"
        assert not witnesses.alice.endings, "a step ended a stream"
        await conversation.check(clock_falls=True)
        await witnesses.see_a_restart_after_a_step(place)
    finally:
        await cast.close()


async def goes_on(conversation: Conversation) -> None:
    """Waits until each of those who write has had some more acknowledged, and each device has received as many."""

    def done() -> dict[str, tuple[int, int]]:
        return {
            name: (len(chatter.outbox.acknowledged), sum(chatter.device.held.cursors.values()))
            for name, chatter in conversation.chatters.items()
        }

    before = done()
    listens_only = "tablet"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while any(
                received < before[name][1] + MESSAGES or (name != listens_only and sent < before[name][0] + MESSAGES)
                for name, (sent, received) in done().items()
            ):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"the conversation stands still: {before}, and then {done()}") from None


def endings(conversation: Conversation) -> dict[str, int]:
    """How many streams of each device have ended."""
    return {name: len(chatter.device.endings) for name, chatter in conversation.chatters.items()}


async def stamps_are_of_the_clock(witnesses: "Witnesses", ahead_s: float) -> None:
    """Once all clocks say the same, so do the stamps, whatever was stamped before."""
    before_ms = time.time() * 1_000
    stamp_ms = (await witnesses.alice.send(witnesses.chat_id, "what time is it?")).sent_at_ms - ahead_s * 1_000
    assert before_ms - 2 <= stamp_ms <= time.time() * 1_000 + CLOCKS_DIFFER_MS


class Witnesses:
    """Alice, who stays and watches, and bob, who comes and goes."""

    def __init__(self, alice: Device, bob: Device, chat_id: str, caller: Caller) -> None:
        self.alice = alice
        self.chat_id = chat_id
        self._bob = bob
        self._caller = caller

    @classmethod
    async def of(cls, cast: Cast) -> "Witnesses":
        """Both online, and alice watches their chat."""
        alice, bob = await cast.online("alice"), await cast.online("bob")
        chat_id = (await alice.send(bob.user_id, "hello")).chat_id
        await alice.until_held(chat_id, 2)
        await alice.watch(chat_id)
        witnesses = cls(alice, bob, chat_id, cast.caller("alice"))
        await witnesses._until_shown(online=True)
        return witnesses

    async def see_a_step(self, clock: SteppedClock, ahead_s: float) -> None:
        """One clock is stepped while bob is on his way out."""
        frame = self.alice.compose(self.chat_id, "before the step")
        first = (await self.alice.request(frame)).sent
        began_ms = time.time() * 1_000
        await self._bob.close()
        behind_s, furthest_s = min(clock.ahead_s, ahead_s), max(clock.ahead_s, ahead_s)
        clock.step(ahead_s)
        last_seen_ms = (await self._until_shown(online=False)).last_seen_ms
        # By the clock as it was or as it is now; on a cluster those of the other nodes are among these two.
        assert began_ms + behind_s * 1_000 - 60_000 <= last_seen_ms <= time.time() * 1_000 + furthest_s * 1_000
        again = (await self.alice.request(frame)).sent
        assert (again.duplicate, again.seq, again.sent_at_ms) == (True, first.seq, first.sent_at_ms)
        await self._bob.connect()
        await self._until_shown(online=True)
        await self._bob_reads((await self.alice.send(self.chat_id, "after the step")).seq)

    async def see_a_restart_after_a_step(self, place: Place) -> None:
        """What bob reads while the clock is ahead, and alice is away, she is told once it is right, after a restart too."""
        place.step(7200.0)
        sent = await self.alice.send(self.chat_id, "ahead")
        await self.alice.close()
        await self._bob.until_held(self.chat_id, sent.seq)
        await self._bob.mark_read(self.chat_id, sent.seq)
        await self._bob.heartbeat()
        place.step(0.0)
        await place.restart()
        await self._bob.connect()
        await self.alice.connect()
        await self._until_read(sent.seq)
        await self._until_stored(sent.seq)
        await stamps_are_of_the_clock(self, 0.0)
        await self._bob_reads((await self.alice.send(self.chat_id, "after the restart")).seq)
        sent = await self.alice.send(self.chat_id, "and away again")
        await self.alice.close()
        await self._bob.until_held(self.chat_id, sent.seq)
        await self._bob.mark_read(self.chat_id, sent.seq)
        await self._until_stored(sent.seq)
        await self.alice.connect()
        await self._until_read(sent.seq)

    async def see_a_restart_in_a_step(self, place: Place, ahead_s: float) -> None:
        """What was sent before is there, and what bob reads of it while alice is away she is told as she comes back."""
        frame = self.alice.compose(self.chat_id, "before the step")
        sent = (await self.alice.request(frame)).sent
        place.step(ahead_s)
        await place.restart()
        await self._bob.connect()
        await self._bob.until_held(self.chat_id, sent.seq)
        await self._bob.mark_read(self.chat_id, sent.seq)
        await self._bob.heartbeat()
        await self.alice.connect()
        await self._until_read(sent.seq)
        again = (await self.alice.request(frame)).sent
        assert (again.duplicate, again.seq, again.sent_at_ms) == (True, sent.seq, sent.sent_at_ms)
        await stamps_are_of_the_clock(self, ahead_s)

    async def _bob_reads(self, seq: int) -> None:
        await self._bob.until_held(self.chat_id, seq)
        await self._bob.mark_read(self.chat_id, seq)
        await self._until_read(seq)
        await self._until_stored(seq)

    async def _until_read(self, seq: int) -> None:
        """Waits until alice is told that bob has read so far."""
        nothing = chat_pb2.Receipt()
        receipts = self.alice.receipts
        await self.alice.until(lambda: receipts.get((self.chat_id, self._bob.user_id), nothing).read_seq >= seq)

    async def _until_stored(self, seq: int) -> None:
        """Waits until the mark is in the store, which is what the other nodes tell."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                marks = {mark.user_id: mark.read_seq for mark in (await self._caller.summary(self.chat_id)).receipts}
                if marks.get(self._bob.user_id, 0) >= seq:
                    return
                await asyncio.sleep(0.05)

    async def _until_shown(self, online: bool) -> session_pb2.Presence:
        while True:
            presence = (await next_frame(self.alice, "presence")).presence
            if (presence.user_id, presence.online) == (self._bob.user_id, online):
                return presence
