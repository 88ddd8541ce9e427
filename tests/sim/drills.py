"""What rarely comes together by chance, and is brought together: little besides goes wrong, and nothing that follows makes good
what was lost. A storm does the opposite: it also wakes up whatever looks again."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.climate import Climate


@dataclass(frozen=True, slots=True)
class Drill:
    """What one is made of; times are after the chats have their messages."""

    weather: Callable[[random.Random], Climate]
    misfortunes: tuple[str, ...]
    """One of these each time."""
    times: tuple[int, int]
    """So many of them, from the least to the most."""
    until_ms: int
    """When the last of them comes at the latest."""
    last_words: tuple[int, int]
    """When they are said, each in one chat, from the earliest to the latest."""
    last_word: str
    """In which way; see `users.py`."""
    written_until_ms: int = 0
    """People go on writing until then."""
    changes: tuple[str, ...] = ()
    """What alice does meanwhile, beside sending; see `users.py`."""


def _bad_links(rng: random.Random) -> Climate:
    return Climate(
        link_loss=rng.choice((0.25, 0.4, 0.5)),
        link_delay=rng.choice((0.0, 0.1)),
        store_slow=rng.choice((0.0, 0.1, 0.3)),
    )


def _bad_replicas(rng: random.Random) -> Climate:
    return Climate(
        store_loss=rng.choice((0.15, 0.3)),
        store_slow=rng.choice((0.0, 0.1)),
        store_repair=rng.choice((0.0, 0.5)),
        cramped=1.0,
    )


DRILLS = (
    # A node that is taken for gone for a while, and has its streams all the time.
    Drill(
        weather=lambda rng: Climate(half_open=rng.choice((0.0, 0.2)), watch_slow=rng.choice((0.0, 0.5))),
        misfortunes=("set a node apart",),
        times=(1, 1),
        until_ms=0,
        last_words=(1_500, 4_000),
        last_word="say the last word to all",
    ),
    # Devices that come while pushes get lost.
    Drill(
        weather=_bad_links,
        misfortunes=("cut a link",),
        times=(0, 1),
        until_ms=1_000,
        last_words=(0, 600),
        last_word="say the last word to one who comes",
    ),
    # The same, and the session map does not know them any more.
    Drill(
        weather=_bad_links,
        misfortunes=("lose the session map",),
        times=(1, 1),
        until_ms=1_200,
        last_words=(0, 400),
        last_word="say the last word to one who comes",
    ),
    # A session map that loses what it has just been told.
    Drill(
        weather=lambda rng: Climate(map_unsure=rng.choice((0.0, 0.0, 0.02))),
        misfortunes=("lose the session map again and again",),
        times=(1, 3),
        until_ms=2_500,
        last_words=(0, 5_000),
        last_word="say the last word to all",
    ),
    # Streams that nobody knows to be dead, and a session map that forgets where their devices went.
    Drill(
        weather=lambda rng: Climate(half_open=1.0),
        misfortunes=("disconnect a device", "disconnect a device", "lose the session map"),
        times=(4, 12),
        until_ms=3_000,
        last_words=(500, 5_900),
        last_word="say the last word to all",
    ),
    # Owners that load their chats again and again, from replicas that lose, and erase in them.
    Drill(
        weather=_bad_replicas,
        misfortunes=("shuffle the shards", "shuffle the shards", "crash"),
        times=(1, 4),
        until_ms=3_500,
        last_words=(3_500, 5_000),
        last_word="say the last word to all",
        written_until_ms=3_000,
        changes=("edit", "delete"),
    ),
    # Hand-overs while what was written lands late.
    Drill(
        weather=lambda rng: Climate(store_slow=rng.choice((0.1, 0.3, 0.5)), store_repair=rng.choice((0.0, 0.5))),
        misfortunes=("shuffle the shards", "crash", "clog an owner", "pause"),
        times=(1, 4),
        until_ms=3_500,
        last_words=(3_500, 5_000),
        last_word="say the last word to all",
        written_until_ms=3_000,
        changes=("edit", "delete", "change members"),
    ),
    # An owner that gives its shards away while pushes get lost, and then dies.
    Drill(
        weather=_bad_links,
        misfortunes=("give shards away and crash",),
        times=(1, 1),
        until_ms=200,
        last_words=(0, 300),
        last_word="say the last word to all",
    ),
    # Somebody is let in and out while pushes get lost.
    Drill(
        weather=_bad_links,
        misfortunes=("cut a link",),
        times=(0, 1),
        until_ms=1_000,
        last_words=(900, 1_600),
        last_word="say the last word to all",
        written_until_ms=1_000,
        changes=("change members",),
    ),
)
