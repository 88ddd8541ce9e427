"""The node among many: an edge, and the owner of some shards. Shells around `core.owner_desk` and `core.edge_desk`."""
