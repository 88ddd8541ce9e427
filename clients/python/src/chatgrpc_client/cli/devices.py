"""`chatgrpc devices`: lists a user's devices and revokes one."""

from typing import Annotated

import typer

from ..unary import Devices
from .access import Access, takes_access
from .ending import run
from .rendering import clock, safe


@takes_access(folder=False)
def devices(
    access: Access,
    revoke: Annotated[
        str | None,
        typer.Option("--revoke", metavar="DEVICE", help="Revoke this one: it never connects again.", show_default=False),
    ] = None,
) -> None:
    """List your devices, or revoke one."""
    if revoke == "":
        raise typer.BadParameter("it names no device; without it they are listed with their ids", param_hint="'--revoke'")

    async def work() -> int:
        async with access.caller() as caller:
            calls = Devices(caller)
            if revoke is not None:
                device = await calls.revoke(revoke)
                typer.echo(f"revoked {safe(device.device_id)} ({safe(device.name)})")
                return 0
            for device in await calls.list():
                state = "online" if device.online else f"last connected {clock(device.connected_at_ms)}"
                typer.echo(f"{safe(device.device_id)}  {safe(device.name)}  {state}")
        return 0

    run(work, access.token_hint)
