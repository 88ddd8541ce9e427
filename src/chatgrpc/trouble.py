"""What does not work for a while, told to operators so that they see it, and see other things too.

Everything that asks a store that is away fails, thousands of times. Of that the log gets one line when it begins, one every few
seconds while it lasts, and one when it works again; how often it fails is for the metrics to say.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

_log = structlog.get_logger()

_INTERVAL_S = 10.0
_CALM_S = 1.0


class Trouble:
    """One thing that fails and works again. Used from one event loop.

    It begins with a failure. It is over when something has worked while nothing waited, and nothing has failed for a moment
    since: what fails now and then is one trouble and not many. Warnings bear the event's name; the line that it is over, the
    name with `_over` behind it.
    """

    def __init__(
        self,
        event: str,
        waiting: Callable[[], Mapping[str, int]] = dict,
        *,
        interval_s: float = _INTERVAL_S,
        calm_s: float = _CALM_S,
    ) -> None:
        """
        Args:
            event: its name in the log.
            waiting: what waits until it works again, counted by kind; stands in the warnings.
            interval_s: between two warnings.
            calm_s: nothing may have failed for so long when it is said to be over.
        """
        self._event = event
        self._waiting = waiting
        self._interval_s = interval_s
        self._calm_s = calm_s
        self.failures = 0
        """Of all times."""
        self._began_at_s: float | None = None
        self._failures_before = 0
        self._failures_told = 0
        self._error = ""
        self._next_line: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None

    @property
    def lasts(self) -> bool:
        """It has begun, and is not over."""
        return self._began_at_s is not None

    def failed(self, error: BaseException) -> None:
        """Something failed."""
        if self._began_at_s is None:
            self._began_at_s = asyncio.get_running_loop().time()
            self._failures_before = self.failures
        self.failures += 1
        self._error = str(error) or type(error).__name__
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._next_line is None:
            self._tell(self._began_at_s)

    def worked(self) -> None:
        """Something worked; costs next to nothing while there is no trouble."""
        if self._began_at_s is not None and self._end is None and not self._is_waited_for():
            self._end = asyncio.get_running_loop().call_later(self._calm_s, self._is_over, self._began_at_s)

    def stop(self) -> None:
        """Whoever had the trouble ends, and nothing more is told of it."""
        for timer in (self._next_line, self._end):
            if timer is not None:
                timer.cancel()
        self._next_line = self._end = self._began_at_s = None

    def _is_waited_for(self) -> bool:
        return any(self._waiting().values())

    def _tell(self, began_at_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._failures_told = self.failures
        self._next_line = loop.call_later(self._interval_s, self._tell_again, began_at_s)
        _log.warning(self._event, error=self._error, **self._measures(began_at_s), **self._waiting())

    def _tell_again(self, began_at_s: float) -> None:
        self._next_line = None
        if self.failures > self._failures_told or self._is_waited_for():
            self._tell(began_at_s)

    def _is_over(self, began_at_s: float) -> None:
        measures = self._measures(began_at_s)
        self.stop()
        _log.info(f"{self._event}_over", **measures)

    def _measures(self, began_at_s: float) -> dict[str, float]:
        lasts_s = asyncio.get_running_loop().time() - began_at_s
        return {"failures": self.failures - self._failures_before, "lasts_s": round(lasts_s, 1)}
