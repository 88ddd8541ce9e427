"""Ports over Redis, which may lose everything: no guarantee of the log rests on it."""

from chatgrpc.adapters.redis.client import RedisClient
from chatgrpc.adapters.redis.last_seen import RedisLastSeen
from chatgrpc.adapters.redis.session_map import RedisSessionMap
from chatgrpc.adapters.redis.shared_looks import RedisSharedLooks

__all__ = ["RedisClient", "RedisLastSeen", "RedisSessionMap", "RedisSharedLooks"]
