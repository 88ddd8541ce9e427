"""What a server tells the person who started it can be typed as it stands."""

from pathlib import Path

import pytest

from chatgrpc.config import load_settings
from chatgrpc.process.greeting import greet


@pytest.mark.parametrize(
    ("host", "port", "option"),
    [
        ("127.0.0.1", 15_551, ""),
        ("127.0.0.1", 15_552, " --server 127.0.0.1:15552"),
        ("127.0.0.2", 15_551, " --server 127.0.0.2:15551"),
        ("::1", 15_551, " --server '[::1]:15551'"),
        ("localhost", 15_551, " --server localhost:15551"),
    ],
)
def test_the_lines_to_type_lead_to_the_server(
    host: str, port: int, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings({"server.host": host, "data_dir": str(tmp_path)}, None).settings
    greet(settings, port)
    lines = [line for line in capsys.readouterr().out.splitlines() if " chat --as " in line]
    assert len(lines) == 2
    for line in lines:
        assert line.split("--with ")[1].partition(" ")[2] == option.strip()
