"""A server that is to run the compiled copy runs it."""

import os
from pathlib import Path

import psutil
import pytest

from chatgrpc import compiled
from tests.support.server import running_server


@pytest.mark.skipif(os.environ.get(compiled.SWITCH) != "1", reason="NOT TESTED: it takes a compiled copy; make test-native")
async def test_a_server_runs_what_was_compiled(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data") as server:
        loaded = {one.path.partition(".cpython-")[0] for one in psutil.Process(server.pid).memory_maps()}
    # Of what compiled modules import of each other only the library that they share is loaded.
    assert {str(compiled.FOLDER / "chatgrpc" / name) for name in ("core/sequencer", "edge/loop")} <= loaded
