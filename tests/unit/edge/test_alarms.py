"""The alarms of connections."""

from chatgrpc.core.limits import Limits
from chatgrpc.core.session import Session, Timings
from chatgrpc.edge.alarms import Alarms
from chatgrpc.edge.connection import Connection


def connection(stream: int) -> Connection:
    return Connection(stream, Session("session", None, Limits(), Timings(), now_ms=0))


def test_each_rings_once_when_its_time_has_come() -> None:
    alarms, one, other = Alarms(), connection(1), connection(2)
    alarms.set_by(one, 20)
    alarms.set_by(other, 10)
    assert list(alarms.due(9)) == []
    assert list(alarms.due(20)) == [other, one]
    assert list(alarms.due(1_000)) == []


def test_the_earliest_time_counts_and_the_later_ones_are_not_kept() -> None:
    alarms, one = Alarms(), connection(1)
    alarms.set_by(one, 50)
    for due_ms in range(50, 10_000):
        alarms.set_by(one, due_ms)
    assert len(alarms) == 1
    alarms.set_by(one, 30)
    assert list(alarms.due(30)) == [one]
    assert list(alarms.due(10_000)) == []


def test_set_again_it_rings_again() -> None:
    alarms, one = Alarms(), connection(1)
    alarms.set_by(one, 10)
    assert list(alarms.due(10)) == [one]
    alarms.set_by(one, 20)
    assert list(alarms.due(20)) == [one]


def test_cancelled_it_does_not_ring_and_refers_to_nothing() -> None:
    alarms, one, other = Alarms(), connection(1), connection(2)
    alarms.set_by(one, 10)
    alarms.set_by(other, 10)
    alarms.cancel(one)
    alarms.cancel(one)
    assert list(alarms.due(10)) == [other]
    alarms.set_by(one, 5)
    assert list(alarms.due(10)) == [one]
