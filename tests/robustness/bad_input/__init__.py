"""What bad input does to a server and to a pair that chats beside it. A package, so that its scene ends with its last test."""
