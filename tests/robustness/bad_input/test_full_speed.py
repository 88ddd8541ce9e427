"""Bad input: frames at full speed, from peers without a token that read nothing. Nobody else waits for it.

`python -m tests.robustness.bad_input.flood_matrix` prints all sizes and numbers of connections.
"""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.robustness.bad_input.support_flood_cell import BOUND_S, MB, flooded, sink
from tests.robustness.bad_input.support_flooder import FLOODS
from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

_TRIES = 3
BOUNDS_S = {} if os.environ.get("CHATGRPC_SERVER__EDGE") == "native" else {"HPACK": 3.0}
"""Wider ones. What gRPC has taken of such calls before their connection is cut costs the event loop 10 ms each (ADR 8)."""
CELLS = ((4, 1), (4, 8), (16, 8))
"""Megabytes on each connection, and connections."""
SHORT_KINDS = frozenset({"PING", "SETTINGS", "WINDOW_UPDATE", "CONTINUATION"})
"""What every run tries, on one connection: the dearest for gRPC. The others differ in the frame only, and take minutes."""
_KINDS = [pytest.param(kind, marks=() if kind in SHORT_KINDS else pytest.mark.long) for kind in FLOODS]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """One for all floods."""
    async with running_server(tmp_path_factory.mktemp("full-speed") / "data") as running:
        yield running


@pytest.mark.parametrize("kind", _KINDS)
async def test_a_flood_at_full_speed_keeps_nobody_waiting(server: ServerProcess, kind: str, long: bool) -> None:
    """What misses the bound may be the machine: then it stands beside what the same bytes cost when they go elsewhere."""
    bound_s = BOUNDS_S.get(kind, BOUND_S)
    for megabytes, connections in CELLS if long else CELLS[:1]:
        seen = []
        for _ in range(_TRIES):
            waited = await flooded(server, server.port, kind, megabytes * MB, connections)
            if waited.p99_s <= bound_s:
                break
            async with sink() as control_port:
                control = await flooded(server, control_port, kind, megabytes * MB, connections)
            if waited.p99_s <= bound_s + 2 * control.p99_s:
                break
            seen.append(f"{waited}, control {control}")
        else:
            pytest.fail(f"{megabytes} MB on {connections} connections: {'; '.join(seen)}")
