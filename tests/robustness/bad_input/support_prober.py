"""An innocent caller in a process of its own: `python -m … ADDRESS TOKEN`.

Calls GetUser at a steady pace, whether or not the answers come, and takes each call's time from when it was due. Prints `ready`
after the first answer; when its standard input ends it waits for what is under way and prints the times as JSON: for each call,
when it was due (`time.monotonic`) and how long it took, both in seconds.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import time

import grpc

from chatgrpc.v1 import user_service_pb2, user_service_pb2_grpc

CONNECTIONS = 5
INTERVAL_S = 0.01
_GIVE_UP_S = 30.0


async def probe(address: str, token: str) -> list[tuple[float, float]]:
    """Calls until standard input ends."""
    metadata = (("authorization", f"Bearer {token}"),)
    seen: list[tuple[float, float]] = []
    options = [("grpc.use_local_subchannel_pool", 1)]  # a server takes 100 calls at once on a connection
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(CONNECTIONS)]
        users = itertools.cycle(map(user_service_pb2_grpc.UserServiceStub, channels))

        async def call(due_s: float) -> None:
            try:
                await next(users).GetUser(user_service_pb2.GetUserRequest(), metadata=metadata, timeout=_GIVE_UP_S)
            except grpc.aio.AioRpcError:
                seen.append((due_s, _GIVE_UP_S))
            else:
                seen.append((due_s, time.monotonic() - due_s))

        await asyncio.gather(*(call(time.monotonic()) for _ in channels))
        seen.clear()
        print("ready", flush=True)
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        async with asyncio.TaskGroup() as calls:
            due_s = time.monotonic()
            while not ended.done():
                calls.create_task(call(due_s))
                due_s += INTERVAL_S
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(sys.argv[1], sys.argv[2]))), flush=True)
