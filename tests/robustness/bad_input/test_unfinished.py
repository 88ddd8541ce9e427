"""Bad input: messages as large as they may be that never end, from peers that have shown no token."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.contract.http2_peer import grpc_message
from tests.robustness.bad_input.support_http2 import Sender, headers
from tests.robustness.bad_input.support_scene import MIB, SETTINGS, scene_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONNECTIONS, STREAMS = 10, 40
PLACES = 100
"""For streams of one address that are not let in; a quarter of those that come."""
GROWTH_MAX_MIB = PLACES * 3 // 2
TIMES = 3
_POURING_S = 3.0


async def test_what_strangers_leave_unfinished_takes_no_more_than_their_places(tmp_path: Path) -> None:
    """1.2 GB are offered in three waves. A place holds one message, and what one wave took serves the next."""
    settings = {**SETTINGS, "CHATGRPC_LIMITS__SILENT_STREAMS_PER_ADDRESS": str(PLACES)}
    streams = range(1, 2 * STREAMS, 2)
    unfinished = grpc_message(bytes(MIB - 1), length=MIB)
    poured = 0

    async def pour(sender: Sender, stream: int) -> None:
        nonlocal poured
        with contextlib.suppress(ConnectionError):  # bytes for streams that were refused may pass for a flood, and it is cut
            await sender.send_data(stream, unfinished)
            poured += not sender.is_over(stream)

    async with (
        scene_of(tmp_path / "data", settings) as scene,
        scene.attack(
            f"{CONNECTIONS * STREAMS * TIMES} unfinished messages of 1 MiB",
            growth_max_mib=GROWTH_MAX_MIB,
            peak_growth_max_mib=GROWTH_MAX_MIB,
        ) as sighting,
    ):
        for _ in range(TIMES):
            senders = [await Sender.connect(scene.server.port) for _ in range(CONNECTIONS)]
            for sender in senders:
                await sender.peer.send(*map(headers, streams))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POURING_S):
                    await asyncio.gather(*(pour(sender, stream) for sender in senders for stream in streams))
            await asyncio.gather(*(sender.close() for sender in senders))
        sighting.notes["held"] = poured
    assert poured > PLACES / 2, "hardly anything was left unfinished: this test looks at nothing"
