"""The simulator: whole clusters of the real core on virtual time, under a seed (docs/simulator.md)."""
