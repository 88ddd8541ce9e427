"""The timestamps of rows of the log, by which Cassandra decides what stays.

They count epochs, not time: what an owner writes hides what earlier owners wrote and nothing that a later one does, whatever
their clocks say and whenever it lands. Four numbers to an epoch leave room for its erasures to hide its own rows.
"""


def row_timestamp(epoch: int) -> int:
    """Timestamp of a row as its owner writes it, the first time and every other."""
    return 4 * epoch


def erasure_timestamp(epoch: int) -> int:
    """Timestamp of the deletion of all that this epoch and earlier ones wrote at a seq."""
    return 4 * epoch + 1


def erased_timestamp(epoch: int) -> int:
    """Timestamp of the row without content that takes the place of what was deleted."""
    return 4 * epoch + 2
