"""What several suites use: a real server in a process of its own, and a device that speaks the protocol frame by frame."""

import os

# The tests start hundreds of processes. Where the environment forbids to keep bytecode, each would compile all modules anew,
# which takes longer than what most of them do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
