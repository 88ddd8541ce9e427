"""Bad input: frames at full speed, from peers without a token that read nothing. Nobody else waits for it.

`python -m tests.robustness.bad_input.flood_matrix` prints all sizes and numbers of connections.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.robustness.bad_input.support_flood_cell import BOUND_S, MB, flooded, sink
from tests.robustness.bad_input.support_flooder import FLOODS
from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

_TRIES = 3
BOUNDS_S = {"HPACK": 3.0}
"""Wider ones. What gRPC has taken of such calls before their connection is cut costs the event loop 10 ms each (ADR 8)."""
CELLS = ((4, 1), (4, 8), (16, 8))
"""Megabytes on each connection, and connections."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """One for all floods."""
    async with running_server(tmp_path_factory.mktemp("full-speed") / "data") as running:
        yield running


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_at_full_speed_keeps_nobody_waiting(server: ServerProcess, kind: str, long: bool) -> None:
    """The bound stands beside what the same bytes cost when they go elsewhere; what misses it once may be the machine."""
    for megabytes, connections in CELLS if long else CELLS[1:2]:
        seen = []
        async with sink() as control_port:
            for _ in range(_TRIES):
                control = await flooded(server, control_port, kind, megabytes * MB, connections)
                waited = await flooded(server, server.port, kind, megabytes * MB, connections)
                seen.append(f"{waited}, control {control}")
                if waited.p99_s <= BOUNDS_S.get(kind, BOUND_S) + 2 * control.p99_s:
                    break
            else:
                pytest.fail(f"{megabytes} MB on {connections} connections: {'; '.join(seen)}")
