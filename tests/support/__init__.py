"""What several suites use: a real server in a process of its own, and a device that speaks the protocol frame by frame."""
