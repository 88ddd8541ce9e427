"""What a server is asked to do: loads, the shapes in which senders send, and for how long it is measured."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

PAIRS = 50
GROUPS, GROUP_MEMBERS = 4, 100
BACKLOG = 20_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things are measured, in seconds."""

    warmup_s: float
    duration_s: float
    echo_warmup_s: float
    echo_duration_s: float
    replay_devices: int

    @property
    def flags(self) -> list[str]:
        """For the load generator, on the server under test."""
        return ["--warmup", f"{self.warmup_s}s", "--duration", f"{self.duration_s}s"]

    @property
    def echo_flags(self) -> list[str]:
        """For the load generator, on the echo server; twice for each row, before and after it."""
        return ["--warmup", f"{self.echo_warmup_s}s", "--duration", f"{self.echo_duration_s}s"]


THOROUGH = Pace(warmup_s=2, duration_s=8, echo_warmup_s=1, echo_duration_s=4, replay_devices=5)
QUICK = Pace(warmup_s=1, duration_s=3, echo_warmup_s=0.5, echo_duration_s=1.5, replay_devices=2)

ACK_DELAY_MS = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """When senders send and receivers acknowledge."""

    name: str
    flags: tuple[str, ...]
    """As the load generator has it."""


INDEPENDENT = Shape("independent", ("--shape", "independent"))
DELAYED = Shape("independent, delayed acks", ("--shape", "independent", "--ack-delay", f"{ACK_DELAY_MS}ms"))
BATCHED = Shape("batched", ("--shape", "batched"))
SHAPES = {"independent": INDEPENDENT, "delayed": DELAYED, "batched": BATCHED}
"""By what the command line calls them."""

OPEN_LOOP_SHARES = (0.25, 0.5, 0.75)
"""Of the highest rate; what is offered in the rows that have a rate."""


@dataclass(frozen=True, slots=True)
class Load:
    """A row that has a rate: what the load generator does, and the echo that stands beside it."""

    row: str
    shape: Shape
    counts: str
    mode: str
    flags: tuple[str, ...]
    accounts: int
    echo_streams: int
    echo_window: int
    receivers: int = 1
    """Deliveries that one message makes."""
    offered_per_s: float | None = None
    """Messages that are sent whatever is answered; None = as the window has it."""

    @property
    def all_flags(self) -> tuple[str, ...]:
        """For the load generator, without how long it is to take."""
        rate = () if self.offered_per_s is None else ("--rate", f"{self.offered_per_s:.6g}")
        return (*self.flags, *self.shape.flags, *rate)


def pairs(window: int, shape: Shape = INDEPENDENT) -> Load:
    """1:1, durable, acknowledged and delivered."""
    return Load(
        row=f"pairs {PAIRS} window {window}",
        shape=shape,
        counts="messages",
        mode="pairs",
        flags=("--streams", str(2 * PAIRS), "--window", str(window)),
        accounts=2 * PAIRS,
        echo_streams=PAIRS,
        echo_window=window,
    )


def open_loop(share: float, highest_per_s: float) -> Load:
    """1:1 at a share of the highest rate, at random times; latencies count from when a message was to be sent."""
    return replace(pairs(8), row=open_loop_row(share), offered_per_s=share * highest_per_s)


def open_loop_row(share: float) -> str:
    """What the row at this share of the highest rate is called."""
    return f"pairs {PAIRS} at {share:.0%}"


def fanout(window: int, shape: Shape = INDEPENDENT) -> Load:
    """Groups with one sender each."""
    members = GROUPS * GROUP_MEMBERS
    return Load(
        row=f"fanout {GROUPS}x{GROUP_MEMBERS} window {window}",
        shape=shape,
        counts="deliveries",
        mode="fanout",
        flags=("--groups", str(GROUPS), "--streams", str(members), "--window", str(window)),
        accounts=members,
        echo_streams=100,
        echo_window=8,
        receivers=GROUP_MEMBERS - 1,
    )


def replay(devices: int) -> Load:
    """A device that comes back to a backlog."""
    return Load(
        row=f"replay {BACKLOG}",
        # How the backlog was written, which is not measured.
        shape=BATCHED,
        counts="events",
        mode="replay",
        flags=("--messages", str(BACKLOG), "--devices", str(devices)),
        accounts=2,
        echo_streams=50,
        echo_window=8,
    )


LOADED = ("pairs", "fanout", "open", "replay", "idle")
"""Kinds of rows of a server, and of every cluster."""


def loads(kind: str, shapes: Iterable[Shape], pace: Pace) -> list[Load]:
    """The loads of the rows of this kind whose rate is not that of another row."""
    if kind == "replay":
        return [replay(pace.replay_devices)]
    load, windows = {"pairs": (pairs, (1, 8)), "fanout": (fanout, (2, 16))}.get(kind, (pairs, ()))
    return [load(window, shape) for shape in shapes for window in windows]
