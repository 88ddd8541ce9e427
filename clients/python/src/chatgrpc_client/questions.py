"""Requests other than sends, asked again until there is an answer, over as many sessions as it takes."""

import asyncio
from collections.abc import Callable

from chatgrpc.v1 import session_pb2

from .exceptions import LASTING, RequestError, RequestTimeoutError, TemporaryError, request_error
from .hub import Hub
from .protocol import Session, SessionState


class _SessionLostError(Exception):
    """The session ended before it answered."""


class Questions:
    """What was asked of the server and is not answered yet."""

    def __init__(self, hub: Hub, timeout_s: float) -> None:
        self._hub = hub
        self._timeout_s = timeout_s
        self._session: Session | None = None
        self._wake: Callable[[], None] = lambda: None
        self._asked: dict[int, asyncio.Future[session_pb2.ServerFrame]] = {}

    def attach(self, session: Session, wake: Callable[[], None]) -> None:
        """Asks in this session from now on; `wake` says that it has something to write."""
        self._session, self._wake = session, wake

    def detach(self) -> None:
        """The session ended; what it owes is asked again in the next one."""
        self._session = None
        self.fail(_SessionLostError())

    def fail(self, error: Exception) -> None:
        """Nobody will answer what is open."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
        self._asked.clear()

    def answered(self, ticket: int, frame: session_pb2.ServerFrame) -> None:
        """An answer came."""
        future = self._asked.pop(ticket, None)
        if future is not None and not future.done():
            future.set_result(frame)

    async def ask(self, frame: session_pb2.ClientFrame) -> session_pb2.ServerFrame:
        """Sends a request and returns its answer.

        Raises:
            RequestError: the server refused it.
            RequestTimeoutError: there was no answer in time.
            SessionStoppedError, ClientClosedError: there will be none.
        """
        refused: RequestError | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    answer = await self._ask_once(frame)
                    if answer is None:
                        continue
                    if not answer.HasField("error"):
                        return answer
                    refused = request_error(answer.error)
                    if not isinstance(refused, TemporaryError):
                        raise refused
                    await asyncio.sleep(refused.retry_after_s)
        except TimeoutError:
            if isinstance(refused, LASTING):
                raise refused from None
            reason = self._hub.connection.message or "no answer came"
            raise RequestTimeoutError(f"no answer within {self._timeout_s:g} s: {reason}") from None

    async def _ask_once(self, frame: session_pb2.ClientFrame) -> session_pb2.ServerFrame | None:
        session = self._session
        if session is None or session.state not in {SessionState.SYNCING, SessionState.LIVE}:
            await self._hub.moved()
            return None
        copy = session_pb2.ClientFrame()
        copy.CopyFrom(frame)
        future: asyncio.Future[session_pb2.ServerFrame] = asyncio.get_running_loop().create_future()
        self._asked[session.request(copy)] = future
        self._wake()
        try:
            return await future
        except _SessionLostError:
            return None
