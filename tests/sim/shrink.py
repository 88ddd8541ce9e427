"""Shrinking: less and less of a failing run, as long as it still fails.

What is left out changes what chance does with the rest, so a smaller run is tried on a few days of other luck before it is
taken for harmless.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial

from tests.sim.climate import Climate
from tests.sim.cluster import Cluster
from tests.sim.parts import Parts
from tests.sim.plan import Act, Plan
from tests.sim.world import BrokenError

NOISES = 3
RUNS_MAX = 400


class Shrinker:
    """Of one failing plan."""

    def __init__(self, plan: Plan, parts: Parts | None = None, runs_max: int = RUNS_MAX) -> None:
        self.plan = plan
        """The smallest that fails, as far as it is known."""
        self.runs = 0
        self._parts = parts
        self._runs_max = runs_max

    def shrink(self) -> Plan:
        """Weather first, then whole kinds of acts, then windows of time, from half of the run down to single acts."""
        before = None
        while before != self.plan and self.runs < self._runs_max:
            before = self.plan
            self._try_all(self._calmer_plans())
            self._try_all(self._plans_without_a_kind())
            window = len(self.plan.acts) // 2
            while window and self.runs < self._runs_max:
                self._drop_windows(window)
                window //= 2
        return self.plan

    def _try_all(self, changes: Iterable[Callable[[Plan], Plan]]) -> None:
        for change in changes:
            self._try(change(self.plan))

    def _calmer_plans(self) -> list[Callable[[Plan], Plan]]:
        fair = Climate()
        return [
            partial(_with_weather, name=each.name, value=getattr(fair, each.name))
            for each in fields(Climate)
            if getattr(self.plan.climate, each.name) != getattr(fair, each.name)
        ]

    def _plans_without_a_kind(self) -> list[Callable[[Plan], Plan]]:
        kinds = dict.fromkeys((act.kind, act.device_id) for act in self.plan.acts)
        return [partial(_without_kind, kind=kind) for kind in kinds]

    def _drop_windows(self, window: int) -> None:
        start = 0
        while start < len(self.plan.acts) and self.runs < self._runs_max:
            kept = self.plan.acts[:start] + self.plan.acts[start + window :]
            if not self._try(replace(self.plan, acts=kept)):
                start += window

    def _try(self, plan: Plan) -> bool:
        """Keeps the plan if it fails too."""
        if plan == self.plan:
            return False
        for noise in range(plan.noise, plan.noise + NOISES):
            if self.runs >= self._runs_max:
                return False
            self.runs += 1
            if broken_by(replace(plan, noise=noise), self._parts):
                self.plan = replace(plan, noise=noise)
                return True
        return False


def _with_weather(plan: Plan, name: str, value: float) -> Plan:
    return replace(plan, climate=replace(plan.climate, **{name: value}))


def _without_kind(plan: Plan, kind: tuple[str, str]) -> Plan:
    return replace(plan, acts=tuple(act for act in plan.acts if (act.kind, act.device_id) != kind))


def broken_by(plan: Plan, parts: Parts | None = None) -> str:
    """Runs a plan; returns what broke, empty for nothing."""
    try:
        Cluster(plan.seed, parts, plan=plan).run()
    except BrokenError as broken:
        return str(broken)
    return ""


def describe(plan: Plan) -> str:
    """What is left of a plan, for a person to read."""
    weather = [
        f"{each.name}={getattr(plan.climate, each.name)}"
        for each in fields(Climate)
        if getattr(plan.climate, each.name) != each.default
    ]
    acts = [_line(act) for act in plan.acts]
    return "\n".join([f"weather: {', '.join(weather) or 'fair'}; luck {plan.noise}", *acts])


def _line(act: Act) -> str:
    return f"{act.at_ms:>7} {act.device_id or 'misfortune':<10} {act.kind}"
