"""Chats that have been going on for a while: written into a data folder by the server's own parts, as of a time of the past."""

import itertools
import os
import random
from collections.abc import Iterable
from pathlib import Path

from chatgrpc.adapters.sqlite import SqliteStore
from chatgrpc.core.clock import Now
from chatgrpc.core.ids import direct_chat_id
from chatgrpc.core.limits import Limits, Rate
from chatgrpc.core.sequencer import Sequencer
from chatgrpc.core.write import Write
from chatgrpc.damage_book import DamageBook
from chatgrpc.edge.look_up import LookUps
from chatgrpc.edge.node import crash
from chatgrpc.embedded.node import DATABASE_NAME
from chatgrpc.embedded.ordering import LocalOrdering
from chatgrpc.metrics import Metrics
from chatgrpc.ports.lease_clock import lease_clock_ms
from chatgrpc.v1 import chat_pb2, content_pb2

_AT_ONCE = 1_000
_LIMITS = Limits(direct_chats_rate=Rate(1_000_000, 1))  # a long past in a moment


async def write_in_the_past(data_dir: Path, writes: Iterable[Write], at_ms: int) -> list[chat_pb2.SendResult]:
    """Commits writes, in their order, as of `at_ms`, milliseconds since the Unix epoch; no server may run on the folder."""
    store = await SqliteStore.open(data_dir / DATABASE_NAME)
    results: list[chat_pb2.SendResult] = []
    try:
        metrics = Metrics()
        sequencer = Sequencer(await store.epochs.next_epoch(), _LIMITS, random.SystemRandom())
        look_ups = LookUps(store.log, store.receipts, _LIMITS.groups_by_others_max)
        owner = LocalOrdering(sequencer, store.log, look_ups, DamageBook(metrics), metrics, _nobody, crash)
        remaining = iter(writes)
        while some := list(itertools.islice(remaining, _AT_ONCE)):
            results += await _commit(owner, some, at_ms)
    finally:
        await store.close()
    return results


def text_to_user(sender_user_id: str, user_id: str, text: str) -> Write:
    """A text to another user, sent by a unary call without a key."""
    content = content_pb2.Content(text=content_pb2.TextContent(text=text))
    chat_id = direct_chat_id(sender_user_id, user_id)
    return Write(chat_id, sender_user_id, content, os.urandom(16), None, peer_user_id=user_id)


async def _commit(owner: LocalOrdering, writes: list[Write], at_ms: int) -> list[chat_pb2.SendResult]:
    at = Now(at_ms, lease_clock_ms())
    for number, write in enumerate(writes):
        owner.submit(number, "past", write, at)
    outcomes: dict[object, chat_pb2.SendResult | chat_pb2.Error] = {}
    while len(outcomes) < len(writes):
        outcomes |= {answer.ticket: answer.outcome for answer in owner.pump(at).answers}
        await owner.settle()
    results = [outcomes[number] for number in range(len(writes))]
    committed = [result for result in results if isinstance(result, chat_pb2.SendResult)]
    assert len(committed) == len(writes), results
    return committed


def _nobody() -> None:
    """Nobody needs to be woken: the owner is pumped until it is done."""
