"""The scene itself: what would make an attack's test fail is noticed."""

import json
import math

import pytest

from tests.robustness.bad_input.support_pair import CANARY, USERS, PairHarmedError
from tests.robustness.bad_input.support_scene import Scene
from tests.robustness.bad_input.support_stream import BareStream

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_pair_that_is_harmed_is_noticed_and_replaced(scene: Scene) -> None:
    """Someone opens a stream as one of its devices, so its own is ended."""
    async with BareStream(scene.address) as stream:
        await stream.open(scene.token(USERS[0]), "healthy-0")
        with pytest.raises(PairHarmedError, match="DISCONNECT_CODE_REPLACED"):
            await scene.pair.arrived(math.inf)
    async with scene.attack("none, after a pair was harmed"):
        assert not scene.pair.is_harmed


async def test_what_an_attack_leaves_is_noticed(scene: Scene) -> None:
    before = await scene.vitals()
    async with BareStream(scene.address) as stream:
        await stream.open(scene.token("left-over"))
        assert not (await scene.vitals()).is_back_at(before)
    async with scene.attack("none"):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        json.dumps({"event": "edge_defect", "level": "warning"}),
        json.dumps({"event": "append_failed", "level": "error"}),
        json.dumps({"event": "sent", "said": f"{CANARY} 17"}),
    ],
)
async def test_a_line_that_must_not_be_in_the_log_is_noticed(scene: Scene, line: str) -> None:
    scene.check_log()
    with scene.server.log_path.open("a") as log:
        log.write(line + "\n")
    with pytest.raises(AssertionError, match="log"):
        scene.check_log()
