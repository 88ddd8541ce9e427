"""Coroutines on virtual time: what waits for an answer is written as it is read, and goes on when the answer is there."""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

_Value = TypeVar("_Value")


class Promise(Generic[_Value]):
    """A value, or an error, that comes once. One coroutine may await it; if it never comes, that one never goes on."""

    __slots__ = ("_error", "_value", "_waiter", "is_kept")

    def __init__(self) -> None:
        self.is_kept = False
        self._value: _Value | None = None
        self._error: Exception | None = None
        self._waiter: Callable[[], None] | None = None

    def keep(self, value: _Value) -> None:
        """Here it is; what comes a second time is ignored."""
        if not self.is_kept:
            self._value = value
            self._go_on()

    def fail(self, error: Exception) -> None:
        """It will not come."""
        if not self.is_kept:
            self._error = error
            self._go_on()

    def then(self, waiter: Callable[[], None]) -> None:
        """Calls when it is there."""
        assert self._waiter is None
        if self.is_kept:
            waiter()
        else:
            self._waiter = waiter

    def __await__(self) -> Generator["Promise[Any]", None, _Value]:
        if not self.is_kept:
            yield self
        if self._error is not None:
            raise self._error
        return cast("_Value", self._value)

    def _go_on(self) -> None:
        self.is_kept = True
        if self._waiter is not None:
            self._waiter()


def start(work: Coroutine[Promise[Any], None, None]) -> None:
    """Runs a coroutine until it ends, or waits for a promise that is never kept."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return
    waits_for.then(lambda: start(work))
