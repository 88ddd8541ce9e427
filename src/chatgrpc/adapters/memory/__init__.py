"""Ports in process memory, for tests and for what need not outlive the process."""
