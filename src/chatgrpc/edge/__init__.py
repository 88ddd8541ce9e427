"""Shells that move bytes between devices and the core."""
