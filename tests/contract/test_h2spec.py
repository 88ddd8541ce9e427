"""h2spec, by others: what RFC 9113 and RFC 7541 ask of a server of HTTP/2, tried on the native edge frame by frame."""

import asyncio
import shutil
from pathlib import Path

import pytest

from chatgrpc.edge.native_transport import NativeTransport
from tests.support.native_edge import needs_native_edge, serve

# A Go module, as h2spec's own names no versions of what it is made of.
_H2SPEC = Path(__file__).parent / "h2spec"


@pytest.mark.slow  # the first time, when h2spec is built
@needs_native_edge
@pytest.mark.skipif(shutil.which("go") is None, reason="NOT TESTED: there is no Go to build h2spec with")
async def test_h2spec_finds_nothing(tmp_path: Path) -> None:
    code, said = await _run("go", "build", "-o", str(tmp_path), "tool")
    assert code == 0, said
    transport = NativeTransport(inbox_bytes_max=64 * 1024, message_bytes_max=1024 * 1024, close_timeout_s=1)
    port = serve(transport)
    code, said = await _run(str(tmp_path / "h2spec"), "-h", "127.0.0.1", "-p", str(port), "--timeout", "5")
    await transport.stop()
    assert code == 0, said[said.find("Failures:") :]
    assert "145 tests, 145 passed" in said


async def _run(*command: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_H2SPEC, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode(errors="replace")
