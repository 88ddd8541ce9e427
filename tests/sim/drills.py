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
    """So many, from the least to the most."""
    until_ms: int
    """When the last of them comes."""
    last_words: tuple[int, int]
    """When they are said, each in one chat, from the earliest to the latest."""
    last_word: str


def _bad_links(rng: random.Random) -> Climate:
    return Climate(
        link_loss=rng.choice((0.25, 0.4, 0.5)),
        link_delay=rng.choice((0.0, 0.1)),
        store_slow=rng.choice((0.0, 0.1, 0.3)),
    )


DRILLS = (
    # A node that is taken for gone for a while, and has its streams all the time.
    Drill(
        lambda rng: Climate(half_open=rng.choice((0.0, 0.2))),
        ("set a node apart",),
        (1, 1),
        0,
        (1_500, 4_000),
        "say the last word to all",
    ),
    # Devices that come while pushes get lost.
    Drill(
        _bad_links,
        ("cut a link",),
        (0, 1),
        1_000,
        (0, 600),
        "say the last word to one who comes",
    ),
    # The same, and the session map does not know them any more.
    Drill(
        _bad_links,
        ("lose the session map",),
        (1, 1),
        1_200,
        (0, 400),
        "say the last word to one who comes",
    ),
    # A session map that loses what it has just been told.
    Drill(
        lambda rng: Climate(map_unsure=rng.choice((0.0, 0.0, 0.02))),
        ("lose the session map again and again",),
        (1, 3),
        2_500,
        (0, 5_000),
        "say the last word to all",
    ),
    # Streams that nobody knows to be dead, and a session map that forgets where their devices went.
    Drill(
        lambda rng: Climate(half_open=1.0),
        ("disconnect a device", "disconnect a device", "lose the session map"),
        (4, 12),
        3_000,
        (500, 5_900),
        "say the last word to all",
    ),
)
