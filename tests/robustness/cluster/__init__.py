"""Faults of a real cluster. A package, so that the cluster ends with its last test."""
