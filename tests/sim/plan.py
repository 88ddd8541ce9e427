"""What is to happen in one run, drawn from the seed before it begins: so a failure can be tried again with less of it.

Most seeds are of the storm. One in four is of a drill (`drills.py`).
"""

import random
from dataclasses import dataclass

from tests.sim.climate import Climate, climate_of
from tests.sim.drills import DRILLS, Drill

STORM_MS = 9_000
"""How long things go wrong."""
OVER_MS = 11_000
"""What was begun by then and lasts, a pause, or a write that is under way, is over at this time at the latest."""
USERS_BEGIN_MS = 350
MISFORTUNES_BEGIN_MS = 1_000

CHATS = 4
_QUIET_FROM_MS = ((2_500, STORM_MS), (STORM_MS - 3_000, STORM_MS), (STORM_MS, STORM_MS))
"""Early or late, while things still go wrong; or only when all is over."""
LAST_WORD_MS = 800
"""So long before a chat falls quiet a member's stream ends, and the last message comes about when they are back."""

DEVICES = ("alice-1", "alice-2", "bob-1", "carol-1")

MISFORTUNES = (
    "pause",
    "clog an owner",
    "clog an owner",
    "clog owners in turn",
    "set an owner apart",
    "cut a link",
    "cut a link",
    "stop a replica",
    "shuffle the shards",
    "disconnect a device",
    "crash",
    "lose the session map",
    "stop the session map",
)
"""One of these each time; some stand here twice, to come as often."""


DRILL_EVERY = 4
_DRILL_AT = 2
_DRILLED_FROM_MS = 3_000
"""The chats have their messages by then."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a user does, or a misfortune."""

    at_ms: int
    kind: str
    number: int
    """Of its own, so that its chances do not depend on what else happens."""
    device_id: str = ""
    """Whose user acts; empty for a misfortune."""
    chat: int | None = None
    """The chat that falls quiet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    climate: Climate
    acts: tuple[Act, ...]
    quiet_from_ms: tuple[int, ...]
    """For each chat when people stop writing to it: what is lost of the last message, nobody finds by the next one."""
    noise: int = 0
    """Another one: the same plan on a day with other luck."""


def plan_of(seed: int) -> Plan:
    """The run of a seed."""
    rng = random.Random(f"plan {seed}")
    if seed % DRILL_EVERY == _DRILL_AT:
        return _drill(seed, rng, rng.choice(DRILLS))
    climate = climate_of(rng)
    wanted: list[tuple[int, str, str]] = []
    for device_id in DEVICES:
        wanted += [(at_ms, "send", device_id) for at_ms in _times(rng, USERS_BEGIN_MS, 50, 900)]
        wanted += [(at_ms, "read a page", device_id) for at_ms in _times(rng, 700, 500, 3_000)]
        wanted += [(at_ms, "show typing", device_id) for at_ms in _times(rng, 700, 500, 4_000)]
    wanted += [(at_ms, "edit", "alice-1") for at_ms in _times(rng, 700, 200, 1_600)]
    wanted += [(at_ms, "delete", "alice-1") for at_ms in _times(rng, 800, 200, 1_600)]
    wanted += [(at_ms, "change members", "alice-1") for at_ms in _times(rng, 600, 150, 1_600)]
    pace = 1 / climate.restlessness
    wanted += [
        (at_ms, rng.choice(MISFORTUNES), "") for at_ms in _times(rng, MISFORTUNES_BEGIN_MS, int(100 * pace), int(1_400 * pace))
    ]
    quiet_from_ms = tuple(rng.randint(*rng.choice(_QUIET_FROM_MS)) for _ in range(CHATS))
    last_words = [(at_ms - LAST_WORD_MS, "say the last word") for at_ms in quiet_from_ms]
    return _plan(seed, climate, wanted, last_words, quiet_from_ms)


def _drill(seed: int, rng: random.Random, drill: Drill) -> Plan:
    climate = drill.weather(rng)
    quiet_from_ms = _DRILLED_FROM_MS + drill.written_until_ms
    wanted: list[tuple[int, str, str]] = []
    for device_id in DEVICES:
        wanted += [(at_ms, "send", device_id) for at_ms in _times(rng, USERS_BEGIN_MS, 50, 500, quiet_from_ms - 500)]
    for kind in drill.changes:
        wanted += [(at_ms, kind, "alice-1") for at_ms in _times(rng, _DRILLED_FROM_MS - 500, 50, 500, quiet_from_ms)]
    for _ in range(rng.randint(*drill.times)):
        wanted.append((_DRILLED_FROM_MS + rng.randint(0, drill.until_ms), rng.choice(drill.misfortunes), ""))
    last_words = [(_DRILLED_FROM_MS + rng.randint(*drill.last_words), drill.last_word) for _ in range(CHATS)]
    return _plan(seed, climate, wanted, last_words, (quiet_from_ms,) * CHATS)


def _plan(
    seed: int,
    climate: Climate,
    wanted: list[tuple[int, str, str]],
    last_words: list[tuple[int, str]],
    quiet_from_ms: tuple[int, ...],
) -> Plan:
    """Of what is wanted when, and by whose device; and when and how the last word is said in each chat."""
    acts = [Act(at_ms, kind, number, of) for number, (at_ms, kind, of) in enumerate(sorted(wanted))]
    for chat, (at_ms, kind) in enumerate(last_words):
        acts.append(Act(at_ms, kind, len(acts), DEVICES[0], chat))
    return Plan(seed, climate, tuple(acts), quiet_from_ms)


def _times(rng: random.Random, from_ms: int, gap_min_ms: int, gap_max_ms: int, until_ms: int = STORM_MS) -> list[int]:
    times = []
    at_ms = from_ms
    while at_ms < until_ms:
        times.append(at_ms)
        at_ms += rng.randint(gap_min_ms, gap_max_ms)
    return times
