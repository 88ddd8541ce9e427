"""chatgrpc: a chat system that a team can run itself, in Python, over gRPC."""
