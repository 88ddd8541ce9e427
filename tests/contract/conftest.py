"""A transport depends on its event loop: its suite runs on the one that a node uses, and on that of the standard library."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.contract.transport_suite import TransportSuite


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops for transports, else the usual one."""
    suite = getattr(item, "cls", None)
    if suite is not None and issubclass(suite, TransportSuite):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
