"""Ports over one SQLite file."""
