"""What a node says that is asked for the native edge and cannot have it."""

from pathlib import Path
from typing import Any

import pytest

from chatgrpc.config import ServerSettings, Settings
from chatgrpc.edge import node
from chatgrpc.embedded.node import serving_alone
from chatgrpc.metrics import Metrics
from chatgrpc.start_error import StartError


async def _start(data_dir: Path, **server: Any) -> None:
    settings = Settings(data_dir=data_dir, server=ServerSettings(edge="native", port=0, **server))
    nobody: Any = None  # no token is looked at before it serves
    async with serving_alone(settings, nobody, Metrics()):
        pytest.fail("it serves")


async def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "is_installed", lambda: False)
    with pytest.raises(StartError, match=r"Install chatgrpc-edge, or set server\.edge"):
        await _start(tmp_path)


async def test_it_does_not_serve_in_clear_what_was_to_be_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "is_installed", lambda: True)
    certificate = tmp_path / "cert.pem"
    with pytest.raises(StartError, match="has no TLS yet"):
        await _start(tmp_path, tls_cert_file=certificate, tls_key_file=certificate)
