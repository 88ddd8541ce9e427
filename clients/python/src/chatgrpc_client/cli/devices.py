"""`chatgrpc devices`: lists a user's devices and revokes one."""

from typing import Annotated

import typer

from ..unary import Devices
from .access import DEFAULT_ADDRESS, Access, AsOption, CaOption, ServerOption, TokenOption, run
from .rendering import clock, safe


def devices(
    user: AsOption,
    revoke: Annotated[str, typer.Option("--revoke", metavar="DEVICE", help="Revoke this one: it never connects again.")] = "",
    server: ServerOption = DEFAULT_ADDRESS,
    token: TokenOption = None,
    tls_ca: CaOption = None,
) -> None:
    """List your devices, or revoke one."""
    access = Access(user, server, token, tls_ca, None)

    async def work() -> int:
        async with access.caller() as caller:
            calls = Devices(caller)
            if revoke:
                device = await calls.revoke(revoke)
                typer.echo(f"revoked {device.device_id} ({safe(device.name)})")
                return 0
            for device in await calls.list():
                state = "online" if device.online else f"last connected {clock(device.connected_at_ms)}"
                typer.echo(f"{device.device_id}  {safe(device.name)}  {state}")
        return 0

    run(work)
