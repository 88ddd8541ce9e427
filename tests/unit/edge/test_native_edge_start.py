"""Which edge serves, and what a node says that is asked for the native one and cannot have it."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest

from chatgrpc.config import ServerSettings, Settings
from chatgrpc.edge import node
from chatgrpc.embedded.node import serving_alone
from chatgrpc.metrics import Metrics
from chatgrpc.start_error import StartError
from tests.support.native_edge import needs_native_edge

_NOBODY: Any = None  # no token is looked at before it serves


def _settings(data_dir: Path, edge: Literal["auto", "native", "grpcio"]) -> Settings:
    return Settings(data_dir=data_dir, server=ServerSettings(edge=edge, port=0))


async def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "is_installed", lambda: False)
    with pytest.raises(StartError, match=r"Install chatgrpc-edge, or set server\.edge"):
        async with serving_alone(_settings(tmp_path, "native"), _NOBODY, Metrics()):
            pytest.fail("it serves")


async def _edge_in_use(settings: Settings, capfd: pytest.CaptureFixture[str]) -> str:
    async with serving_alone(settings, _NOBODY, Metrics()):
        pass
    said = re.search(r"serving.*\bedge=(\w+)", re.sub(r"\x1b\[[0-9;]*m", "", "".join(capfd.readouterr())))
    assert said is not None
    return said.group(1)


@pytest.mark.parametrize("edge", ["auto", "grpcio"])
async def test_grpcio_serves_where_the_native_edge_is_not_installed(
    edge: Literal["auto", "grpcio"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "is_installed", lambda: False)
    assert await _edge_in_use(_settings(tmp_path, edge), capfd) == "grpcio"


@needs_native_edge
@pytest.mark.parametrize(("edge", "in_use"), [("auto", "native"), ("native", "native"), ("grpcio", "grpcio")])
async def test_the_operator_chooses_where_it_is(
    edge: Literal["auto", "native", "grpcio"], in_use: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await _edge_in_use(_settings(tmp_path, edge), capfd) == in_use
