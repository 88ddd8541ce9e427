"""The `chatgrpc` command."""

from chatgrpc import compiled

compiled.prefer()
