"""What a node says that is asked for the native edge and cannot have it."""

from pathlib import Path
from typing import Any

import pytest

from chatgrpc.config import ServerSettings, Settings
from chatgrpc.edge import node
from chatgrpc.embedded.node import serving_alone
from chatgrpc.metrics import Metrics
from chatgrpc.start_error import StartError


async def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "is_installed", lambda: False)
    settings = Settings(data_dir=tmp_path, server=ServerSettings(edge="native", port=0))
    nobody: Any = None  # no token is looked at before it serves
    with pytest.raises(StartError, match=r"Install chatgrpc-edge, or set server\.edge"):
        async with serving_alone(settings, nobody, Metrics()):
            pytest.fail("it serves")
