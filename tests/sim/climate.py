"""How bad the weather is in one run: probabilities that the seed decides, and that shrinking a failure sets to nothing."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Climate:
    """Probabilities, each of one way to fail; all of them end when the run is calm."""

    link_loss: float = 0.0
    """A message between nodes is lost."""
    link_delay: float = 0.0
    """It comes up to a second late, and later ones overtake it."""
    link_repeats: float = 0.0
    """It comes twice."""
    store_loss: float = 0.0
    """A replica does not get a request, or its answer does not come back."""
    store_slow: float = 0.0
    """It comes up to four seconds late."""
    store_repeats: float = 0.0
    """A write lands twice."""
    store_repair: float = 0.0
    """Read repair happens."""
    coordinator_loss: float = 0.0
    """A request or its answer is lost."""
    coordinator_slow: float = 0.0
    """It comes up to a second late."""
    watch_slow: float = 0.0
    """What a watch tells comes up to two seconds late."""
    map_unsure: float = 0.0
    """The session map does what it was asked, or not, and nobody hears of it."""
    half_open: float = 0.0
    """An edge learns only after seconds that a stream is gone."""
    cursed: float = 0.0
    """Whoever takes a shard is soon clogged, and dies or pauses."""
    cramped: float = 0.0
    """1 = a node keeps a single chat loaded, and loads again and again."""
    restlessness: float = 1.0
    """Not a probability: misfortunes come so many times as often as usual."""


def climate_of(rng: random.Random) -> Climate:
    """The weather of a seed."""
    return Climate(
        link_loss=rng.choice((0.0, 0.03, 0.1, 0.25)),
        link_delay=rng.choice((0.0, 0.05)),
        link_repeats=rng.choice((0.0, 0.04)),
        store_loss=rng.choice((0.0, 0.02, 0.15)),
        store_slow=rng.choice((0.0, 0.02, 0.1)),
        store_repeats=0.02,
        store_repair=rng.choice((0.0, 0.5, 1.0)),
        coordinator_loss=0.03,
        coordinator_slow=0.08,
        watch_slow=0.1,
        map_unsure=rng.choice((0.0, 0.0, 0.02)),
        half_open=rng.choice((0.0, 0.2)),
        cursed=rng.choice((0.0, 0.0, 1.0)),
        restlessness=rng.choice((0.3, 1.0, 3.0)),
    )
