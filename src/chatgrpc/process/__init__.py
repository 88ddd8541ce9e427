"""The life of a process: it is started, says that it serves, runs alone or as one of several workers, and stops."""
