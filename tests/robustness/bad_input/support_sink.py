"""A process that takes and drops what it is sent; prints its port."""

import asyncio


async def main() -> None:
    """Serves until the process is killed."""

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 20):
                pass
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
