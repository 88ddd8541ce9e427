"""Clients are told the limits by the names under which they are in force."""

from dataclasses import asdict

from chatgrpc.core.limits import Limits
from chatgrpc.v1 import session_pb2


def test_every_limit_of_the_welcome_is_the_one_in_force() -> None:
    names = [field.name for field in session_pb2.Limits.DESCRIPTOR.fields]
    changed = Limits(**{name: number for number, name in enumerate(names, start=1_000)})  # type: ignore[arg-type]
    assert {name: getattr(changed.frame(), name) for name in names} == {name: asdict(changed)[name] for name in names}


def test_limits_fit_each_other() -> None:
    """What is allowed in one place has room in the next."""
    limits = Limits()
    assert limits.text_bytes_max < limits.content_bytes_max
    assert limits.content_bytes_max < limits.page_bytes_max
    assert limits.page_bytes_max + 2 * limits.content_bytes_max < limits.batch_bytes_max, "a page of history is one frame"
    assert limits.requests_in_flight_max < limits.frames_per_batch_max, "what waits may be sent again at once"
    assert limits.requests_in_flight_max < limits.sends_in_order_max
    assert limits.requests_in_flight_max < limits.writes_waiting_per_chat_max, "one device cannot fill a chat"
    assert 2 * limits.batch_bytes_max <= limits.sends_in_flight_bytes_max, "one full message on the stream behind another"
    per_user = limits.devices_per_user_max * limits.sends_in_flight_bytes_max
    assert per_user < limits.writes_waiting_bytes_per_user_max < limits.writes_waiting_bytes_max / 2
    assert limits.recent_events_per_chat <= limits.dedupe_span_max
