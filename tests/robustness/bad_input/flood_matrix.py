"""What an innocent call waits for while others flood the port: `python -m tests.robustness.bad_input.flood_matrix`.

After each cell comes its control: the same bytes at the same pace, to a port that takes and drops them; so what the machine
itself costs can be told from what the server does.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.robustness.bad_input.support_flood_cell import BOUND_S, MB, flooded, sink
from tests.robustness.bad_input.support_flooder import FLOODS
from tests.support.server import running_server


async def main() -> None:
    """Prints the matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", default="1,4,16", help="megabytes on each connection")
    parser.add_argument("--connections", default="1,8")
    parser.add_argument("--kinds", default="", help="instead of all, separated by semicolons")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(";") if arguments.kinds else list(FLOODS)
    cells = [
        (kind, megabytes, connections)
        for kind in kinds
        for megabytes in map(int, arguments.mb.split(","))
        for connections in map(int, arguments.connections.split(","))
    ]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        async with running_server(Path(folder, "data")) as server, sink() as control_port:
            for kind, megabytes, connections in cells:
                seen = await flooded(server, server.port, kind, megabytes * MB, connections)
                control = await flooded(server, control_port, kind, megabytes * MB, connections)
                is_missed = seen.p99_s > BOUND_S
                missed += is_missed
                print(
                    f"{kind:22}{megabytes:3} MB x {connections}  {seen}, cut {seen.cut};  control {control}"
                    + ("  MISSED" if is_missed else ""),
                    flush=True,
                )
    print(f"{missed} of {len(cells)} cells have a p99 above {BOUND_S * 1e3:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
