"""The node that is alone: it owns all chats, and everyone who is connected is connected here."""
