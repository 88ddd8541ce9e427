"""The rules of chat, without I/O."""
