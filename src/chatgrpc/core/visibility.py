"""Which events of a chat a user may see: those at the seqs at which they were a member (G6)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """The seqs at which a user was a member: from the event that let them in to the one that took them out."""

    joined_seq: int
    left_seq: int = 0
    """Seq of the event that took them out, the last one they may see; 0 = they are a member."""
