"""Links between the nodes of a cluster: one gRPC stream a pair, on which `core.links` messages go both ways."""
