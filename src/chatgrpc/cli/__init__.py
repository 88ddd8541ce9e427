"""The `chatgrpc` command."""
