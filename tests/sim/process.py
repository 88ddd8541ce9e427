"""A process on virtual time: it has clocks that drift, it can pause and go on, and it can crash."""

from collections.abc import Callable
from functools import partial

from chatgrpc.core.clock import Now
from tests.sim.world import World


class Process:
    """What every process can do and suffer."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._rate = world.rng.uniform(0.99, 1.01)
        self._offset_ms = world.between(0, 1_000_000)
        self._now = Now(0, 0)
        self._read_at_ms = -1
        self._paused_calls: list[Callable[[], None]] | None = None

    def now(self) -> Now:
        """This process's clocks: the monotonic one drifts, and began somewhere."""
        at_ms = self.world.now_ms
        if at_ms != self._read_at_ms:
            self._read_at_ms = at_ms
            self._now = Now(1_700_000_000_000 + at_ms, int(self._offset_ms + at_ms * self._rate))
        return self._now

    def run(self, action: Callable[[], None]) -> None:
        """Does it now; when the process is paused, as soon as it goes on; never, when it is dead."""
        if not self.alive:
            return
        if self._paused_calls is not None:
            self._paused_calls.append(action)
            return
        action()

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Does it later, as `run` does."""
        self.world.after(delay_ms, partial(self.run, action))

    def every(self, interval_ms: int, action: Callable[[], None]) -> None:
        """Does it again and again, from some moment on."""

        def again() -> None:
            action()
            self.after(interval_ms, again)

        self.after(self.world.between(1, interval_ms), again)

    def pause(self, duration_ms: int) -> None:
        if self._paused_calls is None:
            self.note(f"pauses for {duration_ms} ms")
            self._paused_calls = []
            self.world.after(duration_ms, self._go_on)

    def crash(self) -> None:
        self.note("crashes")
        self.alive = False

    def note(self, what: str) -> None:
        self.world.note(self.name, what)

    def _go_on(self) -> None:
        calls, self._paused_calls = self._paused_calls or [], None
        self.note(f"goes on, {len(calls)} calls late")
        while calls and self.alive:
            self.run(calls.pop(0))
